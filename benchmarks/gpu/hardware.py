"""The machine: what it is, and the two rates that bound any training on it."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch

from smallbatch.machine import git_state


def describe(device: torch.device) -> dict[str, Any]:
    """Names and versions."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device.type,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": git_state()[0],
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "processors": properties.multi_processor_count,
            "driver": _driver(),
            "cuda": torch.version.cuda,
            "triton": metadata.version("triton"),
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def seconds(call: Callable[[], object], device: torch.device, at_least: float = 0.2) -> float:
    """Seconds of one call, from as many as ``at_least`` takes; the median of three such."""
    call()
    _wait(device)
    calls, results = 1, list[float]()
    while len(results) < 3:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        _wait(device)
        took = time.perf_counter() - start
        if took < at_least / 3 and not results:
            calls = max(calls + 1, int(calls * min(10, at_least / 3 / max(took, 1e-6))))
            continue
        results.append(took / calls)
    return sorted(results)[1]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def rates(device: torch.device, toy: bool) -> dict[str, float]:
    """Matrix products in TFLOP/s by precision, and a copy in GB/s, read plus written."""
    n, size = (256, 2**20) if toy else (8192, 2**30)
    found: dict[str, float] = {}
    for name, dtype, tf32 in (
        ("float32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("bf16", torch.bfloat16, False),
    ):
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)
        took = seconds(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device)
        found[f"{name}_tflops"] = 2 * n**3 / took / 1e12
    torch.set_float32_matmul_precision("highest")
    x = torch.randn(size // 4, device=device)
    y = torch.empty_like(x)
    found["copy_gbps"] = 2 * size / seconds(lambda: y.copy_(x), device) / 1e9
    return found
