"""What libjpeg only warns of, which Pillow does not pass on."""

import re

_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")  # not in the data of a scan, nor a restart
_WITHOUT_LENGTH = (0x01, 0xD8)
_END, _SCAN = 0xD9, 0xDA
MOST_SCANS = 100
"""A progressive JPEG has about ten. Each takes a pass over the whole picture, however short."""


def check(content: bytes) -> None:
    """Make sure that a JPEG has its end marker and no endless number of scans.

    One that was copied in part may end in zeros, of which libjpeg would make up the rest. One that
    was made to hold its reader up has thousands of scans of a few bytes.

    Raises:
        ValueError: Its first image has no end marker, or more than MOST_SCANS scans.
    """
    at = scans = 0
    while found := _MARKER.search(content, at):
        at, code = found.end(), found[1][0]
        if code == _END:
            return
        scans += code == _SCAN
        if scans > MOST_SCANS:
            raise ValueError(f"it has more than {MOST_SCANS} scans")
        if code not in _WITHOUT_LENGTH:
            at += int.from_bytes(content[at : at + 2], "big")
    raise ValueError("it ends without an end marker")
