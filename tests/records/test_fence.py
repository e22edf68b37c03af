"""Attempts at a column: who comes later takes all over, and who came before has nothing left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from smallbatch import private
from smallbatch.errors import TakenOver, UserError
from smallbatch.records import lock as locks
from smallbatch.records.columns import find_columns
from smallbatch.records.fence import Fence, column_key, plain, raise_fence, withdraw
from smallbatch.records.files import _replace_folder
from smallbatch.records.lock import one_writer
from tests.users import NOBODY, needs_two_users

COLUMN = Path("models/m4")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work").mkdir()
    (tmp_path / "models").mkdir()
    return Path("work")


def keep(fence: Fence, text: str) -> None:
    assert fence.folder is not None
    (fence.folder / "kept").write_text(text)


def kept(fence: Fence) -> str | None:
    assert fence.folder is not None
    path = fence.folder / "kept"
    return path.read_text() if path.exists() else None


def test_who_comes_later_has_what_was_kept_and_who_came_before_has_nothing(work: Path) -> None:
    first = raise_fence(work, COLUMN, 1, "ffffffff")
    keep(first, "by the first")
    second = raise_fence(work, COLUMN, 2, "00000000")
    assert kept(second) == "by the first"
    second.check()
    gone = "models/m4: attempt 2 has taken over; leaving it to them"
    for _ in range(2):
        with pytest.raises(TakenOver, match=gone):
            first.check()
        with pytest.raises(TakenOver, match=gone), first.writing():
            pass
    with pytest.raises(FileNotFoundError):
        first.make(work / f"{column_key(work, COLUMN)}.1-ffffffff.checkpoints" / "version")
    second.clear()
    with pytest.raises(TakenOver, match="is gone; leaving the column"):
        second.check()
    assert list(work.iterdir()) == []


def test_an_error_that_is_not_of_a_takeover_is_told_as_it_is(work: Path) -> None:
    fence = raise_fence(work, COLUMN, 1, "ffffffff")
    with pytest.raises(FileNotFoundError), fence.writing():
        (work / "nothing").read_bytes()


@pytest.mark.parametrize("mine", [(1, "ffffffff"), (2, "00000000")])
def test_who_wakes_before_it_has_a_folder_takes_nothing(work: Path, mine: tuple[int, str]) -> None:
    """Of two of one number, either may be the later one, but never both."""
    later = raise_fence(work, COLUMN, 2, "11111111")
    keep(later, "by the later one")
    with pytest.raises(TakenOver, match="attempt 2 has taken over"):
        raise_fence(work, COLUMN, *mine)
    later.check()
    assert kept(later) == "by the later one"


def test_of_two_that_make_their_folders_at_once_the_later_one_goes_on(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir, others = Path.mkdir, list[Fence]()

    def late(path: Path) -> None:
        monkeypatch.setattr(Path, "mkdir", mkdir)
        others.append(raise_fence(work, COLUMN, 2, "11111111"))  # while the first was paused
        path.mkdir()

    monkeypatch.setattr(Path, "mkdir", late)
    with pytest.raises(TakenOver, match="attempt 2 has taken over"):
        raise_fence(work, COLUMN, 1, "00000000")
    (later,) = others
    later.check()


@pytest.mark.parametrize(
    "said",
    ['{"attempt": 4}', "", '{"attempt": true, "token": 3}', "[[", '{"attempt": -7}',
     '{"attempt": 1e99}', '{"attempt": "9"}'],
)  # fmt: skip
def test_attempts_grow_whatever_the_lock_file_says(work: Path, said: str) -> None:
    path = work / f"{column_key(work, COLUMN)}.lock"
    path.write_text(said)
    with one_writer(work, COLUMN) as lock:
        begun = lock.attempt
        assert begun == (5 if "4" in said else 2 if "true" in said else 1)
        keep(lock.fence, "x")
    with one_writer(work, COLUMN) as lock:
        assert lock.attempt == begun + 1
    path.write_text("damaged")
    with one_writer(work, COLUMN) as lock:
        assert lock.attempt == begun + 2
        assert kept(lock.fence) == "x"
        lock.fence.clear()
    with one_writer(work, COLUMN) as lock:  # though the column is whole
        assert lock.attempt == begun + 3
    assert [it.name for it in work.iterdir()] == [path.name]


def test_who_lost_the_lock_does_not_give_it_back(work: Path) -> None:
    with one_writer(work, COLUMN) as lock:
        theirs = '{"token": "theirs", "pid": 1, "host": "h", "boot": "b", "attempt": 7}'
        lock.path.write_text(theirs)
    assert lock.path.read_text() == theirs


def test_earlier_results_come_back_if_their_writer_ended_between_two_renames(work: Path) -> None:
    _replace_folder(COLUMN, {"runs.json": b"earlier", "history.parquet": b""})
    fence = raise_fence(work, COLUMN, 1, "ffffffff")
    stage = fence.stage(COLUMN)
    (stage / "new").mkdir(parents=True)
    for name in ("runs.json", "history.parquet"):
        (stage / "new" / name).write_bytes(b"later")
    assert find_columns(Path("models")) == ([COLUMN], [])
    COLUMN.rename(stage / "old")
    assert find_columns(Path("models")) == ([], [COLUMN])
    raise_fence(work, COLUMN, 2, "00000000")
    assert (COLUMN / "runs.json").read_bytes() == b"earlier"
    assert list(Path("models").iterdir()) == [COLUMN]


def test_results_behind_a_link_are_fenced_where_they_are(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on another disk: nothing is renamed from one to the other."""
    Path("models").rmdir()
    Path("disk").mkdir()
    Path("models").symlink_to("disk")
    rename = os.rename

    def one_disk(source: os.PathLike[str], target: os.PathLike[str]) -> None:
        assert (
            Path(source).absolute().parts[: len(Path.cwd().parts) + 1]
            == (Path(target).absolute().parts[: len(Path.cwd().parts) + 1])
        )
        rename(source, target)

    monkeypatch.setattr(os, "rename", one_disk)
    monkeypatch.setattr(os, "replace", one_disk)
    first = raise_fence(work, COLUMN, 1, "ffffffff")
    for content in (b"1", b"2"):
        _replace_folder(COLUMN, {"runs.json": content}, first)
        assert (Path("disk/m4") / "runs.json").read_bytes() == content
    raise_fence(work, COLUMN, 2, "00000000")
    with pytest.raises(TakenOver, match="attempt 2 has taken over"):
        _replace_folder(COLUMN, {"runs.json": b"3"}, first)
    assert (Path("disk/m4") / "runs.json").read_bytes() == b"2"
    assert [it.name for it in Path("disk").iterdir()] == ["m4"]


