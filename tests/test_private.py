"""What is planted where our own files lie is never used."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from smallbatch import private


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_folder_is_for_its_user_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        made = private.make_folder(tmp_path / "a/cache")
    finally:
        os.umask(before)
    assert mode(made) == mode(made.parent) == 0o700


def test_a_loose_folder_of_our_own_is_tightened(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    private.make_folder(tmp_path)
    assert mode(tmp_path) == 0o755


def test_a_folder_below_one_that_all_may_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(private.Untrusted, match="other users may write"):
        private.make_folder(tmp_path / "cache")
    tmp_path.chmod(0o1777)  # as /tmp is
    private.make_folder(tmp_path / "cache")


def _link(path: Path) -> None:
    target = path.with_name("victim")
    target.write_text("kept")
    path.symlink_to(target)


def _dangling(path: Path) -> None:
    path.symlink_to(path.with_name("nothing"))


def _hard_link(path: Path) -> None:
    target = path.with_name("victim")
    target.write_text("kept")
    path.hardlink_to(target)


def _writable(path: Path) -> None:
    path.write_text("planted")
    path.chmod(0o666)


PLANTED: list[Callable[[Path], None]] = [
    _link,
    _dangling,
    _hard_link,
    _writable,
    os.mkfifo,
    os.mkdir,
]


@pytest.mark.parametrize("plant", PLANTED)
def test_what_is_planted_is_neither_read_nor_locked(
    tmp_path: Path, plant: Callable[[Path], None]
) -> None:
    path = tmp_path / "file"
    plant(path)
    with pytest.raises(private.Untrusted):
        private.read(path)
    with pytest.raises(private.Untrusted), private.locked(path, wait=0):
        pass
    victim = tmp_path / "victim"
    assert not victim.exists() or victim.read_text() == "kept"
    assert not (tmp_path / "nothing").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_what_another_user_owns_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "file").write_text("planted")
    os.chown(folder / "file", 65534, 65534)
    with pytest.raises(private.Untrusted, match="another user"):
        private.read(folder / "file")
    with (
        pytest.raises(private.Untrusted, match="another user"),
        private.locked(folder / "file", wait=0),
    ):
        pass
    os.chown(folder, 65534, 65534)
    with pytest.raises(private.Untrusted, match="another user"):
        private.make_folder(folder)
    with pytest.raises(private.Untrusted, match="another user"):
        private.make_folder(folder / "below")


def test_own_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"own")
    assert private.read(tmp_path / "file") == b"own"
    with pytest.raises(FileNotFoundError):
        private.read(tmp_path / "none")


def test_a_lock_keeps_others_out_for_as_long_as_they_wait(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    other = "import sys; from pathlib import Path; from smallbatch import private\n"
    other += "with private.locked(Path(sys.argv[1]), wait=0.1): print('in')"

    def attempt() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", other, str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    with private.locked(path, wait=0):
        assert "TimeoutError" in attempt().stderr
    assert attempt().stdout == "in\n"
    assert mode(path) == 0o600


def test_a_scratch_folder_is_private_and_goes_with_its_process() -> None:
    code = "from smallbatch import private; print(private.scratch_folder())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not Path(done.stdout.strip()).exists()
    folder = private.scratch_folder()
    assert folder == private.scratch_folder()
    assert mode(folder) == 0o700
