"""What is planted where our own files lie is never used."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from smallbatch import durable, private
from smallbatch.errors import UserError
from tests.users import NOBODY, as_nobody, common_folder, needs_two_users


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


@needs_two_users
def test_a_folder_below_one_that_another_group_may_write_is_refused(tmp_path: Path) -> None:
    """Its members could exchange the folder once it has been looked at."""
    os.chown(tmp_path, 0, NOBODY)
    tmp_path.chmod(0o775)
    with pytest.raises(private.Untrusted, match="other users may write"):
        private.make_folder(tmp_path / "cache")
    tmp_path.chmod(0o1775)
    private.make_folder(tmp_path / "cache")
    os.chown(tmp_path, 0, 0)
    tmp_path.chmod(0o775)
    private.make_folder(tmp_path / "cache")


USER = 1234


@needs_two_users
@pytest.mark.parametrize(
    ("primary", "members", "allowed"),
    [
        ({"me": USER}, [], True),
        ({"me": USER}, ["me", "root"], True),
        ({"me": USER, "other": 5}, [], True),
        ({}, [], True),  # as in a container
        ({"me": USER}, ["me", "other"], False),
        ({"me": USER, "other": USER}, [], False),
        ({"me": 100}, [], False),  # the group is not one's own
    ],
)
def test_umask_002_is_safe_where_each_user_has_a_group(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    primary: dict[str, int],
    members: list[str],
    allowed: bool,
) -> None:
    uids = {"root": 0, "me": USER, "other": 5}
    users = [
        SimpleNamespace(pw_name=name, pw_uid=uids[name], pw_gid=gid)
        for name, gid in {"root": 0, **primary}.items()
    ]
    monkeypatch.setattr(private.pwd, "getpwall", lambda: users)
    monkeypatch.setattr(private.pwd, "getpwuid", lambda uid: {it.pw_uid: it for it in users}[uid])
    group = {USER: SimpleNamespace(gr_mem=members)} if members else {}
    monkeypatch.setattr(private.grp, "getgrgid", group.__getitem__)
    monkeypatch.setattr(private.os, "geteuid", lambda: USER)
    monkeypatch.setattr(private.os, "getegid", lambda: USER)
    cache = tmp_path / "home/cache"
    cache.mkdir(parents=True)
    for folder in (cache, cache.parent):
        os.chown(folder, USER, USER)
        folder.chmod(0o775)
    private._is_own_group.cache_clear()
    try:
        if allowed:
            assert private.make_folder(cache) == cache
        else:
            with pytest.raises(private.Untrusted, match="other users may write the folder"):
                private.make_folder(cache)
    finally:
        private._is_own_group.cache_clear()


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


@pytest.mark.parametrize("plant", [plant for plant in PLANTED if plant is not os.mkdir])
def test_what_is_planted_is_replaced_by_what_is_written(
    tmp_path: Path, plant: Callable[[Path], None]
) -> None:
    path = tmp_path / "file"
    plant(path)
    durable.write(path, b"own", mode=0o600)
    assert private.read(path) == b"own"
    assert mode(path) == 0o600
    victim = tmp_path / "victim"
    assert not victim.exists() or victim.read_text() == "kept"
    assert {entry.name for entry in tmp_path.iterdir()} <= {"file", "victim"}


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError):
        durable.write(tmp_path / "file", b"own", mode=0o600)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("plant", [_link, _dangling, os.mkfifo, os.mkdir])
def test_in_a_project_links_and_what_is_no_file_are_refused(
    tmp_path: Path, plant: Callable[[Path], None]
) -> None:
    path = tmp_path / "file"
    plant(path)
    with pytest.raises(private.Untrusted, match="no regular file"):
        private.read_shared(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_in_a_project_files_of_its_owner_and_group_are_read_and_of_others_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"theirs")
    path.chmod(0o664)
    assert private.read_shared(path) == b"theirs"
    os.chown(path, 65534, 65534)
    with pytest.raises(private.Untrusted, match="another user"):
        private.read_shared(path)
    os.chown(tmp_path, 65534, 65534)
    monkeypatch.chdir(tmp_path)
    assert private.read_shared(path) == b"theirs"


@pytest.mark.parametrize(("folder", "lock"), [(0o755, 0o600), (0o775, 0o660), (0o700, 0o600)])
def test_a_lock_in_a_project_is_for_those_who_may_write_its_folder(
    tmp_path: Path, folder: int, lock: int
) -> None:
    tmp_path.chmod(folder)
    os.close(private.open_lock(tmp_path / "lock"))
    assert mode(tmp_path / "lock") == lock
    (tmp_path / "lock").chmod(0o664)  # as it may have been made before
    os.close(private.open_lock(tmp_path / "lock"))
    assert mode(tmp_path / "lock") == lock


@needs_two_users
def test_a_lock_is_not_for_a_group_that_its_folder_is_not_of(tmp_path: Path) -> None:
    os.chown(tmp_path, -1, NOBODY)
    tmp_path.chmod(0o775)
    os.close(private.open_lock(tmp_path / "lock"))
    assert mode(tmp_path / "lock") == 0o600


@needs_two_users
def test_a_folder_and_locks_that_another_user_made_are_refused_at_once(tmp_path: Path) -> None:
    with common_folder() as folder:
        victim = folder / "victim"
        victim.write_text("kept")
        as_nobody(
            "mkdir cache; ln -s ../victim cache/link; : > cache/held; chmod 777 cache/held cache\n"
            "(flock 9; : > locked; exec sleep 6) 9< cache/held > /dev/null 2>&1 &\n"
            "while ! [ -e locked ]; do sleep 0.05; done",
            folder,
        )
        began = time.monotonic()
        with pytest.raises(private.Untrusted, match="another user"):
            private.make_folder(folder / "cache")
        for name in ("link", "held"):
            with pytest.raises(private.Untrusted), private.locked(folder / "cache" / name, wait=9):
                pass
        assert time.monotonic() - began < 5
        assert victim.read_text() == "kept"


@needs_two_users
def test_a_link_that_another_user_planted_is_not_followed() -> None:
    with common_folder() as folder:
        folder.chmod(0o777)
        own = folder.parent / f"{folder.name}-own"
        own.mkdir()
        own.chmod(0o770)
        try:
            as_nobody(f"ln -s {own} cache", folder)
            for path in (folder / "cache", folder / "cache/deeper"):
                with pytest.raises(private.Untrusted, match="link of another user"):
                    private.make_folder(path)
            assert (mode(own), list(own.iterdir())) == (0o770, [])
            (folder / "own").symlink_to(own)  # which others could exchange
            with pytest.raises(private.Untrusted, match="other users may write"):
                private.make_folder(folder / "own")
        finally:
            own.rmdir()


def test_links_of_this_user_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real/deep").mkdir(parents=True)
    (tmp_path / "one").symlink_to("real")
    (tmp_path / "two").symlink_to(tmp_path / "one/deep/..")
    assert private.make_folder(tmp_path / "two/cache") == tmp_path / "real/cache"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        private.make_folder(tmp_path / "loop/cache")


@needs_two_users
def test_results_are_not_written_through_links_of_others(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "models"
    link.symlink_to("elsewhere")
    private.refuse_links_of_others(link / "a/m4", tmp_path / "absent/x")
    os.chown(link, NOBODY, NOBODY, follow_symlinks=False)
    (tmp_path / "own").symlink_to("models")
    for path in (link, link / "a/m4", tmp_path / "own/a"):
        with pytest.raises(UserError, match=r"models: a link that another user made, to elsewhere"):
            private.refuse_links_of_others(path)