def test_progress_that_comes_from_elsewhere_has_a_folder_that_no_attempt_writes(work: Path) -> None:
    assert not withdraw(work, COLUMN).exists()
    here = raise_fence(work, COLUMN, 1, "ffffffff")
    keep(here, "from here")
    assert here.folder is not None
    shared = withdraw(work, COLUMN)
    assert withdraw(work, COLUMN) == shared == plain(here.folder)
    assert (shared / "kept").read_text() == "from here"
    with pytest.raises(TakenOver):
        here.check()
    (shared / "kept").write_text("from elsewhere")
    assert kept(raise_fence(work, COLUMN, 2, "ffffffff")) == "from elsewhere"
    assert plain(work / "0.1/record") == work / "0.1/record"


def test_what_is_no_folder_in_the_place_of_an_attempts_is_put_away(work: Path) -> None:
    key = column_key(work, COLUMN)
    (work / f"{key}.3-00000000.checkpoints").symlink_to("nowhere")
    (work / f"{key}.2-00000000.checkpoints").write_text("a file")
    (work / f"{key}.timing.{16 * '0'}.part").write_text("begun")
    Path("precious").mkdir()
    Path("precious/a.part").write_text("kept")
    (work / f"{key}.checkpoints").mkdir()
    (work / f"{key}.checkpoints/link").symlink_to(Path("precious").absolute())
    (work / f"{key}.checkpoints/kept").write_text("of an older version")
    (work / f"{'0' * 16}.1-00000000.checkpoints").mkdir()  # of another column
    with one_writer(work, COLUMN) as lock:
        assert lock.attempt == 4
        assert kept(lock.fence) == "of an older version"
    assert {it.name.split(".")[0] for it in work.iterdir()} == {key, "0" * 16}
    assert len(list(work.iterdir())) == 3
    assert Path("precious/a.part").read_text() == "kept"


@needs_two_users
def test_checkpoints_of_another_user_are_put_away_and_links_of_others_refused(work: Path) -> None:
    key = column_key(work, COLUMN)
    theirs = work / f"{key}.3-00000000.checkpoints"
    theirs.mkdir()
    (theirs / "kept").write_text("theirs")
    os.chown(theirs, NOBODY, NOBODY)
    with one_writer(work, COLUMN) as lock:
        assert kept(lock.fence) is None
        assert not theirs.exists()
        lock.fence.clear()
    Path("private").mkdir()
    Path("private/a.part").write_text("precious")
    link = work / f"{key}.9-00000000.checkpoints"
    link.symlink_to(Path("private").absolute())
    os.lchown(link, NOBODY, NOBODY)
    with pytest.raises(UserError, match="a link that another user made"), one_writer(work, COLUMN):
        pass
    assert Path("private/a.part").read_text() == "precious"
    assert private.is_of_project(Path("private").stat(), Path.cwd())
    assert "token" not in (work / f"{key}.lock").read_text()
    assert locks.newest_attempt(work, COLUMN) == 9
