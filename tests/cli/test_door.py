"""However a command ends: one line, and an exit status that says why."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from smallbatch.cli import faults
from smallbatch.cli.main import main
from smallbatch.errors import UserError
from smallbatch.placement import trying

ROOT = Path(__file__).parents[2]
RAISES = "smallbatch.config.profiles.summaries"  # what `profile list` calls


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, cache and folder for temporary files."""
    monkeypatch.setenv("SMALLBATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


def failing(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> Result:
    def fail() -> None:
        raise error

    monkeypatch.setattr(RAISES, fail)
    return CliRunner().invoke(main, ["profile", "list"])


def process(
    *words: str, path: Path | None = None, environment: dict[str, str] | None = None
) -> tuple[int, str, str]:
    """Run the command; modules in ``path`` go before those of the same name."""
    paths = [str(path)] if path else []
    done = subprocess.run(
        [sys.executable, "-P", "-m", "smallbatch", *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*paths, str(ROOT / "src")]),
             **(environment or {})},
        capture_output=True, encoding="latin-1", check=False, timeout=60,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


class OddError(UserError):
    """An error that pickle cannot make again."""

    def __init__(self, key: str, found: str) -> None:
        super().__init__(f"{key}: found {found}")


def test_a_fault_is_one_line_and_its_traceback_a_private_file_without_secrets(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "hunter22")
    (folder / ".smallbatch").mkdir()
    done = failing(KeyError("http://me:S3cret?Pw@h said hunter22\nand more"), monkeypatch)
    assert done.exit_code == 70
    (line,) = done.stderr.splitlines()
    (path,) = (folder / ".smallbatch/errors").iterdir()
    assert line.startswith("internal error: KeyError: ")
    assert line.endswith(f"details in {path.relative_to(folder)}, please report")
    text = path.read_text()
    assert "in fail" in text
    for secret in ("S3cret", "Pw", "hunter22"):
        assert secret not in line + text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_traceback_is_kept_elsewhere_where_its_folder_is_none(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept(pattern: str) -> list[Path]:
        assert failing(KeyError("x"), monkeypatch).exit_code == 70
        return list(tmp_path.glob(pattern))

    assert len(kept("cache/errors/*.txt")) == 1  # no project
    victim = tmp_path / "victim"
    victim.mkdir()
    (folder / ".smallbatch").mkdir()
    (folder / ".smallbatch/errors").symlink_to(victim)
    assert len(kept("cache/errors/*.txt")) == 2
    assert not list(victim.iterdir())
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").touch()
    assert len(kept("smallbatch-errors-*/*.txt")) == 1
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    assert "cannot be written" in failing(KeyError("x"), monkeypatch).output


def test_an_error_that_cannot_be_shown_is_a_fault_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(faults.platform, "platform", lambda: 1 / 0)
    assert failing(RecursionError(), monkeypatch).exit_code == 70


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 75, "interrupted by SIGINT"),
        (MemoryError(), 2, "memory ran out"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory\nC++"), 2, "memory"),
        (ImportError("libtorch.so: failed to map segment from shared object"), 2, "memory"),
        (OSError(28, "No space left on device", "out"), 2, "out: No space left on device"),
        (UserError("two\nlines\x85of \x1b[31m\ud800"), 2, r"two lines of \x1b[31m\ud800"),
        (UserError("no http://u:S3cret?Pw@h"), 2, "no http://…@h"),
        (UserError("x" * 10**6), 2, "xxx"),
        (OddError("a", "b"), 2, "a: found b"),
    ],
)
def test_what_is_no_fault_is_one_line(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = failing(error, monkeypatch)
    assert done.exit_code == code
    (line,) = done.stderr.splitlines()
    assert said in line
    assert len(line) < 2100
    assert "S3cret" not in line


def test_a_usage_error_shows_no_secret() -> None:
    done = CliRunner().invoke(main, ["sync", "http://u:S3cret?Pw@h"])
    assert done.exit_code == 2
    assert "http://…@h" in done.stderr
    assert "S3cret" not in done.stderr


@pytest.mark.parametrize(
    "odd",
    [{"PYTHONIOENCODING": "latin-1"}, {"PYTHONIOENCODING": "ascii:strict"},
     {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
)  # fmt: skip
def test_characters_that_an_encoding_lacks_are_replaced(odd: dict[str, str]) -> None:
    code, shown, said = process("run", "--help", environment=odd)
    assert (code, said) == (0, "")
    replaced = re.search(r"\?+ = \?/m", shown)  # η̃ is two characters
    assert replaced or "η/m" in shown.encode("latin-1").decode()  # click writes UTF-8 for ASCII


def test_closed_streams_are_not_taken_for_files(folder: Path) -> None:
    command = f"exec {sys.executable} -P -m smallbatch train a 4 >&- 2>&- <&-"
    (folder / "params.yaml").write_text("a: [")
    done = subprocess.run(
        ["bash", "-c", command], env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, check=False
    )
    assert done.returncode == 2
    assert (folder / "params.yaml").read_text() == "a: ["


SENDS = "import os, signal, time\nos.kill(os.getpid(), signal.{name})\ntime.sleep(30)\n"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize(
    ("module", "words"), [("click", ["--help"]), ("ruamel", ["prepare"])], ids=["start", "command"]
)
def test_a_signal_ends_a_command_whatever_it_imports(
    name: str, module: str, words: list[str], tmp_path: Path, folder: Path
) -> None:
    (folder / "params.yaml").write_text("")
    (tmp_path / f"{module}.py").write_text(SENDS.format(name=name))
    code, shown, said = process(*words, path=tmp_path)
    assert (code, shown, said) == (75, "", f"interrupted by {name}\n")


def test_an_interruption_that_a_library_turns_into_an_error_is_one(
    tmp_path: Path, folder: Path
) -> None:
    (folder / "params.yaml").write_text("")
    kill = SENDS.format(name="SIGTERM").replace("\n", "\n    ")
    (tmp_path / "ruamel.py").write_text(
        f"try:\n    {kill}pass\nexcept BaseException:\n    raise ImportError('half') from None\n"
    )
    assert process("prepare", path=tmp_path) == (75, "", "interrupted by SIGTERM\n")


def test_a_signal_after_the_last_line_changes_nothing(tmp_path: Path, folder: Path) -> None:
    """Where libraries take their time to end."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, threading, time\n"
        "threading._register_atexit(lambda: (os.kill(os.getpid(), 15), time.sleep(0.1)))\n"
    )
    code, shown, said = process("--version", path=tmp_path)
    assert (code, said) == (0, "")
    assert shown.startswith("smallbatch, version")


def test_a_library_that_cannot_be_imported_is_a_fault_in_one_line(
    tmp_path: Path, folder: Path
) -> None:
    (tmp_path / "click.py").write_text("raise ValueError('http://u:S3cret?Pw@h')\n")
    code, shown, said = process("--help", path=tmp_path)
    assert (code, shown) == (70, "")
    (line,) = said.splitlines()
    assert "internal error: ValueError: http://" in line
    assert "S3cret" not in line


def test_what_another_process_raises_is_as_if_it_were_here(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> bool:
        raise OddError("model", "x")

    with pytest.raises(UserError, match=r"^model: found x$"):
        trying.in_a_child(refuse)
    assert trying.in_a_child(lambda: True)
    assert not trying.in_a_child(lambda: bool(1 / 0))
    monkeypatch.setattr(trying, "CHILD_S", 0.1)
    assert not trying.in_a_child(lambda: bool(os.read(os.pipe()[0], 1)))  # for ever
    assert capfd.readouterr() == ("", "")
