"""Another user of this machine, and what they may plant: for real processes of two users."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

NOBODY = 65534

needs_two_users = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@contextmanager
def common_folder() -> Generator[Path]:
    """A folder that all users may write, as /tmp is; those of pytest are closed to others."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o1777)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def as_nobody(script: str, folder: Path) -> None:
    """Run a shell script as a user without rights."""
    subprocess.run(
        ["/bin/sh", "-euc", script],
        cwd=folder,
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        env={"PATH": os.environ["PATH"], "TMPDIR": str(folder)},
        check=True,
    )
