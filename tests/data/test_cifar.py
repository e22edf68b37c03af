"""The CIFAR sources against a small server that plays the publisher's, on 127.0.0.1."""

import hashlib
import http.server
import io
import os
import pickle
import socket
import tarfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision import datasets

from smallbatch.config.params import DatasetConfig
from smallbatch.data.cifar import open_cifar
from smallbatch.data.prepare import prepare
from smallbatch.errors import UserError

FILES = {"data_batch_1": 6, "test_batch": 4}
ARCHIVE = "cifar-10-python.tar.gz"
BASE = "cifar-10-batches-py"


ARRAY = (
    b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K%cM\x00\x0c\x86"
    b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T%b%btb"
)
"""Python 2's pickle of an array of N rows of 3,072 bytes: N, their size and they are left out."""


def pickled(content: Any) -> bytes:
    """A pickle as Python 2 wrote the published files, in which all text is bytes."""

    def value(it: Any) -> bytes:
        if isinstance(it, dict):
            return b"}(" + b"".join(value(key) + value(it[key]) for key in it) + b"u"
        if isinstance(it, list):
            return b"](" + b"".join(map(value, it)) + b"e"
        if isinstance(it, str):
            return b"U" + bytes([len(it)]) + it.encode("latin1")
        if isinstance(it, int):
            return b"K" + bytes([it])
        return ARRAY % (len(it), it.size.to_bytes(4, "little"), it.tobytes())

    return b"\x80\x02" + value(content) + b"."


def batch(seed: int, count: int) -> dict[str, Any]:
    data = np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)
    return {"data": data, "labels": [row % 2 for row in range(count)]}


