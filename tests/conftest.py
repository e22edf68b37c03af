"""What all tests share."""

from __future__ import annotations

import os
import tempfile

# What this machine learnt elsewhere must not decide what a test does; sub-processes inherit it.
os.environ["SMALLBATCH_CACHE"] = tempfile.mkdtemp(prefix="smallbatch-test-cache-")
