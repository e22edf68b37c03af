"""Does changed code of the engines still give the same bits? Compared with earlier commits.

    python -m benchmarks.same_numbers COMMIT [COMMIT ...]     # about two minutes each

Both codes train the same runs with plain SGD by both engines, with and without the native kernels;
weights and histories are compared byte for byte. If all are equal, the digests of the earlier code
go into `src/smallbatch/engines/same_numbers.json`, and `dvc repro` takes over what it trained. A
processor is what this was run on; the arithmetic must be seen to be the same in the change as well.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILE = ROOT / "src/smallbatch/engines/same_numbers.json"
ENGINES = ("loop", "stacked")
PARAMS = """
dataset: {{name: digits, source: digits, subset: 300, test_subset: 100, validation_fraction: 0.2}}
grid:
  studies: [{studies}]
  dependent: []
  batch_sizes: [{batch_sizes}]
  base_lrs: [2^-9, 2^-6, 2^4]
  seeds: 2
studies:
  none: {{model: resnet8, norm: none, epochs: 4, weight_decay: 0.001, warmup: 0.1, augment: true}}
  batch: {{model: resnet8, norm: batch, epochs: 4, weight_decay: 0.001}}
  ghost: {{model: resnet8, norm: ghost, bn_batch_size: 4, epochs: 4, weight_decay: 0.001}}
  group: {{model: resnet20, norm: group, epochs: 2, weight_decay: 0.0}}
  conv: {{model: alexnet, norm: batch_conv, epochs: 2, weight_decay: 0.0005}}
  timm: {{model: resnet10t, norm: batch, epochs: 1, weight_decay: 0.001}}
compute: {{device: cpu, engine: {engine}, workers: 2}}
"""
# Studies and batch sizes: timm's model is slow, and ghost batch norm needs m above its sub-batch.
GRIDS = (
    (("none", "group"), (1, 7, 32)),
    (("batch", "conv"), (7, 32, 128)),
    (("ghost",), (8, 32)),
    (("timm",), (16,)),
)
# All commands in one process, without MLflow's, which would take most of the time.
COMMANDS = """
import json, sys
from click.testing import CliRunner
from smallbatch import tracking
from smallbatch.cli.main import main
class Silent:
    def __getattr__(self, name):
        return lambda *_, **__: None
tracking.LiveMirror = Silent
for words in json.loads(sys.argv[1]):
    done = CliRunner().invoke(main, words)
    if done.exit_code:
        sys.exit(f"{words}: {done.output} {done.exception!r}")
"""
NO_COMPILER = {"CXX": "/nonexistent"}


def trained(code: Path, work: Path, engine: str, environment: dict[str, str]) -> dict[str, str]:
    """Digests of weights and histories by their paths, of every grid."""
    found: dict[str, str] = {}
    for i, (studies, sizes) in enumerate(GRIDS):
        folder = work / str(i)
        folder.mkdir(parents=True)
        names, numbers = ", ".join(studies), ", ".join(map(str, sizes))
        text = PARAMS.format(studies=names, batch_sizes=numbers, engine=engine)
        (folder / "params.yaml").write_text(text)
        columns = [["train", study, str(m)] for study in studies for m in sizes]
        subprocess.run(
            [sys.executable, "-P", "-c", COMMANDS, json.dumps([["prepare"], *columns])],
            cwd=folder,
            env={**os.environ, **environment, "PYTHONPATH": str(code / "src")},
            check=True,
        )
        for name in ("weights.safetensors", "history.parquet"):
            for path in sorted(folder.glob(f"models/*/*/*/{name}")):
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                found[str(path.relative_to(work))] = digest
    return found


def code_digest(code: Path, engine: str) -> str:
    """The digest of an engine's code, as that code gives it."""
    script = f"from smallbatch.engines.made_by import code_digest; print(code_digest({engine!r}))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        env={**os.environ, "PYTHONPATH": str(code / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def main() -> int:
    """Compare, and write the file if all is equal; the exit status says whether it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commits", nargs="+", metavar="COMMIT")
    commits = parser.parse_args().commits
    entries = {name: {"now": code_digest(ROOT, name), "earlier": list[str]()} for name in ENGINES}
    same = True
    with tempfile.TemporaryDirectory(prefix="smallbatch-") as scratch:
        ways = [
            (engine, name, environment)
            for engine in ENGINES
            for name, environment in (("", {}), (" without a compiler", NO_COMPILER))
            if engine == "stacked" or not environment
        ]
        present = {
            (engine, name): trained(
                ROOT, Path(scratch) / f"now {engine}{name}", engine, environment
            )
            for engine, name, environment in ways
        }
        for commit in commits:
            code = Path(scratch) / commit
            subprocess.run(["git", "worktree", "add", "-q", "--detach", str(code), commit],
                           cwd=ROOT, check=True)  # fmt: skip
            try:
                for engine, name, environment in ways:
                    work = Path(scratch) / f"{commit} {engine}{name}"
                    before, now = trained(code, work, engine, environment), present[engine, name]
                    other = sorted(path for path in {*before, *now}
                                   if before.get(path) != now.get(path))  # fmt: skip
                    print(f"{commit} {engine}{name}: {len(now)} files, {len(other)} differ", *other)
                    same &= bool(now) and not other
                for engine in ENGINES:
                    digest, entry = code_digest(code, engine), entries[engine]
                    if digest not in (entry["now"], *entry["earlier"]):
                        entry["earlier"].append(digest)
            finally:
                subprocess.run(["git", "worktree", "remove", "--force", str(code)],
                               cwd=ROOT, check=True)  # fmt: skip
    if same:
        FILE.write_text(json.dumps(entries, indent=1) + "\n")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