def archived(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A tiny archive in the published layout; torchvision's checksums are set to match it."""
    members = {
        name: pickled(batch(seed, count)) for seed, (name, count) in enumerate(FILES.items())
    }
    members["batches.meta"] = pickled({"label_names": ["plane", "car"]})
    content = archived({f"{BASE}/{name}": content for name, content in members.items()})
    sums = {name: hashlib.md5(content).hexdigest() for name, content in members.items()}
    kind = datasets.CIFAR10
    monkeypatch.setattr(kind, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(kind, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": sums["batches.meta"]})
    monkeypatch.setattr(kind, "tgz_md5", hashlib.md5(content).hexdigest())
    return content


class Publisher:
    """Serves ``content`` at any path and counts the requests."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.requests = 0
        publisher = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(publisher.content)))
                self.end_headers()

            def do_GET(self) -> None:
                publisher.requests += 1
                self.do_HEAD()
                self.wfile.write(publisher.content)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/{ARCHIVE}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def publisher(archive: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = Publisher(archive)
    monkeypatch.setattr(datasets.CIFAR10, "url", served.url)
    yield served
    served.server.shutdown()
    served.server.server_close()


@pytest.fixture
def no_network(archive: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that nothing listens on."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setattr(datasets.CIFAR10, "url", f"http://127.0.0.1:{port}/{ARCHIVE}")


def test_downloads_once_and_reads(publisher: Publisher, tmp_path: Path) -> None:
    open_cifar("cifar10", tmp_path / "raw", None)
    requests = publisher.requests
    source = open_cifar("cifar10", tmp_path / "raw", None)
    assert publisher.requests == requests
    assert [path.name for path in (tmp_path / "raw").iterdir()] == [BASE]
    assert source.classes == ("plane", "car")
    assert source.train.labels.tolist() == [0, 1] * 3
    expected = batch(0, 6)["data"].reshape(6, 3, 32, 32)
    np.testing.assert_array_equal(source.train.read(np.array([1, 4])), expected[[1, 4]])
    expected = batch(1, 4)["data"].reshape(4, 3, 32, 32)
    np.testing.assert_array_equal(source.test.read(np.arange(4)), expected)
    assert open_cifar("cifar10", tmp_path / "raw", 8).test.read(np.arange(2)).shape == (2, 3, 8, 8)


def test_default_folder_is_under_raw(publisher: Publisher, tmp_path: Path) -> None:
    meta = prepare(DatasetConfig(name="c10", source="cifar10"), tmp_path / "data")
    assert meta.counts == {"train": 6, "validation": 0, "test": 4}
    assert (tmp_path / "data/raw/cifar10" / BASE).is_dir()
    assert (tmp_path / "data/prepared/c10/meta.json").is_file()


@pytest.mark.usefixtures("no_network")
def test_no_network_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    timeout = socket.getdefaulttimeout()
    with pytest.raises(UserError) as caught:
        prepare(DatasetConfig(name="c10", source="cifar10"), tmp_path / "data")
    message = str(caught.value)
    assert "\n" not in message
    assert datasets.CIFAR10.url in message
    assert f"put the intact {ARCHIVE} into {tmp_path}/data/raw/cifar10" in message
    assert list(tmp_path.iterdir()) == []
    assert socket.getdefaulttimeout() == timeout


@pytest.mark.usefixtures("no_network")
def test_archive_put_there_by_hand_is_used_and_kept(archive: bytes, tmp_path: Path) -> None:
    (tmp_path / ARCHIVE).write_bytes(archive)
    assert len(open_cifar("cifar10", tmp_path, None).train.labels) == 6
    assert (tmp_path / ARCHIVE).read_bytes() == archive


@pytest.mark.usefixtures("no_network")
def test_damaged_archive_put_there_by_hand_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ARCHIVE).write_bytes(b"damaged")
    with pytest.raises(UserError, match="cannot download"):
        open_cifar("cifar10", tmp_path, None)
    assert [path.name for path in tmp_path.iterdir()] == [ARCHIVE]
    assert (tmp_path / ARCHIVE).read_bytes() == b"damaged"


@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_damaged_download_leaves_nothing(publisher: Publisher, tmp_path: Path, damage: str) -> None:
    content = publisher.content
    publisher.content = content[:-100] if damage == "truncated" else content[:-1] + b"x"
    with pytest.raises(UserError, match="cannot download"):
        open_cifar("cifar10", tmp_path / "raw", None)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_download_leaves_nothing(
    publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("smallbatch.durable.write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        open_cifar("cifar10", tmp_path / "raw", None)
    assert list(tmp_path.iterdir()) == []


def test_damaged_copy_is_named_and_not_touched(publisher: Publisher, tmp_path: Path) -> None:
    open_cifar("cifar10", tmp_path, None)
    requests = publisher.requests
    (tmp_path / BASE / "data_batch_1").write_bytes(b"damaged")
    with pytest.raises(UserError, match=rf"{BASE}: damaged .*remove this folder"):
        open_cifar("cifar10", tmp_path, None)
    assert (tmp_path / BASE / "data_batch_1").read_bytes() == b"damaged"
    assert publisher.requests == requests


def test_cifar100_uses_the_fine_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = datasets.CIFAR100
    base = tmp_path / kind.base_folder
    base.mkdir()
    names = ["apple", "fish"]
    contents = {
        "train": {"data": batch(0, 4)["data"], "fine_labels": [1, 0, 1, 0], "coarse_labels": [0]},
        "test": {"data": batch(1, 2)["data"], "fine_labels": [0, 1], "coarse_labels": [0]},
        "meta": {"fine_label_names": names, "coarse_label_names": ["x"]},
    }
    for name, content in contents.items():
        (base / name).write_bytes(pickled(content))
        digest = hashlib.md5((base / name).read_bytes()).hexdigest()
        if name == "meta":
            monkeypatch.setattr(kind, "meta", kind.meta | {"md5": digest})
        else:
            monkeypatch.setattr(kind, f"{name}_list", [[name, digest]])
    source = open_cifar("cifar100", tmp_path, None)
    assert source.classes == ("apple", "fish")
    assert source.train.labels.tolist() == [1, 0, 1, 0]
    assert source.test.labels.tolist() == [0, 1]


def test_is_what_torchvision_reads(tmp_path: Path) -> None:
    base = tmp_path / BASE
    base.mkdir()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind = datasets.CIFAR10
        sums: list[list[str]] = []
        for name, count in (("data_batch_1", 7), ("data_batch_2", 8), ("test_batch", 9)):
            (base / name).write_bytes(pickled(batch(count, count)))
            sums.append([name, md5_of(base / name)])
        (base / "batches.meta").write_bytes(pickled({"label_names": ["b", "a"]}))
        patch.setattr(kind, "train_list", sums[:2])
        patch.setattr(kind, "test_list", sums[2:])
        patch.setattr(kind, "meta", kind.meta | {"md5": md5_of(base / "batches.meta")})
        source = open_cifar("cifar10", tmp_path, None)
        for train, split in ((True, source.train), (False, source.test)):
            theirs = kind(str(tmp_path), train=train)
            assert source.classes == tuple(theirs.classes)
            assert split.labels.tolist() == theirs.targets
            read = split.read(np.arange(len(theirs.targets)))
            np.testing.assert_array_equal(read, theirs.data.transpose(0, 3, 1, 2))


def md5_of(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


class Trap:
    """A pickle of it makes a folder where it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.folder),))


