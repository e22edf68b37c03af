"""Stands in for the worker of a column, in processes that would be one: it trains nothing.

Python imports it at its start, where this folder is on PYTHONPATH. It leaves a state, events and
results as a worker does, of a column with few weights.
"""

import json
import os
import sys
from pathlib import Path

if "smallbatch.pipeline.cluster.ray.mortal" in sys.orig_argv:
    file = Path(sys.orig_argv[-1])
    task = json.loads(file.read_text())
    state = {"number": task["number"], "attempt": 1, "status": "running", "node": "stand-in",
             "runs_done": 1, "share": 1.0}  # fmt: skip
    (file.parent / "state.json").write_text(json.dumps(state))
    (file.parent / "events.jsonl").write_text('{"kind": "begin"}\n' * 3)
    folder = Path("models", task["dataset"], task["study"], f"m{task['batch_size']}")
    for path, size in ((folder / "weights.safetensors", 2**16), (folder / "runs.json", 2**11)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    os._exit(0)
