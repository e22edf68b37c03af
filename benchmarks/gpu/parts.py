"""What is measured on a GPU, in which order: parts, each a process with a time limit of its own."""

from __future__ import annotations

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
JAX_PEERS = ("jax-vmap", "jax-einsum", "jax-einsum-x3")


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
    """Parts in which nothing is timed: checks, and all that must be compiled."""
    found = [
        Part(f"check {model} {norm}", _ours("check", model, norm), 100)
        for model, norm in (CASES[:2] if toy else CASES)
    ]
    found.append(Part("check itself", _ours("itself"), 100))
    # On small noise, where float32 keeps its digits for 20 updates; see `peers_task.LIMIT`.
    check = ("--check", "--toy")
    found += [
        Part(f"check {peer}", (*_peer("torch", peer, "batch", [8], 0), *check), 100)
        for peer in TORCH_PEERS
    ]
    if toy:
        return found
    for norm in LANES:
        found += [
            Part(f"compile {norm} {m}", _ours("speed", norm, str(m), "0.01"), 100, kept=False)
            for m in BATCH_SIZES
        ]
    for peer in JAX_PEERS:
        found.append(Part(f"check {peer}", (*_peer("jax", peer, "batch", [8], 0), *check), 150))
        found += [
            Part(f"compile {peer} {m}", _peer("jax", peer, "batch", [m], 0.01), 150, kept=False)
            for m in BATCH_SIZES
        ]
    return found


def one_by_one(toy: bool, npz: Path) -> list[Part]:
    """Parts that are timed and so have the machine to themselves, most informative first."""
    sizes = (2, 8) if toy else BATCH_SIZES
    some = [str(m) for m in sizes]
    long = "0.02" if toy else "0.6"
    found = [Part("hardware", _ours("hardware"), 20)]
    found += [Part(f"stacked {norm}", _ours("speed", norm, *some, long), 30) for norm in LANES]
    for m in sizes:
        command = ("src/smallbatch/bench/textbook.py", "--data", str(npz), "--batch-size", str(m))
        command += ("--seconds", "0.1" if toy else "2", "--warm-up", "3" if toy else "20")
        for norm in ("batch",) if toy else LANES:
            tags = {"way": "script", "norm": norm, "m": m, "lanes": 1}
            found.append(Part(f"script {norm} {m}", (*command, "--norm", norm), 30, tags))
        if m >= 32:
            tags = {"way": "script, 8 loader workers", "norm": "batch", "m": m, "lanes": 1}
            more = (*command, "--norm", "batch", "--num-workers", "8")
            found.append(Part(f"script with workers {m}", more, 30, tags))
    found += [
        Part(f"peer {peer}", _peer("torch", peer, "batch", sizes, float(long)), 40)
        for peer in TORCH_PEERS
    ]
    if not toy:
        found += [
            Part(f"peer {peer} {m}", _peer("jax", peer, "batch", [m], float(long)), 40)
            for peer in JAX_PEERS
            for m in sizes
        ]
        found.append(
            Part("peer grouped-graph none", _peer("torch", "grouped-graph", "none", sizes, 0.5), 30)
        )
    found.append(Part("profile", _ours("profile"), 25))
    found.append(Part("grid", _ours("grid"), 40))
    found.append(Part("columns", _ours("columns"), 40))
    if not toy:
        found.append(
            Part("peer vmap-compile", _peer("torch", "vmap-compile", "batch", (8,), 0.5), 120)
        )
    return found


def _ours(*arguments: str) -> tuple[str, ...]:
    return ("-m", "benchmarks.gpu.ours", *arguments)


def _peer(framework: str, peer: str, norm: str, sizes: Any, seconds: float) -> tuple[str, ...]:
    return (
        "-m", f"benchmarks.gpu.peers_{framework}", "--peer", peer, "--norm", norm,
        "--lanes", str(LANES[norm]), "--m", *map(str, sizes), "--seconds", str(seconds),
    )  # fmt: skip
