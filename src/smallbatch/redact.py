"""Takes secrets out of text before it is shown or kept."""

from __future__ import annotations

import base64
import configparser
import json
import netrc
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, quote_plus, unquote, unquote_plus

HIDDEN = "…"
_LEAST = 6  # characters; shorter values are ordinary words as well

_MOST = 100_000  # bytes of a file with passwords

_SECRET_NAME = re.compile(
    r"passw|passphrase|secret|token(?!iz)|credential|"
    r"(?:key|[^d]pwd|auth|cred|(?<!by)(?<!com)pass|(?:^|_)(?:pat|sas)|cookie|connection_string)"
    r"s?\d*$",
    re.IGNORECASE,
)
# Files that MLflow, requests and drivers take passwords from by themselves, and the variables that
# name others. The first ones are read by configparser.
_SETTINGS_FILES = {
    "~/.mlflow/credentials": "",
    "~/.databrickscfg": "DATABRICKS_CONFIG_FILE",
    "~/.aws/credentials": "AWS_SHARED_CREDENTIALS_FILE",
}
_NETRC = {"~/.netrc": "NETRC", "~/_netrc": ""}
_PGPASS = {"~/.pgpass": "PGPASSFILE"}
_PGSERVICE = {"~/.pg_service.conf": "PGSERVICEFILE"}
_PGFILE = re.compile(r"[?&](pass|service)file=([^&#\n]+)", re.IGNORECASE)
_MLFLOW_USER, _MLFLOW_PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
# What in a URL tells how to connect, or what is looked at.
_HARMLESS = re.compile(
    r"(?:connect_?)?timeout|sslmode|charset|mode|cache|driver|isolation_level|check_same_thread|"
    r"nolock|immutable|uri|max_results|(?:experiment|run)_(?:id|name)|name|path",
    re.IGNORECASE,
)
# Where a URL's user information can begin; `postgresql:user:password@host` is a mistyped one.
_SCHEME = re.compile(
    r"(?:(?<![\w+.-])[a-z][\w+.-]*:)?//+|(?<![\w+.-])[a-z][\w+.-]*:(?:/|(?=[^:@]+:))",
    re.IGNORECASE,
)
# Where the parameters of a URL begin that is told without its host: `with url: /a?b=c`.
_FIRST_PARAMETER = re.compile(r"[?;](?=[\w.~%+-]+=)")
_PARAMETERS = re.compile(r"([?&#;]+)([^?&#;=]*)(=?)([^&]*)")
_CLOSING = "'\"`)]}>,.:;!"
# A password with blanks; what begins with digits is a port, and the rest of the line other text.
_BLANKS = re.compile(
    r"(//)[^\s/:@?#\[]+:(?!\d*(?:[\s/?#,;.)\"'\]]|$))(?=\S{0,200}\s)[^@\n]{1,200}+(?<=\S)(?=@[\w\[])"
)
# At least six characters, and no English word: a digit or a capital in it, or very long.
_RANDOM = r"(?-i:(?=[\w.~+/=-]{6})(?=[\w.~+/=-]{1,40}?[A-Z\d]|[\w.~+/=-]{20}))"
_SIGNATURE = r"(?:(?=[\w~+/=%-]{20})(?=[a-z_~+/=%-]{0,40}\d))"  # Base64 or hex; no Python's name
_IS = r"""(?:\\?["']?\s*[:=]{1,3}+>?+|\\?["']\s*,)[\s\[({]*+(?:b?\\?["'])?+"""  # before a value
_LOGIN = r"(?:basic|bearer|digest|negotiate|apikey)\s+"  # before that of the header Authorization
_SETTING = re.compile(  # a setting of a connection, a header, or a field of JSON
    rf"""(?ix) ( (?:passw(?:or)?d|passphrase|\bpwd|(?:api|access|account)[_-]?key
                   |x-(?:amz|goog)-(?:signature|credential)) {_IS}(?!\W\s)
               | (?:secret|token) (?: ["']?=["']? | \\?["']:\s*\\?["'] | {_IS}(?={_RANDOM}) )
               | [?&;,](?:sig(?:nature)?|credential)=
               | (?<![^\W_])sig=(?!\d*\.\d)(?={_RANDOM})
               | (?<![^\W_])(?:sig(?:nature)?|credential){_IS}(?={_SIGNATURE})
               | (?<![^\W_])(?:j?session_?id|phpsessid){_IS}(?={_RANDOM})
               | (?<![^\W_])authorization{_IS}
                   (?: {_LOGIN} | [\w-]+\s+(?={_RANDOM}|[\w-]+:[\w+/=]{{6}}|…) )?+
               | \b{_LOGIN}(?={_RANDOM}) )
        (?!…)[^\s"'\\;&]+"""
)
_SETTINGS = re.compile(  # a header of several, up to the end of its line or quotes
    rf"""(?ix) ( (?<![^\W_])(?: cookies?{_IS} | <cookie\s | authorization{_IS}[\w-]+\s+ ) )
        (?!…)(?=(?:[\w-]{{1,200}};\s*){{0,9}}[^\s"'=;]{{1,200}}=[^\s=])
        (?: =\\?"[^"\n]*" | [^\n"'\\\]] )+"""
)


