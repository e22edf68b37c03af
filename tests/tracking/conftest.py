"""Synthetic columns, a clean working directory, a real tracking server, and MLflow's tables."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from contextlib import closing, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from tests.database import empty_database

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

FINGERPRINT = "0123456789abcdef" * 4
SHAPE = (1, 8, 8)


@dataclass(frozen=True)
class Columns:
    """Writes columns below a directory as training would."""

    root: Path

    def write(
        self,
        batch_size: int = 8,
        *,
        study: str = "study",
        base_lrs: tuple[float, ...] = (2.0**-6, 2.0**-3),
        seeds: int = 2,
        epochs: int = 6,
        diverged: tuple[float, ...] = (),
        timing: bool = True,
        single_seed: int | None = None,
        figure: str | None = "2",
        salt: int = 0,
        weights: Mapping[str, np.ndarray[Any, Any]] | None = None,
    ) -> Path:
        directory = self.root / "digits" / study / f"m{batch_size}"
        kept_seeds = range(seeds)
        if single_seed is not None:  # outside the pipeline: one run, a directory of its own
            directory, kept_seeds = (
                directory / f"seed{single_seed}",
                range(single_seed, single_seed + 1),
            )
        directory.mkdir(parents=True, exist_ok=True)
        runs: list[dict[str, Any]] = []
        rows: list[dict[str, Any]] = []
        for base_lr in base_lrs:
            for seed in kept_seeds:
                run = sha256(f"{study} {batch_size} {base_lr} {seed}".encode()).hexdigest()[:16]
                over = base_lr in diverged
                own = _rows(epochs, batch_size, base_lr, seed, diverged=over, salt=salt)
                rows += [{"run": run, "study": study, "seed": seed, **row} for row in own]
                runs.append(_entry(run, base_lr, seed, own, batch_size, over))
        channels, height, width = SHAPE
        dataset: dict[str, Any] = {"name": "digits", "source": "digits", "fingerprint": FINGERPRINT}
        dataset |= {"channels": channels, "height": height, "width": width}
        dataset |= {"mean": [0.3], "std": [0.2], "classes": list("0123456789")}
        dataset |= {"counts": {"train": 800, "validation": 0, "test": 200}}
        document = {
            "protocol": 1,
            "dataset": dataset,
            "study": study,
            "batch_size": batch_size,
            "settings": {**_settings(epochs), "figure": figure},
            "runs": runs,
        }
        frame = pd.DataFrame(rows)
        frame.to_parquet(directory / "history.parquet", index=False)
        (directory / "runs.json").write_text(json.dumps(document))
        kept = {"stand_in": np.arange(3, dtype=np.float32)} if weights is None else weights
        alive = [run["run"] for run in runs if run["outcome"] == "finished"]
        save_file(
            {f"{run}/{key}": np.array(value) for run in alive for key, value in kept.items()},
            directory / "weights.safetensors",
        )
        (directory / "timing.json").unlink(missing_ok=True)
        if timing:
            clocks = _timing([run["run"] for run in runs])
            stage = None if single_seed is not None else f"train@{study}-{batch_size}"
            clocks["column"]["stage"] = stage
            (directory / "timing.json").write_text(json.dumps(clocks))
        return directory


def _settings(epochs: int) -> dict[str, Any]:
    return {
        "model": "resnet8",
        "norm": "none",
        "bn_batch_size": None,
        "augment": False,
        "epochs": epochs,
        "weight_decay": 1e-4,
        "milestones": [0.5, 0.75],
        "lr_decay": 0.1,
        "warmup": 0.0,
        "precision": "float32",
    }


def _rows(
    epochs: int, batch_size: int, base_lr: float, seed: int, *, diverged: bool, salt: int
) -> list[dict[str, Any]]:
    rng = np.random.default_rng([batch_size, int(1 / base_lr), seed, salt])
    rows: list[dict[str, Any]] = []
    for epoch in range(1, (epochs // 2 if diverged else epochs) + 1):
        a, b, c, d = rng.random(4).tolist()
        rows.append(
            {
                "batch_size": batch_size,
                "base_lr": base_lr,
                "epoch": epoch,
                "updates": epoch * 100,
                "lr": batch_size * base_lr,
                "train_loss": a,
                "train_accuracy": b,
                "validation_loss": float("nan"),
                "validation_accuracy": float("nan"),
                "test_loss": c,
                "test_accuracy": d,
                "outcome": "diverged" if diverged else "finished",
            }
        )
    if diverged:
        rows[-1] |= {"updates": 251, "train_loss": float("inf"), "train_accuracy": float("nan")}
        rows[-1] |= {"test_loss": float("nan"), "test_accuracy": float("nan")}
    return rows


def _entry(
    run: str, base_lr: float, seed: int, rows: list[dict[str, Any]], batch_size: int, over: bool
) -> dict[str, Any]:
    final = {
        "train_loss": 0.5,
        "train_accuracy": 0.75,
        "test_loss": rows[-1]["test_loss"],
        "test_accuracy": rows[-1]["test_accuracy"],
        "population_test_accuracy": None,
    }
    return {
        "run": run,
        "base_lr": base_lr,
        "lr": batch_size * base_lr,
        "seed": seed,
        "outcome": "diverged" if over else "finished",
        "diverged_at": 251 if over else None,
        "updates": 600 if over else rows[-1]["updates"],
        "parameters": 75290,
        "final": dict.fromkeys(final) if over else final,
    }


def _timing(runs: list[str]) -> dict[str, Any]:
    return {
        "environment": {
            "cpu": "a CPU",
            "gpu": None,
            "torch": "2.14.1",
            "git_commit": "c0ffee",
            "git_dirty": True,
        },
        "column": {
            "started": "2026-01-02T03:04:05+00:00",
            "seconds": 60.0,
            "images_per_second": 1234.5,
            "engine": "loop",
            "device": "cpu",
        },
        "runs": {
            run: {"started": f"2026-01-02T03:04:{5 + i:02d}+00:00", "seconds": 12.0}
            for i, run in enumerate(runs)
        },
    }


@pytest.fixture
def columns(tmp_path: Path) -> Columns:
    return Columns(tmp_path / "models")


@pytest.fixture(scope="session")
def initialised_database() -> Path:
    """An initialised database without runs."""
    return empty_database()


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, initialised_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with nothing but an empty database, and no tracking URI."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(initialised_database, tmp_path / "mlflow.db")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    # Set here so that the values which opening a store leaves behind are undone.
    for key, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    }.items():
        monkeypatch.setenv(key, value)
    return tmp_path


class Tables:
    """MLflow's sqlite tables, read without MLflow."""

    def __init__(self, database: Path):
        self.database = database

    def of(self, database: Path) -> Tables:
        """The same of another database."""
        return Tables(database)

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.database)) as connection:
            return connection.execute(statement).fetchall()

    def points(self) -> list[tuple[str, str, int, float]]:
        """(run hash, metric, step, value) of all live runs but parents, every stored row once."""
        return self.query(
            "select t.value, m.key, m.step, m.value from metrics m join tags t "
            "on t.run_uuid = m.run_uuid and t.key = 'smallbatch.run' "
            "join runs r on r.run_uuid = m.run_uuid and r.lifecycle_stage = 'active'"
        )

    def content(self) -> dict[str, list[tuple[Any, ...]]]:
        """All rows of all tables in which a replay could leave a trace."""
        names = ("experiments", "runs", "params", "metrics", "latest_metrics", "tags")
        names += ("inputs", "datasets", "logged_models", "logged_model_tags")
        return {name: sorted(map(repr, self.query(f"select * from {name}"))) for name in names}  # type: ignore[misc]


