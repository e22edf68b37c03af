"""A project that several users may write: what others planted there, and what is allowed."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import stat
import struct
import threading
import urllib.error
import urllib.request
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from smallbatch.errors import UserError
from smallbatch.tracking import sync
from smallbatch.tracking.store import open_store
from smallbatch.tracking.trust import is_remote
from tests.users import NOBODY, needs_two_users

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

BESIDE = ["mlflow.db-wal", "mlflow.db-shm", "mlflow.db-journal", "mlflow.db.new"]


def small(columns: Any, study: str = "study") -> Path:
    return columns.write(8, study=study, base_lrs=(0.5,), seeds=1, epochs=1)


def plant(database: Path, statement: str, *values: str) -> None:
    """Change one row of a database."""
    with closing(sqlite3.connect(database)) as connection, connection:
        assert connection.execute(statement, values).rowcount == 1


def make(path: Path) -> None:
    """The database is there; files and folders that are not are made, empty."""
    if path.name.startswith("mlflow"):
        path.touch()
    else:
        path.mkdir(parents=True)


@needs_two_users
@pytest.mark.parametrize("name", ["mlflow.db", *BESIDE, "mlartifacts", "mlartifacts/digits/study"])
def test_nothing_is_logged_to_what_another_user_made(
    name: str, columns: Any, tables: Any, workplace: Path
) -> None:
    small(columns)
    make(workplace / name)
    os.chown(workplace / name, NOBODY, -1)
    workplace.chmod(0o777)
    with pytest.raises(UserError, match=rf"/{re.escape(name)}: made by another user \(\w+\)"):
        sync(columns.root)
    assert not tables.query("select run_uuid from runs")
    os.chown(workplace, NOBODY, -1)  # of whom the project belongs to, it may be
    assert open_store().experiment_id("digits/study")


@pytest.mark.parametrize("name", ["mlflow.db", "mlflow.db.new"])
def test_a_journal_that_names_another_file_is_not_played_back(
    name: str, columns: Any, workplace: Path, tmp_path: Path
) -> None:
    """Sqlite takes the file for a list of journals, finds that none is left and deletes it."""
    small(columns)
    sync(columns.root)
    precious = tmp_path / "precious"
    precious.write_text("of this user")
    target, magic = str(precious).encode(), bytes.fromhex("d9d505f920a163d7")
    page = int.from_bytes((workplace / "mlflow.db").read_bytes()[16:18], "big")
    pages = (workplace / "mlflow.db").stat().st_size // page
    header = magic + struct.pack(">5I", 0, 0, pages, 512, page)
    named = struct.pack(">I", 0x40000000 // page + 1) + target
    tail = struct.pack(">2I", len(target), sum(target)) + magic
    (workplace / f"{name}-journal").write_bytes(header.ljust(512, b"\0") + named + tail)
    with pytest.raises(UserError, match=rf"{name}-journal: names another file"):
        sync(columns.root)
    assert precious.exists()


ENDLESS = "with recursive n(i) as (select 1 union all select i + 1 from n) select i from n"
COMPUTED = {
    "view 'experiments'": f"""
        alter table experiments rename to real; create view experiments as
        select real.* from real, ({ENDLESS}) where i < 0""",
    "view 'unread'": f"create view unread as {ENDLESS}",
    "trigger 'slow'": f"""
        create trigger slow before insert on runs begin
        select 1 where 0 = (select i from ({ENDLESS}) where i < 0); end""",
    "virtual table 'texts'": "create virtual table texts using fts5(a)",
}


@pytest.mark.parametrize("found", COMPUTED)
def test_a_database_that_computes_what_is_read_is_refused(
    found: str, columns: Any, workplace: Path
) -> None:
    """Such as one with an endless view, which somebody else made and a user copied."""
    small(columns)
    with closing(sqlite3.connect(workplace / "mlflow.db")) as connection, connection:
        connection.executescript(COMPUTED[found])
    with pytest.raises(UserError, match=rf"mlflow\.db: has the {found}, which MLflow does not"):
        sync(columns.root)


@needs_two_users
def test_members_of_the_group_that_may_write_a_project_share_its_database(
    columns: Any, workplace: Path
) -> None:
    """The files beside a database are of the member who used it first."""
    small(columns)
    os.chown(workplace / "mlflow.db", NOBODY, -1)
    os.chown(workplace, -1, NOBODY)
    workplace.chmod(0o755)
    with pytest.raises(UserError, match="made by another user"):
        sync(columns.root)
    workplace.chmod(0o775)
    assert sync(columns.root).runs_created == 2


@pytest.mark.parametrize("name", BESIDE[1:])
def test_what_is_no_file_beside_a_database_is_named(name: str, workplace: Path) -> None:
    os.mkfifo(workplace / name)
    with pytest.raises(UserError, match=f"{name}: no regular file"):
        open_store()


LOCATIONS = ["file://{root}/elsewhere", "{root}/elsewhere", "http://127.0.0.1:9/artifacts",
             "file://{root}/mlartifacts/digits/study/../../../elsewhere", "elsewhere", "a\nb", "",
             "file://{root}/mlartifacts/digits/study/link",
             "file://{root}/mlartifacts/digits/study/link/circle",
             "s3://bucket/digits"]  # fmt: skip


@pytest.mark.parametrize("location", LOCATIONS)
def test_a_database_does_not_say_where_files_are_written(
    location: str, columns: Any, tables: Any, workplace: Path
) -> None:
    small(columns)
    store = open_store()
    store.experiment_id("digits/study")
    link = workplace / "mlartifacts/digits/study/link"
    link.parent.mkdir(parents=True)
    link.symlink_to(link if location.endswith("circle") else workplace / "elsewhere")
    planted = location.format(root=workplace)
    plant(
        tables.database,
        "update experiments set artifact_location = ? where name = 'digits/study'",
        planted,
    )
    with pytest.raises(UserError, match="has the artifacts of experiment digits/study at") as told:
        sync(columns.root)
    assert "\n" not in str(told.value)
    assert not (workplace / "elsewhere").exists()
    assert not tables.query("select run_uuid from runs")


def test_a_model_that_is_completed_lies_in_the_folder_of_its_experiment(
    columns: Any, tables: Any, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    small(columns)
    with monkeypatch.context() as patch:
        patch.setattr(LocalArtifactRepository, "log_artifacts", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sync(columns.root)
    [(place,)] = tables.query("select artifact_location from logged_models")
    statement = "update logged_models set artifact_location = ?"
    plant(tables.database, statement, (workplace / "elsewhere").as_uri())
    with pytest.raises(UserError, match="has the artifacts of experiment digits/study at"):
        sync(columns.root)
    assert not (workplace / "elsewhere").exists()
    plant(tables.database, statement, place)
    sync(columns.root)
    assert [*workplace.glob("mlartifacts/digits/study/models/*/artifacts/MLmodel")]


def test_a_link_of_the_user_to_a_database_leads_to_the_same_artifacts(
    columns: Any, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workplace / "link").symlink_to(workplace)
    small(columns)
    sync(columns.root, "sqlite:///link/mlflow.db")
    columns.write(8, base_lrs=(0.5,), seeds=1, epochs=2)  # other results: another model
    assert sync(columns.root).runs_created == 2
    assert len([*workplace.glob("mlartifacts/digits/study/models/*/artifacts/MLmodel")]) == 2


@pytest.mark.parametrize(("folder", "mode"), [(0o755, 0o600), (0o775, 0o660)])
def test_who_may_only_read_a_project_cannot_lock_its_database(
    tmp_path: Path, folder: int, mode: int
) -> None:
    """Whoever may open the files may lock them, those of sqlite's journal too."""
    project = tmp_path / "new"
    project.mkdir()
    project.chmod(folder)
    store = open_store(f"sqlite:///{project / 'mlflow.db'}")
    store.experiment_id("digits")
    files = [*project.glob("mlflow.db*")]
    assert len(files) == 3
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == mode, path


