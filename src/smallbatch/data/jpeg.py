"""What libjpeg only warns of, which Pillow does not pass on."""

import re

_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")  # not in the data of a scan, nor a restart
_WITHOUT_LENGTH = (0x01, 0xD8)
_END = 0xD9


def check_end(content: bytes) -> None:
    """Make sure that a JPEG has its end marker: one that was copied in part may end in zeros.

    Raises:
        ValueError: It has none behind its first image; libjpeg would make up the rest.
    """
    at = 0
    while found := _MARKER.search(content, at):
        at, code = found.end(), found[1][0]
        if code == _END:
            return
        if code not in _WITHOUT_LENGTH:
            at += int.from_bytes(content[at : at + 2], "big")
    raise ValueError("it ends without an end marker")
