from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.scale import encoded
from PIL import Image


def test_pictures_differ_in_a_comment_alone() -> None:
    jpeg = encoded.picture(0, 100)
    one, other = (encoded.with_comment(jpeg, number) for number in (1, 2))
    assert one != other
    pixels = [Image.open(io.BytesIO(it)).tobytes() for it in (jpeg, one, other)]
    assert pixels[0] == pixels[1] == pixels[2]


@pytest.mark.slow
@pytest.mark.parametrize("width", [300, 500])
def test_it_measures_a_few_images(tmp_path: Path, width: int) -> None:
    command = [sys.executable, "-m", "benchmarks.scale.encoded", "--images", "400"]
    command += ["--width", str(width), "--folder", str(tmp_path), "--out", str(tmp_path / "out")]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    found = json.loads((tmp_path / f"out/encoded-{width}.json").read_text())
    assert sum(found["counts"].values()) == 400
    assert (found["bytes_of_shards"] > found["bytes_of_images"]) is (width == 300)
    assert found["images_per_second"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