SERVER = "http://me:secret@127.0.0.1:5000/mlflow"
REMOTE = ["mlflow-artifacts:/1/models/m-1/artifacts", "mlflow-artifacts://127.0.0.1:5000/1",
          "http://127.0.0.1:5000/mlflow/api/2.0/mlflow-artifacts/artifacts/1", "s3://bucket/1",
          "gs://bucket", "wasbs://box@account.blob.core.windows.net/1",
          "hdfs://namenode:8020/1"]  # fmt: skip
HERE = ["file:///home/me", "FILE:///home/me", "/home/me", "home", "", "c:/home/me", " file:/home",
        "file://localhost/home/me", "dbfs:/home", "runs:/1", "models:/m-1", "s3:/bucket", "hdfs:///1",
        "mlflow-artifacts://evil.example/1", "mlflow-artifacts://evil.example:5000/1",
        "http://127.0.0.1:5001/1", "https://127.0.0.1:5000/1", "http://evil.example/1",
        "http://127.0.0.1:5000@evil.example/1", "http://127.0.0.1:5000\\@evil.example/1",
        "mlflow-artifacts:/../../2.0/mlflow/users", "sftp://localhost/home/me", "http://[",
        "a\nb"]  # fmt: skip


@pytest.mark.parametrize("location", [*REMOTE, *HERE])
def test_a_server_names_itself_or_a_bucket(location: str) -> None:
    assert is_remote(location, SERVER) == (location in REMOTE)


