"""Result files ⇄ MLflow.

The result files of a column under `models/` are authoritative, and MLflow mirrors them. `sync`
writes them to MLflow, and doing so again changes nothing. `LiveMirror` shows a column while it
trains, and `ui` serves the default database. Training never needs mlflow, which is imported only
when it is used.
"""

from smallbatch.tracking.live import LiveMirror
from smallbatch.tracking.mirror import SyncReport
from smallbatch.tracking.records import ColumnInfo, RunInfo
from smallbatch.tracking.sync import sync
from smallbatch.tracking.ui import ui

__all__ = ["ColumnInfo", "LiveMirror", "RunInfo", "SyncReport", "sync", "ui"]