@pytest.fixture
def tables(workplace: Path) -> Tables:
    return Tables(workplace / "mlflow.db")


@pytest.fixture
def expected_points() -> Callable[[Path], list[tuple[str, str, int, float]]]:
    """The points that a column directory implies, read independently with pandas."""

    def expect(directory: Path) -> list[tuple[str, str, int, float]]:
        history = pd.read_parquet(directory / "history.parquet")
        names = ["train_loss", "train_accuracy", "validation_loss", "validation_accuracy"]
        names += ["test_loss", "test_accuracy", "lr"]
        long = history.melt(["run", "epoch"], names, "key", "value").astype({"value": float})
        long = long[np.isfinite(long["value"])]
        points = list(
            zip(long["run"], long["key"], long["epoch"].astype(int), long["value"], strict=True)
        )
        for run in json.loads((directory / "runs.json").read_text())["runs"]:
            own = history[history["run"] == run["run"]].sort_values("epoch")
            last = int(own["epoch"].max())
            points.append((run["run"], "batch_size", 0, float(own["batch_size"].iloc[0])))
            points.append((run["run"], "log2_base_lr", 0, float(np.log2(run["base_lr"]))))
            points.append((run["run"], "diverged", last, float(run["outcome"] == "diverged")))
            if run["outcome"] == "finished":
                points.append((run["run"], "final_train_accuracy", last, 0.75))
                kept = min(max(len(own) // 8, 1), 5)
                median = float(np.median(own["test_accuracy"].to_numpy()[-kept:]))
                points.append((run["run"], "reported_accuracy", last, median))
        return sorted(points)

    return expect


@dataclass
class Server:
    """A running `mlflow server`."""

    uri: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def start_server(tmp_path: Path, initialised_database: Path) -> Generator[Callable[[str], Server]]:
    """Starts real MLflow servers on loopback, each on its own database, which has its tables."""
    servers: list[Server] = []

    def start(name: str) -> Server:
        port = free_port()
        shutil.copy(initialised_database, tmp_path / f"{name}.db")
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{tmp_path / name}.db"]
        command += ["--artifacts-destination", str(tmp_path / f"{name}-artifacts")]
        log = (tmp_path / f"{name}.log").open("wb")
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            start_new_session=True,  # the server's workers outlive it unless killed as a group
        )
        log.close()
        server = Server(f"http://127.0.0.1:{port}", process)
        servers.append(server)
        wait_for(f"{server.uri}/health")
        return server

    yield start
    for server in servers:
        with suppress(ProcessLookupError):
            server.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
