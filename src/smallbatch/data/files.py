"""A folder's files as a person sees them: in order, and without what systems leave there."""

import hashlib
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

# Left by Windows, macOS and network storages; beside these, all whose name starts with a dot.
_LITTER = frozenset(
    {
        "thumbs.db", "thumbs.db:encryptable", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini",
        "$recycle.bin", "system volume information", "recycler", "__macosx", "icon\r", "@eadir",
        "@tmp", "#recycle", "#snapshot", "lost+found",
    }
)  # fmt: skip


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC), so that one name is one text on all systems."""
    return unicodedata.normalize("NFC", name)


def visible(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, in the order of its composed names, without litter.

    Raises:
        OSError: The folder cannot be read.
    """
    return _sorted(folder, litter=False)


def litter(folder: Path) -> list[os.DirEntry[str]]:
    """What `visible` leaves out of a folder, in the same order.

    Raises:
        OSError: The folder cannot be read.
    """
    return _sorted(folder, litter=True)


def below(path: Path) -> Iterator[os.DirEntry[str]]:
    """Yields what is in a folder and in all folders below it, without litter, each folder once.

    Raises:
        OSError: A folder cannot be read.
    """
    seen, folders = set[tuple[int, int]](), [path]
    while folders:
        folder = folders.pop()
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:  # links may lead in a circle
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in visible(folder):
            if entry.is_dir():
                folders.append(Path(entry.path))
            yield entry


def listing(path: Path) -> str:
    """What changes when files below a folder do: a digest of their names, sizes and times.

    Also of the times of the last change of any kind, which no program that copies sets.

    Raises:
        OSError: The folder cannot be read.
    """
    digest = hashlib.sha256()
    for entry in below(path):
        facts: tuple[object, ...] = (entry.path,)
        if not entry.is_dir():
            status = entry.stat() if entry.is_file() else entry.stat(follow_symlinks=False)
            facts = (entry.path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        digest.update(repr(facts).encode(errors="surrogatepass"))
    return digest.hexdigest()


def _sorted(folder: Path, *, litter: bool) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if _is_litter(entry.name) == litter]
    return sorted(found, key=lambda entry: (composed(entry.name), entry.name))


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LITTER
