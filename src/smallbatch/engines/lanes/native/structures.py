"""The structures of `structures.h`, with the same fields."""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_int32, c_int64, c_void_p
from typing import Any

_SHAPE = "channels examples height width channel example row origin"
_SIZES = "rows outputs positions tile weight_stride out_stride"
_TABLES = "x_offset x_base y_base w_offset"
_GROUPS = "channels_per_group examples_per_group parts_per_group"
_KINDS = f"inputs norm {_GROUPS} stride relu pool pool_top pool_left"
_PLACES = "weight bias scale shift running_mean running_var"
_BUFFERS = "x dx z dz y dy pooled_y pooled_dy winner mean invstd variance skip_x skip_dx"
_STRIDES = "image channel row column channels height width"


def _fields(names: str, kind: Any) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


class Shape(ctypes.Structure):
    """Size and strides, in vectors, of an activation."""

    _fields_ = _fields(_SHAPE, c_int32)

    def at(self, channel: Any, example: Any, row: Any, column: Any) -> Any:
        """Offset of a pixel, which may lie in the border; indices may be arrays."""
        place = self.origin + channel * self.channel + example * self.example
        return place + row * self.row + column


class Product(ctypes.Structure):
    """A sum of products over tables of offsets."""

    _fields_ = [*_fields(_SIZES, c_int32), *_fields(_TABLES, c_void_p)]


class Layer(ctypes.Structure):
    """A layer: product, norm, shortcut, ReLU and pool."""

    _fields_ = [
        ("forward", Product),
        ("input", ctypes.POINTER(Product)),
        *_fields(f"{_KINDS} algorithm", c_int32),
        *_fields(_PLACES, c_int64),
        *_fields("eps momentum", c_double),
        *_fields("in_ out pooled skip", Shape),
        *_fields(_BUFFERS, c_void_p),
    ]


class Images(ctypes.Structure):
    """Resident images and labels; strides are in numbers."""

    _fields_ = [*_fields("pixels labels", c_void_p), *_fields(_STRIDES, c_int64)]


class Network(ctypes.Structure):
    """The layers, the input of the first one, and the memory of a step."""

    _fields_ = [
        ("layers", ctypes.POINTER(Layer)),
        *_fields("count_layers batch_size classes parts", c_int32),
        ("input_shape", Shape),
        *_fields("input gradient", c_void_p),
        ("parameters", c_int64),
        ("labels", c_void_p),
    ]


class Optimiser(ctypes.Structure):
    """An optimiser's numbers that stay the same, and a group's moments.

    Its kind is its place in MOMENTS.
    """

    _fields_ = [
        ("kind", c_int32),
        *_fields("beta1 beta2 eps decay batch_size", c_double),
        *_fields("first second", c_void_p),
    ]


def stream_of(lanes: int) -> type[ctypes.Structure]:
    """The structure `Stream` for vectors of ``lanes`` places."""

    class Stream(ctypes.Structure):
        _fields_ = [*_fields("index top left flip", c_void_p * lanes), ("pad", c_int32)]

    return Stream


def group_of(lanes: int) -> type[ctypes.Structure]:
    """The structure `Group` for vectors of ``lanes`` places."""

    class Group(ctypes.Structure):
        _fields_ = [
            *_fields("theta statistics", c_void_p),
            *_fields("base_lr lr_times_decay loss", c_double * lanes),
            *_fields("correct diverged_at", c_int64 * lanes),
        ]

    return Group
