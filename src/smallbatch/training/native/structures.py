"""The structures of `kernels.cpp`, field by field."""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_int32, c_int64, c_void_p
from typing import Any


def _fields(**groups: Any) -> list[tuple[str, Any]]:
    return [(name, kind) for names, kind in groups.items() for name in names.split("__")]


class Shape(ctypes.Structure):
    """Extent and strides, in vectors, of an activation."""

    _fields_ = [
        (name, c_int32)
        for name in "channels examples height width channel example row origin".split()
    ]

    def at(self, channel: Any, example: Any, row: Any, column: Any) -> Any:
        """Offset of a pixel; indices may be arrays, and may lie in the border."""
        place = self.origin + channel * self.channel + example * self.example
        return place + row * self.row + column


class Product(ctypes.Structure):
    """A sum of products over tables of offsets."""

    _fields_ = [
        *(
            (name, c_int32)
            for name in "rows outputs positions tile weight_stride out_stride".split()
        ),
        *((name, c_void_p) for name in "x_offset w_offset x_base y_base".split()),
    ]


class Layer(ctypes.Structure):
    """Product, norm, shortcut, relu and pool."""

    _fields_ = [
        ("forward", Product),
        ("input", ctypes.POINTER(Product)),
        *(
            (name, c_int32)
            for name in (
                "inputs norm channels_per_group examples_per_group stride relu pool pool_top pool_left "
                "winograd"
            ).split()
        ),
        *((name, c_int64) for name in "weight bias scale shift running_mean running_var".split()),
        ("eps", c_double),
        ("momentum", c_double),
        ("in_", Shape),
        ("out", Shape),
        ("pooled", Shape),
        ("skip", Shape),
        *(
            (name, c_void_p)
            for name in (
                "x dx z dz y dy pooled_y pooled_dy winner mean invstd variance skip_x skip_dx"
            ).split()
        ),
    ]


class Images(ctypes.Structure):
    """Resident images and labels; strides in numbers."""

    _fields_ = [
        ("pixels", c_void_p),
        ("labels", c_void_p),
        *((name, c_int64) for name in "image channel row column channels height width".split()),
    ]


class Network(ctypes.Structure):
    """Layers, the first one's input, and the memory of a step."""

    _fields_ = [
        ("layers", ctypes.POINTER(Layer)),
        *((name, c_int32) for name in "count_layers batch_size classes".split()),
        ("input_shape", Shape),
        ("input", c_void_p),
        ("gradient", c_void_p),
        ("parameters", c_int64),
        ("labels", c_void_p),
    ]


def stream_of(lanes: int) -> type[ctypes.Structure]:
    """The structure `Stream` for vectors of so many lanes."""

    class Stream(ctypes.Structure):
        _fields_ = [
            *((name, c_void_p * lanes) for name in ("index", "top", "left", "flip")),
            ("pad", c_int32),
        ]

    return Stream


def group_of(lanes: int) -> type[ctypes.Structure]:
    """The structure `Group` for vectors of so many lanes."""

    class Group(ctypes.Structure):
        _fields_ = [
            ("theta", c_void_p),
            ("statistics", c_void_p),
            *((name, c_double * lanes) for name in ("base_lr", "lr_decay", "loss")),
            *((name, c_int64 * lanes) for name in ("correct", "diverged_at")),
        ]

    return Group