def redact(text: str, *urls: str) -> str:
    """The text with ``…`` in the place of secrets. To be called before text is shortened.

    Secrets are: the values of environment variables with names such as ``…_TOKEN``, and what the
    password files of MLflow, Databricks, AWS, netrc and PostgreSQL hold, of at least six
    characters; the user information of URLs, in the text, in the environment and in ``urls``,
    wherever it stands; the values of their parameters, except for a few harmless names, of URLs
    without a host too; each login as HTTP encodes it; signatures of buckets' URLs; and what follows
    ``password=``, ``Authorization:``, ``Cookie:`` and the like. Rather too much is hidden than too
    little.
    """
    for pattern in _patterns(urls):
        text = pattern.sub(HIDDEN, text)
    text = _BLANKS.sub(rf"\1{HIDDEN}", text)
    text = re.sub(r"\S+", lambda word: _without_secrets(word.group()), text)
    text = _SETTINGS.sub(rf"\1{HIDDEN}", text)
    return _SETTING.sub(rf"\1{HIDDEN}", text)


def _patterns(urls: Iterable[str]) -> list[re.Pattern[str]]:
    found = {form for secret in _secrets(urls) for form in _forms(secret) if len(form) >= _LEAST}
    # The longest first: one may be a part of another.
    return [
        re.compile(r"\s+".join(map(re.escape, form.split())))
        for form in sorted(found, key=lambda form: (-len(form), form))
        if form.replace(HIDDEN, "").split()
    ]


def _secrets(urls: Iterable[str]) -> Iterator[str]:
    """Whole secrets of the environment, of URLs and of files with passwords."""
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name):
            yield value
        elif "://" in value:
            yield from _of_url(value)
        elif name.lower().endswith("_proxy"):
            yield from _of_url(f"//{value}")
    for url in urls:
        yield from _of_url(url)
    yield from _of_files()
    yield from _of_postgres(urls)


def _of_url(url: str) -> Iterator[str]:
    start = _SCHEME.search(url)
    user, at, rest = url[start.end() if start else 0 :].rpartition("@")
    if at:
        name, colon, password = user.partition(":")
        yield user
        yield password if colon else name
        yield from _of_login(unquote(name), unquote(password))
    for _, name, equals, value in _PARAMETERS.findall(rest):
        if equals and not _HARMLESS.fullmatch(name):
            yield from (value, re.split("[/;?#]", value)[0])  # the latter: of a path's parameter


def _of_login(user: str, password: str) -> Iterator[str]:
    """A password, and the login as HTTP sends it."""
    if password:
        yield password
        for charset in ("utf-8", "latin-1"):  # MLflow's and that of requests
            encoded = base64.b64encode(f"{user}:{password}".encode(charset, "replace")).decode()
            yield from (encoded, encoded.rstrip("="))


