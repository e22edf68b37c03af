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


def no_folder(path: Path) -> str:
    """What a path is found to be that is no folder, for an error line."""
    return f"found {path}, which {'is not a folder' if path.exists() else 'does not exist'}"


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
    """What changes when files below a folder, or one file, do: of names, sizes and times a digest.

    Also of the times of the last change of any kind, which no program that copies sets.

    Raises:
        OSError: It cannot be read.
    """
    digest = hashlib.sha256()
    if path.is_file():
        return hashlib.sha256(_facts(str(path), path.stat())).hexdigest()
    for entry in below(path):
        status = None
        if not entry.is_dir():
            status = entry.stat() if entry.is_file() else entry.stat(follow_symlinks=False)
        digest.update(_facts(entry.path, status))
    return digest.hexdigest()


def _facts(path: str, status: os.stat_result | None) -> bytes:
    facts: tuple[object, ...] = (path,)
    if status is not None:
        facts = (path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return repr(facts).encode(errors="surrogatepass")


def _sorted(folder: Path, *, litter: bool) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if _is_litter(entry.name) == litter]
    return sorted(found, key=lambda entry: (composed(entry.name), entry.name))


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LITTER
