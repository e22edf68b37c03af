"""What the pixels of prepared images depend on besides settings and files."""

import hashlib
from importlib import metadata
from pathlib import Path

from PIL import features


def decoder_digest() -> str:
    """SHA-256 (hex) of code, libraries and codecs that read images."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    libraries = {name: metadata.version(name) for name in ("numpy", "pillow", "scikit-learn")}
    codecs = {name: features.version(name) for name in ("jpg", "libjpeg_turbo", "webp", "zlib")}
    digest.update(repr((libraries, codecs)).encode())
    return digest.hexdigest()