@pytest.fixture
def swapped(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, bytes], None]:
    """Another content takes a file's place as soon as somebody has its checksum."""
    md5, swaps = hashlib.md5, dict[str, tuple[Path, bytes]]()

    class Swapping:
        def __init__(self, data: bytes = b"", **_: Any) -> None:
            self.sum = md5(data)
            self.update = self.sum.update

        def hexdigest(self) -> str:
            digest = self.sum.hexdigest()
            if digest in swaps:
                path, content = swaps[digest]
                path.write_bytes(content)
            return digest

    def swap(path: Path, content: bytes) -> None:
        swaps[md5(path.read_bytes()).hexdigest()] = (path, content)
        monkeypatch.setattr(hashlib, "md5", Swapping)

    return swap


@pytest.mark.usefixtures("no_network")
def test_files_swapped_after_their_check_are_not_read(
    archive: bytes, tmp_path: Path, swapped: Callable[[Path, bytes], None]
) -> None:
    (tmp_path / ARCHIVE).write_bytes(archive)
    open_cifar("cifar10", tmp_path, None)
    for name in (*FILES, "batches.meta"):
        swapped(tmp_path / BASE / name, pickle.dumps(Trap(tmp_path / "sprung")))
    source = open_cifar("cifar10", tmp_path, None)
    assert not (tmp_path / "sprung").exists()
    expected = batch(0, 6)["data"].reshape(6, 3, 32, 32)
    np.testing.assert_array_equal(source.train.read(np.arange(6)), expected)
    assert source.classes == ("plane", "car")


@pytest.mark.usefixtures("no_network")
def test_an_archive_swapped_after_its_check_is_not_extracted(
    archive: bytes, tmp_path: Path, swapped: Callable[[Path, bytes], None]
) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / ARCHIVE).write_bytes(archive)
    other = archived({str(tmp_path / "escaped"): b"x", f"{BASE}/more": b"x"})
    swapped(tmp_path / "raw" / ARCHIVE, other)
    assert len(open_cifar("cifar10", tmp_path / "raw", None).train.labels) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


@pytest.mark.usefixtures("no_network")
def test_of_an_archive_only_the_known_files_are_extracted(
    archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        members = {name: file.read() for name in tar.getnames() if (file := tar.extractfile(name))}
    wide = archived(members | {f"{BASE}/more": b"x", str(tmp_path / "escaped"): b"x"})
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(wide).hexdigest())
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / ARCHIVE).write_bytes(wide)
    open_cifar("cifar10", tmp_path / "raw", None)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]
    found = {path.name for path in (tmp_path / "raw" / BASE).iterdir()}
    assert found == {*FILES, "batches.meta"}


@pytest.mark.usefixtures("no_network")
def test_a_pickle_that_calls_anything_is_refused_even_with_the_right_checksum(
    archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ARCHIVE).write_bytes(archive)
    open_cifar("cifar10", tmp_path, None)
    (tmp_path / BASE / "test_batch").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    sums = [["test_batch", md5_of(tmp_path / BASE / "test_batch")]]
    monkeypatch.setattr(datasets.CIFAR10, "test_list", sums)
    with pytest.raises(UserError, match=r"damaged \(found a call of posix.mkdir\)"):
        open_cifar("cifar10", tmp_path, None)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.usefixtures("archive")
def test_a_huge_file_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smallbatch.data.cifar._LARGEST", 2**20)
    (tmp_path / BASE).mkdir()
    with (tmp_path / BASE / "data_batch_1").open("wb") as file:
        file.truncate(2**42)
    with pytest.raises(UserError, match=r"damaged \(the checksum of data_batch_1 is not"):
        open_cifar("cifar10", tmp_path, None)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (ARCHIVE, r"cannot download .*found a FIFO, allowed: a regular file"),
        (f"{BASE}/data_batch_1", r"cifar-10-batches-py: damaged"),
    ],
)
def test_a_fifo_is_refused_at_once(tmp_path: Path, place: str, message: str) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / place)
    with pytest.raises(UserError, match=message):
        open_cifar("cifar10", tmp_path, None)