def _of_files() -> Iterator[str]:
    login = dict.fromkeys((_MLFLOW_USER, _MLFLOW_PASSWORD), "")
    for file in _readable(_SETTINGS_FILES):
        settings = configparser.RawConfigParser(strict=False)
        with suppress(configparser.Error):  # what it has read by then is kept
            settings.read_string(_text(file))
        for name, value in (it for section in settings.values() for it in section.items()):
            meant = value.replace("%%", "%")  # as MLflow reads it
            if _SECRET_NAME.search(name):
                yield from (value, meant)
            login |= {key: meant for key in login if key.lower() == name}
    login |= {key: os.environ[key] for key in login if os.environ.get(key)}
    yield from _of_login(login[_MLFLOW_USER], login[_MLFLOW_PASSWORD])
    for file in _readable(_NETRC):
        with suppress(OSError, ValueError, netrc.NetrcParseError):
            for user, _, password in netrc.netrc(file).hosts.values():
                yield from _of_login(user or "", password or "")


def _of_postgres(urls: Iterable[str]) -> Iterator[str]:
    """What PostgreSQL's files have, at their usual places or where a URL or a service says."""
    system = f"{os.environ.get('PGSYSCONFDIR') or '/etc/postgresql-common'}/pg_service.conf"
    files = {"pass": dict(_PGPASS), "service": {**_PGSERVICE, system: ""}}
    for kind, place in _PGFILE.findall("\n".join((*os.environ.values(), *urls))):
        files[kind.lower()][unquote_plus(place)] = ""
    for file in _readable(files["service"]):
        for line in _text(file).splitlines():
            name, _, value = line.strip().partition("=")
            if name == "passfile":
                files["pass"][value] = ""
            elif name.endswith("password"):
                yield value
    for file in _readable(files["pass"]):
        for line in _text(file).splitlines():
            parts = re.split(r"(?<!\\):", line, maxsplit=4)
            yield re.sub(r"\\(.)", r"\1", parts[4]) if len(parts) > 4 else ""


def _readable(files: dict[str, str]) -> Iterator[Path]:
    """Those that are there, at their usual place or where a variable says; a pipe is no such."""
    for usual, variable in files.items():
        with suppress(OSError, RuntimeError):  # the latter: there is no home
            file = Path(os.environ.get(variable) or usual).expanduser()
            if file.is_file() and file.stat().st_size <= _MOST:
                yield file


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _forms(secret: str) -> set[str]:
    """A secret as it may stand in text: plain, percent-encoded, in Python's quotes or in JSON."""
    plain = {secret, unquote(secret), unquote_plus(secret)}
    encoded = {form(it) for it in plain for form in (_quoted, quote_plus, repr, json.dumps)}
    return plain | encoded | {it[1:-1] for it in encoded if it[:1] in "'\""}


def _quoted(text: str) -> str:
    return quote(text, safe="", errors="replace")


def _without_secrets(word: str) -> str:
    """A word, without the user information and the parameters of a URL in it."""
    start = _SCHEME.search(word)
    if start is None:
        return _without_parameters(word)
    head, rest = word[: start.end()], word[start.end() :]
    at = rest.rfind("@")  # a password may contain / ? # and @
    if at >= 0:
        head, rest = f"{head}{HIDDEN}", rest[at:]
    inner = rest.rstrip(_CLOSING)
    return f"{head}{_PARAMETERS.sub(_hidden_value, inner)}{rest[len(inner) :]}"


def _without_parameters(word: str) -> str:
    """A word, without the parameters of a URL that has no host; those after ; follow a path."""
    slash = word.find("/")
    for found in _FIRST_PARAMETER.finditer(word):
        if found.group() == "?" or 0 <= slash < found.start():
            inner = word.rstrip(_CLOSING)
            shown = _PARAMETERS.sub(_hidden_value, inner[found.start() :])
            return f"{word[: found.start()]}{shown}{word[len(inner) :]}"
    return word


def _hidden_value(found: re.Match[str]) -> str:
    mark, name, equals, value = found.groups()
    if equals and not _HARMLESS.fullmatch(name):
        return f"{mark}{name}={HIDDEN}"
    if name and not equals and "#" not in mark:  # a bare secret; after # a place on the page
        return f"{mark}{HIDDEN}"
    first, *others = re.split(r"(?=[?#;])", value, maxsplit=1)
    return f"{mark}{name}{equals}{first}" + _PARAMETERS.sub(_hidden_value, "".join(others))
