"""Damages: edits of files, words of the command line and the environment, drawn at random.

An edit is a plain tuple, so that a case can be written down and made smaller:
("bytes", file, place from 0 to 1, length, replacement in hex), ("value", file, place, text) for
what follows a colon of JSON or YAML, ("set", file, key, text), ("name", file, new name),
("seal", file), ("word", word, …), ("variable", name, value).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

Edit = tuple[Any, ...]

NUMBERS = (
    "0", "-1", "1", "2", "3", "4", "0.5", "1e-3", "1e308", "-1e308", "5e-324", "1e999", "nan",
    "inf", "-inf", ".nan", "-.inf", ".inf", "2^-6", "2**-6", "2^1023", "2^127", "2^-126",
    "2^-1074", "2^99999", "2**-9999", "4294967296", "18446744073709551616",
    "9223372036854775807", "2147483648", "1.0", "0x10", "0o7", "1_000", "1e3", "+5", "٣", "1,5",
    "9" * 400, "9" * 5000, "0x" + "f" * 5000, "01", "1024", "100000000",
)  # fmt: skip
TEXTS = (
    "", " ", "null", "~", "true", "false", "yes", "x", "a" * 300, "resnet8", "resnet9",
    "digits", "batch", "ghost", "auto", "cuda", "../../x", "/etc", "/dev/null", ".", "..", "-",
    "--", "é", "e\u0301", "\u202e", "🦆", "=1+1", "|", "`", "$(x)", "%s", "{0}", "${a}", "a\nb",
    "a\tb", "a\x1b[31m", "\x7f", "best of a", "best of x", "updates of 4",
    "updates of 999999999", "resnet18.a1_in1k", "hf_hub:x/y",
)  # fmt: skip
VALUES = (
    "[]", "{}", "[[]]", "[null]", "{a: 1}", "[1, 1]", "[4, 4]", "[2^-6, 2^-6]",
    "[2^-6, 2^1023]", "[a, a]", "[4, 100000]", "!!bool x", "!!int", "!!int ''", "!!float x",
    "!!set {a}", "!!binary aGk=", "!!python/object:os.system x", "!foo x", "!!timestamp x",
    "2024-13-45", "2020-01-01", "*a", "&a [*a]", "{? {a: 1}: 2}", "{<<: 3}", "'", '"', "#", "|",
    ">", "[" * 3000, "{a: " * 400, "@", "`", "? ", "- ",
)  # fmt: skip
SNIPPETS = (
    b"*a", b"&a ", b"{", b"[", b"]", b"- ", b": ", b"\n  ", b"\t", b"\0", b"\xff",
    b"\xed\xa0\x80", b"'", b'"', b"#", b"<<: ", b"%YAML 9.9\n", b"%YAML 1.1\n", b"---\n", b"? ",
    b"\xef\xbb\xbf", b"\r\n", b"\x85", b"grid:", b"studies:", b"null", b"!!int ", b"!!bool ",
    b"2020-01-01",
)  # fmt: skip
PLAUSIBLE = (
    "0", "1", "2", "3", "4", "5", "8", "0.5", "0.25", "1e-3", "1.0", "true", "false", "null",
    "auto", "loop", "none", "a", "b", "digits", "resnet8", "cpu", "[2]", "[4]", "[2, 4]",
    "[0.5]", "[2^-6]", "60", "'2'",
)  # fmt: skip
JSON_PLAUSIBLE = (
    "0",
    "1",
    "2",
    "4",
    "0.5",
    "1e-3",
    "true",
    "null",
    '"a"',
    '"b"',
    '"digits"',
    "60",
    "[1]",
)
JSON_VALUES = (
    "null", "true", "[]", "{}", "1e999", "NaN", "-1", "1.5", "9" * 400, "9" * 5000, '""',
    '"../../x"', '"\\ud800"', '"\\u0000"', '"finished"', '"diverged"', "[" * 5000,
    '{"a":' * 3000, '"=1+1"', '"|"', '"<b>"', "1e-400", "-0.0", "18446744073709551616",
    '"a\\nb"', "[1]", '{"a": 1}', "0", '"0"',
)  # fmt: skip
URIS = (
    "", " ", "x", "./mlruns", "sqlite:///", "sqlite://", "sqlite:///:memory:",
    "sqlite:///none/mlflow.db", "sqlite:///here.db?timeout=30", "sqlite:////etc/passwd",
    "sqlite:///%00", "mysql://", "mssql://h/d", "oracle://h/d", "postgresql:/", "http://[::1",
    "http://", "https://h:99999", "http://u:S3cret?Pw@[", "ftp://u:S3cret@h", "databricks",
    "file:///etc", "file://h/x", "uc:x", "://", "\x01", "sqlite:///" + "a" * 5000,
)  # fmt: skip
FOLDERS = (
    "", " ", ".", "models", "params.yaml", "mlflow.db", "new", "a/b/c", "/dev/null", "/dev/null/x",
    "/proc", "/proc/self/x", "~no-such-user", "~no-such-user/x", "é", "e\u0301", "🦆", "\udc80",
    "a" * 300, "a/" * 300, "a\nb", "\x1b[31m", "%s", "{0}", "$HOME", "`id`", "'", "--", "x/../y",
)  # fmt: skip
TIMES = (
    "",
    "0",
    "90",
    "45m",
    "3h30m",
    "1e300h",
    "inf",
    "nan",
    "-1",
    "9" * 400 + "h",
    "10000h",
    "1s2",
    "٣s",
)


KEYS = {
    "subset": ("60", "100", "59", "60.0", "0x40"), "test_subset": ("40", "1", "41"),
    "name": ("digits", "x-1"), "studies": ("[a]", "[b]", "[b, a]", "[a, a]"),
    "batch_sizes": ("[4]", "[4, 8]", "[60]", "[61]"),
    "base_lrs": ("[2^-6, 0.5]", "[1]", "[2**-6]", "[2^-126]", "[2^124]", "[0.1, 1e-1]"),
    "seeds": ("1", "3"), "norm": ("none", "batch", "group", "batch_conv"),
    "epochs": ("1", "7", "1.0", "2147483647", "1_0"),
    "weight_decay": ("0", "1e-4", "1e300", "0.0", "-0.0"),
    "figure": ('"2"', "2", "null", "'=x'"), "device": ("cpu", "auto"),
    "engine": ("loop", "auto", "stacked"), "workers": ("1", "auto", "2", "1024"),
    "bn_batch_size": ("2", "4", "3", "5"),
    "model": ("resnet8", "alexnet", "smallbatch_resnet8"),
}  # fmt: skip
"""Keys of params.yaml, and values of which most are allowed."""


def settings(random: Random, file: str) -> list[Edit]:
    """Some keys set to values of their own kind."""
    edits: list[Edit] = []
    for key in random.sample([*KEYS], random.choice((1, 1, 2, 3))):
        odd = random.random() < 0.15
        text = random.choice((*NUMBERS, *TEXTS)) if odd else random.choice(KEYS[key])
        edits.append(("set", file, key, text))
    return edits


def value(random: Random, json: bool) -> str:
    """Any value, odd or not, as YAML or JSON."""
    if json:
        return random.choice(random.choice((JSON_VALUES, JSON_PLAUSIBLE)))
    return random.choice(random.choice((NUMBERS, TEXTS, VALUES, PLAUSIBLE, PLAUSIBLE, PLAUSIBLE)))


def bytes_of(random: Random, file: str, most: int = 3) -> list[Edit]:
    """One to three damages anywhere in a file."""
    edits: list[Edit] = []
    for _ in range(random.randint(1, most)):
        new = random.randbytes(random.randint(0, 8))
        if random.random() < 0.3:
            new = random.choice(SNIPPETS)
        edits.append(("bytes", file, random.random(), random.randint(0, 40), new.hex()))
    return edits


def apply(edits: Sequence[Edit], folder: Path) -> tuple[list[str], dict[str, str]]:
    """Change files below a folder; the words and the environment for the command."""
    words: list[str] = []
    environment: dict[str, str] = {}
    for kind, *what in edits:
        if kind == "bytes":
            _damage(folder / what[0], what[1], what[2], bytes.fromhex(what[3]))
        elif kind == "value":
            _replace(folder / what[0], what[1], what[2])
        elif kind == "set":
            _set(folder / what[0], what[1], what[2])
        elif kind == "seal":
            body = (folder / what[0]).read_bytes()[32:]
            (folder / what[0]).write_bytes(hashlib.sha256(body).digest() + body)
        elif kind == "name":
            _rename(folder / what[0], what[1])
        elif kind == "word":
            words += what
        else:
            environment[what[0]] = what[1]
    return words, environment


def _damage(path: Path, where: float, length: int, new: bytes) -> None:
    content = path.read_bytes()
    start = int(where * len(content))
    path.write_bytes(content[:start] + new + content[start + length :])


_STARTS = re.compile(rb": *(?=[^\s])")
_ENDS = re.compile(rb"[,}\]\n]")


def _replace(path: Path, where: float, text: str) -> None:
    content = path.read_bytes()
    starts = [found.end() for found in _STARTS.finditer(content)] or [0]
    start = starts[int(where * (len(starts) - 1))]
    end = _ENDS.search(content, start + (content[start : start + 1] in (b"[", b"{")))
    new = text.encode(errors="surrogatepass")
    path.write_bytes(content[:start] + new + content[end.start() if end else len(content) :])


def _set(path: Path, key: str, text: str) -> None:
    content = path.read_text()
    found = re.search(rf"\b{key}: (\[[^]]*\]|[^,}}\n]*)", content)
    if found is not None:
        path.write_text(f"{content[: found.start(1)]}{text}{content[found.end(1) :]}")


def _rename(path: Path, name: str) -> None:
    try:
        path.rename(path.with_name(name))
    except (OSError, ValueError):  # no name of a file
        return