def test_hosts_and_shared_disks_are_allowed_by_the_variable_of_mlflow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOWED_HOST_ADDRESSED_ARTIFACT_SCHEMES", "sftp, http")
    assert is_remote("sftp://box/1", SERVER)
    assert not is_remote("https://box/1", SERVER)
    assert not is_remote("file:///mnt/shared", SERVER)
    monkeypatch.setenv("MLFLOW_ALLOWED_HOST_ADDRESSED_ARTIFACT_SCHEMES", "file")
    assert is_remote("file:///mnt/shared", SERVER)
    assert is_remote("/mnt/shared", SERVER)
    assert not is_remote("sftp://box/1", SERVER)


@pytest.fixture
def liar(start_server: Callable[[str], Any], workplace: Path) -> Generator[str]:
    """A server, or who sits between, that says of each model that it lies in `home`."""
    honest = start_server("honest").uri
    place = json.dumps((workplace / "home").as_uri()).encode()

    class Liar(BaseHTTPRequestHandler):
        def answer(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            kept = {"Content-Type": self.headers.get("Content-Type") or "application/json"}
            asked = urllib.request.Request(
                honest + self.path, content or None, kept, method=self.command
            )
            try:
                with urllib.request.urlopen(asked) as reply:
                    code, said = reply.status, reply.read()
            except urllib.error.HTTPError as error:
                code, said = error.code, error.read()
            if "logged-models" in self.path:
                said = re.sub(rb'("artifact_(?:uri|location)": *)"[^"]*"', rb"\1" + place, said)
            self.send_response(code)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = answer  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Liar) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
def test_a_server_does_not_say_where_on_this_machine_files_are_written(
    columns: Any, liar: str, workplace: Path
) -> None:
    home = workplace / "home"
    home.mkdir()
    (home / "requirements.txt").write_text("precious")
    small(columns)
    with pytest.raises(UserError, match=f"experiment digits/study at '{home.as_uri()}'") as told:
        sync(columns.root, liar)
    assert "\n" not in str(told.value)
    client = open_store(liar).client
    experiment = client.create_experiment("digits/planted", artifact_location=home.as_uri())
    with pytest.raises(UserError, match=f"experiment digits/planted at '{home.as_uri()}'"):
        sync(small(columns, "planted"), liar)
    assert not client.search_runs([experiment])
    assert [path.read_text() for path in home.rglob("*")] == ["precious"]
