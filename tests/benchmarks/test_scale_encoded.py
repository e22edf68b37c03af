from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.scale import encoded
from PIL import Image

from smallbatch.data.encode import encode
from smallbatch.data.split import Encoded


def test_every_number_has_another_picture() -> None:
    jpeg = encoded.picture(0, 500)
    numbers = [0, *(2**bit for bit in range(18)), 3, 199_999]
    made = [encoded.varied(jpeg, number) for number in numbers]
    assert made[0] == jpeg
    stored = {encode(Encoded("a", it), 256, 9).content for it in made}
    assert len(stored) == len(numbers)
    assert {Image.open(io.BytesIO(it)).size for it in made} == {(500, 375)}


@pytest.mark.slow
@pytest.mark.parametrize("width", [300, 500])
def test_it_measures_a_few_images(tmp_path: Path, width: int) -> None:
    command = [sys.executable, "-m", "benchmarks.scale.encoded", "--images", "400"]
    command += [
        "--updates",
        "2",
        "--width",
        str(width),
        "--folder",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    found = json.loads((tmp_path / f"out/encoded-{width}.json").read_text())
    assert sum(found["counts"].values()) == 400
    assert (found["bytes_of_shards"] > found["bytes_of_images"]) is (width == 300)
    assert found["images_per_second"] > 0
    assert found["training_peak_mebibytes"] >= found["training_mebibytes_after_ten_updates"] > 0
    assert found["counts"]["validation"] < 12  # which is by content: no two are the same
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
