"""A folder's files as a person sees them: in order, and without what systems leave there."""

import errno
import hashlib
import os
import stat
import unicodedata
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
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if not _is_litter(entry.name)]
    return sorted(found, key=lambda entry: (composed(entry.name), entry.name))


def listing(path: Path) -> str:
    """What changes when files below a folder do: a digest of their names, sizes and times.

    Raises:
        OSError: The folder cannot be read.
    """
    digest, seen, folders = hashlib.sha256(), set[tuple[int, int]](), [path]
    while folders:
        folder = folders.pop()
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:  # links may lead in a circle
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in visible(folder):
            if entry.is_dir():
                folders.append(Path(entry.path))
                facts = (entry.path,)
            else:
                status = entry.stat() if entry.is_file() else entry.stat(follow_symlinks=False)
                facts = (entry.path, status.st_size, status.st_mtime_ns)
            digest.update(repr(facts).encode(errors="surrogatepass"))
    return digest.hexdigest()


def check_regular(path: Path) -> None:
    """Refuse a FIFO, a socket and a device, since reading one may never end.

    Raises:
        OSError: The path leads to one, or nowhere.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        kind = "FIFO" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "device"
        raise OSError(errno.EINVAL, f"found a {kind}, allowed: a regular file", str(path))


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LITTER
