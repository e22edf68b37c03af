"""What all tests share; read before anything is imported."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

# What this machine learnt elsewhere must not decide what a test does; sub-processes inherit it.
os.environ["SMALLBATCH_CACHE"] = tempfile.mkdtemp(prefix="smallbatch-test-cache-")

# Without a GPU, Triton's kernels run in its interpreter.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
