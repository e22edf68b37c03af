"""Kernels run in Triton's interpreter where there is no GPU; it must be told before any import."""

import os
from pathlib import Path

if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
