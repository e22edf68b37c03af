"""Takes secrets out of text before it is shown or kept."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote, quote_plus, unquote, unquote_plus

HIDDEN = "…"
_LEAST = 6  # characters; shorter values are ordinary words as well

_SECRET_NAME = re.compile(
    r"passw|passphrase|secret|token(?!iz)|credential|(?:key|[^d]pwd|auth)s?\d*$", re.IGNORECASE
)
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
_PARAMETERS = re.compile(r"([?&#;]+)([^?&#;=]*)(=?)([^&]*)")
_CLOSING = "'\"`)]}>,.:;!"
_SETTING = re.compile(  # a setting of a connection, a header, or a field of JSON
    r"""(?ix) ( (?:passw(?:or)?d|passphrase|\bpwd|secret|token|api[_-]?key|access[_-]?key)
                (?: ["']?=["']? | \\?["']:\s*\\?["'] )
              | \bauthorization\\?["']?\s*[:=]\s*\\?["']?(?:(?:basic|bearer)\s+)?+ )
        (?!…)[^\s"'\\;&]+"""
)


def redact(text: str, *urls: str) -> str:
    """The text with ``…`` in the place of secrets. To be called before text is shortened.

    Secrets are: the values of environment variables with names such as ``…_TOKEN``, of at least
    six characters; the user information of URLs, in the text, in the environment and in ``urls``,
    wherever it stands; the values of their parameters, except for a few harmless names; and what
    follows ``password=``, ``Authorization:`` and the like. Rather too much is hidden than too
    little.
    """
    for pattern in _patterns(urls):
        text = pattern.sub(HIDDEN, text)
    text = re.sub(r"\S+", lambda word: _without_secrets(word.group()), text)
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
    """Whole secrets of the environment and of URLs."""
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name):
            yield value
        elif "://" in value:
            yield from _of_url(value)
    for url in urls:
        yield from _of_url(url)


def _of_url(url: str) -> Iterator[str]:
    start = _SCHEME.search(url)
    user, at, rest = url[start.end() if start else 0 :].rpartition("@")
    if at:
        name, colon, password = user.partition(":")
        yield user
        yield password if colon else name
    for _, name, equals, value in _PARAMETERS.findall(rest):
        if equals and not _HARMLESS.fullmatch(name):
            yield value


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
        return word
    head, rest = word[: start.end()], word[start.end() :]
    at = rest.rfind("@")  # a password may contain / ? # and @
    if at >= 0:
        head, rest = f"{head}{HIDDEN}", rest[at:]
    inner = rest.rstrip(_CLOSING)
    return f"{head}{_PARAMETERS.sub(_hidden_value, inner)}{rest[len(inner) :]}"


def _hidden_value(found: re.Match[str]) -> str:
    mark, name, equals, value = found.groups()
    if equals and not _HARMLESS.fullmatch(name):
        return f"{mark}{name}={HIDDEN}"
    if name and not equals and "#" not in mark:  # a bare secret; after # a place on the page
        return f"{mark}{HIDDEN}"
    first, *others = re.split(r"(?=[?#;])", value, maxsplit=1)
    return f"{mark}{name}{equals}{first}" + _PARAMETERS.sub(_hidden_value, "".join(others))
