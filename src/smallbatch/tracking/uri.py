"""Tracking URIs: read, made whole, told apart, and shown without their secrets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from smallbatch.errors import UserError
from smallbatch.redact import redact
from smallbatch.tracking.project import project_folder

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

VARIABLE = "MLFLOW_TRACKING_URI"
_DEFAULT = "sqlite:///mlflow.db"
_ALLOWED = "allowed: sqlite:///FILE, postgresql+psycopg2://HOST/NAME, http://HOST:PORT"
_DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg2", "mysql": "mysql+pymysql",
            "mssql": "mssql+pymssql"}  # fmt: skip
_SQLITE_OPTIONS = ("timeout", "isolation_level", "check_same_thread", "detect_types",
                   "cached_statements")  # fmt: skip
_ADDRESS = ("host", "port", "service", "odbc_connect")  # options that say which database it is
_PORTS = {"http": 80, "https": 443}
_LONGEST = 300


@dataclass(frozen=True)
class TrackingUri:
    """Where runs are tracked.

    Attributes:
        text: What MLflow is given, with its secrets. A path in it is absolute, as MLflow keeps
            open stores by their URI.
        database: The absolute path of an sqlite database; None for any other store.
        kind: `sqlite`, `database` (of a server), `server` (MLflow's) or `other` (of a plugin).
        store: What all spellings of this store have in common, without user and password.
    """

    text: str = field(repr=False)
    database: Path | None
    kind: str
    store: str = field(repr=False)

    def __str__(self) -> str:
        """The URI without its secrets."""
        return redact(self.text)

    @classmethod
    def parse(cls, text: str | None = None) -> TrackingUri:
        """Read ``text``, else MLFLOW_TRACKING_URI, else that of `mlflow.db` in this folder.

        Raises:
            UserError: It is none that can be used, or the database's driver is not installed.
        """
        text = text or os.environ.get(VARIABLE) or _DEFAULT
        scheme = text.partition(":")[0].lower()
        backend = scheme.partition("+")[0]
        if scheme in ("http", "https"):
            return _server(text)
        if backend in _DRIVERS:
            return _database(text, backend)
        if scheme == "databricks":
            return cls(text, None, "other", text)
        if "://" not in text or scheme == "file":
            raise _refused(text, f"which is a path; MLflow keeps no runs in folders; {_ALLOWED}")
        if scheme not in _of_plugins():
            raise _refused(text, f"where {scheme}:// is no kind of store; {_ALLOWED}")
        return cls(text, None, "other", text)

    def address(self) -> tuple[str, int] | None:
        """Host and port of an MLflow server; None for another store, and behind a proxy."""
        if self.kind != "server":
            return None
        parts = urlsplit(self.text)
        proxies, host = getproxies(), parts.hostname or ""
        if (parts.scheme in proxies or "all" in proxies) and not proxy_bypass(host):
            return None
        return host, parts.port or _PORTS[parts.scheme]

    def reason(self, error: BaseException) -> str:
        """What went wrong, in one plain line without secrets."""
        return redact(_plain(error), self.text).strip().partition("\n")[0][:_LONGEST]


def _of_plugins() -> set[str]:
    """Schemes of stores that installed plugins of MLflow add, and Databricks' own."""
    plugins = metadata.entry_points(group="mlflow.tracking_store")
    return {"databricks", "databricks-uc", "uc", *(plugin.name for plugin in plugins)}


def _refused(text: str, why: str) -> UserError:
    # Without a scheme (`user:password@host:5000`) a URL is meant all the same.
    shown = redact(text) if "://" in text else redact(f"//{text}").removeprefix("//")
    return UserError(f"{VARIABLE}: found {shown}, {why}")


def _server(text: str) -> TrackingUri:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = parts = None
    if parts is None or not host:
        raise _refused(text, "which is no URL; allowed is http://HOST:PORT, and in a user's name "
                             "or password / ? # and @ as %2F %3F %23 and %40")  # fmt: skip
    if parts.query or parts.fragment:
        raise _refused(
            text,
            "but a server's URL has no parameters and no #; put a password into "
            "MLFLOW_TRACKING_PASSWORD, a token into MLFLOW_TRACKING_TOKEN",
        )
    port = port or _PORTS[parts.scheme]
    store = f"{parts.scheme}://{host}:{port}{parts.path.rstrip('/')}"
    return TrackingUri(text, None, "server", store)


def _database(text: str, backend: str) -> TrackingUri:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(text)
        dialect = url.get_dialect()
        if url.get_backend_name() == "sqlite":
            return _sqlite(text, url)
        dialect.import_dbapi()
        dialect().create_connect_args(url)
    except ImportError as error:
        raise _refused(
            text,
            f"which needs the Python module {error.name}; install it, or name the driver that you "
            f"have, as in {_DRIVERS[backend]}://",
        ) from None
    except (ArgumentError, ValueError, TypeError):  # also of unknown drivers and odd options
        raise _refused(
            text,
            "which is no URL of a database; allowed is BACKEND+DRIVER://HOST/NAME, with "
            "USER:PASSWORD and @ before HOST, and in a password : / ? # and @ as %3A %2F %3F "
            "%23 and %40",
        ) from None
    address = [url.get_backend_name(), url.host, url.port, url.database]
    address += [url.query.get(name) for name in _ADDRESS]
    return TrackingUri(text, None, "database", repr(address).lower())


def _sqlite(text: str, url: URL) -> TrackingUri:
    from sqlalchemy.engine import URL

    if url.get_driver_name() != "pysqlite":
        raise _refused(text, f"a driver that MLflow cannot use; {_ALLOWED}")
    if url.host:
        raise _refused(text, "with two slashes; a file's name follows three: sqlite:///mlflow.db")
    options = {key: str(value) for key, value in url.query.items()}
    path = _sqlite_file(text, url.database or "", options)
    if not path or ":memory:" in path or "\0" in path:
        raise _refused(text, "which names no file; MLflow's runs would be lost with this process; "
                             "allowed is sqlite:///mlflow.db")  # fmt: skip
    if others := sorted(options.keys() - set(_SQLITE_OPTIONS)):
        raise _refused(text, f"with the option {others[0]}; "
                             f"allowed: {', '.join(_SQLITE_OPTIONS)}")  # fmt: skip
    database = project_folder(Path.cwd()) / path
    if database.exists() and not database.is_file():
        what = "a directory" if database.is_dir() else "no regular file"
        raise _refused(text, f"but {database} is {what}")
    whole = URL.create("sqlite", database=str(database), query=options)
    try:
        whole.get_dialect()().create_connect_args(whole)
    except (ValueError, TypeError) as error:
        raise _refused(text, f"with a bad option ({error})") from None
    made = whole.render_as_string(hide_password=False)
    return TrackingUri(made, database, "sqlite", f"sqlite {database.resolve()}")


def _sqlite_file(text: str, name: str, options: dict[str, str]) -> str:
    """The path in an sqlite URL; takes what only sqlite's own URIs have out of the options."""
    from sqlalchemy.util import asbool

    try:
        own = asbool(options.pop("uri", "false"))
    except ValueError:
        raise _refused(text, "with a bad option (uri: allowed is true or false)") from None
    if own != name.startswith("file:"):
        raise _refused(text, "where file: and uri=true go together; allowed is sqlite:///mlflow.db")
    if not own:
        return name
    mode = options.pop("mode", "rwc")
    if mode not in ("rw", "rwc"):
        raise _refused(text, f"with mode={mode}, where MLflow cannot keep runs; allowed: rw, rwc")
    path = name.removeprefix("file:")
    if path.startswith("//"):
        path = f"/{path[2:].partition('/')[2]}"
    return unquote(path)


def _plain(error: BaseException) -> str:
    """The innermost reason, without the layers that libraries put around it."""
    *_, inner = _causes(error)
    if isinstance(inner, OSError) and inner.strerror:
        where = f"{inner.filename}: " if inner.filename else ""
        return f"{where}{inner.strerror}"
    if isinstance(inner, TimeoutError) or "Timeout" in type(inner).__name__:
        return "no answer in time"
    if type(inner).__module__.startswith("urllib3"):
        return str(inner)
    return str(error) or type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: object = error
    while isinstance(current, BaseException) and id(current) not in seen:
        seen.add(id(current))
        yield current
        reason: object = getattr(current, "reason", None)  # of urllib3's errors
        inside = [it for it in (reason, *current.args) if isinstance(it, Exception)]
        around = None if current.__suppress_context__ else current.__context__
        current = inside[0] if inside else current.__cause__ or around
