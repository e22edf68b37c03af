"""What the machine can do at best: a script of its own, so that torch has its default threads."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable

import torch

SECONDS = 0.5  # of each measurement, after one call that is not counted


def sgemm(device: torch.device) -> float:
    """FLOP/s of a large float32 matrix product on all cores, or on the GPU with TF32 off."""
    torch.backends.cuda.matmul.allow_tf32 = False
    n = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(n, n, device=device) for _ in range(2))
    c = torch.empty(n, n, device=device)
    return 2 * n**3 / _seconds(lambda: torch.mm(a, b, out=c), device)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read plus written, when copying far more than any cache holds."""
    size = 2**30 if device.type == "cuda" else 2**28
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _seconds(lambda: target.copy_(source), device)


def limits(device: torch.device) -> dict[str, float]:
    """Every limit by its name."""
    return {
        "sgemm_flops_per_second": sgemm(device),
        "copy_bytes_per_second": copy_bandwidth(device),
    }


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    call()
    synchronize()
    calls, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < SECONDS:
        call()
        synchronize()
        calls += 1
        spent = time.perf_counter() - start
        if spent >= SECONDS:
            break
    return spent / calls


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    json.dump(limits(torch.device(parser.parse_args().device)), sys.stdout)
