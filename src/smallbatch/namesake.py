"""Another distribution, called `smallbatch`, that installs files under the same names as this one.

In one environment each overwrites files of the other, so that neither is whole.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent


def clash(package: Path = PACKAGE) -> str | None:
    """A line that says that a distribution called `smallbatch` is installed over this one.

    Args:
        package: The folder of this package. Only what is installed beside it overwrites its files.
    """
    for record in package.parent.glob("smallbatch-*.dist-info/RECORD"):
        if f"{package.name}/__init__.py" in record.read_text(encoding="utf-8", errors="replace"):
            name, version = record.parent.name.removesuffix(".dist-info").split("-", 1)
            return (
                f"{package}: the distributions smallbatch-study and {name} {version}, another "
                "project, are both installed here and overwrite each other's files; run `pip "
                "uninstall smallbatch smallbatch-study`, then install smallbatch-study again"
            )
    return None
