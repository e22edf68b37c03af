"""What is measured on a GPU, in which order: parts, each a process with a time limit of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BATCH_SIZES = (2, 8, 32, 128)
FIG2_BATCH_SIZES = tuple(2**e for e in range(1, 12))
LANES = {"batch": 26, "none": 13}
CASES = (
    ("resnet8", "none"), ("resnet8", "batch"), ("resnet8", "ghost"), ("resnet8", "group"),
    ("resnet32", "batch"), ("alexnet", "none"), ("alexnet", "batch"), ("alexnet", "ghost"),
)  # fmt: skip
TORCH_PEERS = ("plain", "plain-graph", "grouped-graph", "grouped-graph-cl")
JAX_PEERS = {"jax-einsum": BATCH_SIZES, "jax-einsum-x3": (8, 128), "jax-vmap": BATCH_SIZES}


@dataclass(frozen=True)
class Part:
    """A process that prints results as lines of JSON.

    Attributes:
        name: of the part.
        command: of Python.
        limit: seconds after which it is ended; what it has printed by then counts.
        tags: what its lines leave out.
        kept: whether its lines are results; others only fill the compilers' caches.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    tags: dict[str, Any] = field(default_factory=dict[str, Any])
    kept: bool = True


def side_by_side(toy: bool) -> list[Part]:
    """Parts in which nothing is timed: all that must be compiled, and checks."""
    found: list[Part] = []
    for model, norm in CASES[:2] if toy else CASES:
        found.append(Part(f"check {model} {norm}", _ours("check", model, norm), 100))
    found.append(Part("check itself", _ours("itself"), 100))
    # On small noise, where float32 keeps its digits for 20 updates; see `peers_task.LIMIT`.
    small = ("--check", "--toy")
    command = _peers("torch", TORCH_PEERS, "batch", (8,), 0)
    found.append(Part("check torch peers", (*command, *small), 100))
    if not toy:
        command = _peers("jax", tuple(JAX_PEERS), "batch", (8,), 0)
        found.append(Part("check jax peers", (*command, *small), 150))
    if not toy:
        for norm in LANES:
            for m in BATCH_SIZES:
                command = _ours("speed", norm, str(m), "0.01")
                found.append(Part(f"compile {norm} {m}", command, 100, kept=False))
        wanted = [(peer, m) for peer, sizes in JAX_PEERS.items() for m in sizes]
        wanted.sort(key=lambda one: one[0] == "jax-vmap")  # which compiles fastest
        for peer, m in wanted:
            command = _peers("jax", (peer,), "batch", (m,), 0.01)
            found.append(Part(f"compile {peer} {m}", command, 150, kept=False))
    return found


def one_by_one(toy: bool, npz: Path) -> list[Part]:
    """Parts that are timed and so have the machine to themselves, most informative first."""
    sizes, long = ((2, 8), 0.02) if toy else (BATCH_SIZES, 0.6)
    ours = {
        norm: Part(f"stacked {norm}", _ours("speed", norm, *map(str, sizes), str(long)), 40)
        for norm in LANES
    }
    found = [Part("hardware", _ours("hardware"), 25), ours["batch"]]
    if not toy:
        for peer, some in JAX_PEERS.items():
            command = _peers("jax", (peer,), "batch", some, long)
            found.append(Part(f"peer {peer}", command, 90))
    found += [_script(npz, m, toy) for m in sizes]
    command = _peers("torch", TORCH_PEERS, "batch", sizes, long)
    found.append(Part("peers in torch", command, 70))
    found += [ours["none"], Part("grid", _ours("grid"), 45), Part("profile", _ours("profile"), 25)]
    found.append(Part("auto", _ours("auto"), 70))
    if not toy:
        found.append(_script(npz, 128, toy, workers=8))
    if not toy:
        for norm in ("none", "batch"):
            sizes = BATCH_SIZES if norm == "none" else (8,)
            peer = "grouped-graph" if norm == "none" else "vmap-compile"
            command = _peers("torch", (peer,), norm, sizes, long)
            found.append(Part(f"peer {peer} {norm}", command, 120))
    return found


def _script(npz: Path, m: int, toy: bool, workers: int = 0) -> Part:
    """The plain PyTorch script, with so many processes that load images."""
    command = ("src/smallbatch/speed/bench/textbook.py", "--data", str(npz), "--norm", "batch")
    command += ("--batch-size", str(m), "--num-workers", str(workers))
    command += ("--seconds", "0.1" if toy else "1.5", "--warm-up", "3" if toy else "20")
    way = f"script, {workers} loader workers" if workers else "script"
    tags = {"way": way, "norm": "batch", "m": m, "lanes": 1}
    return Part(f"script {m}" + (" with workers" if workers else ""), command, 30, tags)


def _ours(*arguments: str) -> tuple[str, ...]:
    return ("-m", "benchmarks.gpu.ours", *arguments)


def _peers(
    framework: str, peers: Iterable[str], norm: str, sizes: Iterable[int], seconds: float
) -> tuple[str, ...]:
    return (
        "-m", f"benchmarks.gpu.peers_{framework}", "--peer", *peers, "--norm", norm,
        "--lanes", str(LANES[norm]), "--m", *map(str, sizes), "--seconds", str(seconds),
    )  # fmt: skip
