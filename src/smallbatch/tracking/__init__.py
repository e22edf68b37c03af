"""Result files ⇄ MLflow.

The files that a column leaves under `models/` are the truth; MLflow is an idempotent mirror of
them. `sync` replays files, `LiveMirror` shows a column while it trains, `ui` serves the default
database. Nothing here imports mlflow before it is used, and training never needs it.
"""

from smallbatch.tracking.live import LiveMirror
from smallbatch.tracking.mirror import SyncReport
from smallbatch.tracking.records import ColumnInfo, RunInfo
from smallbatch.tracking.sync import sync
from smallbatch.tracking.ui import ui

__all__ = ["ColumnInfo", "LiveMirror", "RunInfo", "SyncReport", "sync", "ui"]
