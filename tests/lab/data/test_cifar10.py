"""CIFAR-10: both kinds of its files, what is refused, and what is said of files that are not what they should be."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bpfree.lab.data import cifar10, load
from bpfree.lab.data import download as downloading
from bpfree.lab.data.pickled import parse_pickle
from bpfree.lab.errors import DataError
from support import sheets
from support.fake_network import Answers

N = 20
FILES = [*cifar10.TRAIN, cifar10.TEST]
REAL = sheets.DATA / "CIFAR10"


def batch(number: int) -> dict[str, Any]:
    random = np.random.default_rng(number)
    labels = [(number + position) % 10 for position in range(N)]
    return {"data": random.integers(0, 256, (N, 3072), dtype=np.uint8), "labels": labels}


def meta() -> dict[str, Any]:
    return {"label_names": list(cifar10.CLASSES), "num_cases_per_batch": 10_000, "num_vis": 3072}


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the seven files, as Python 3 writes them, of few images."""
    monkeypatch.setattr(cifar10, "IMAGES", N)
    for number, name in enumerate(FILES):
        (tmp_path / name).write_bytes(pickle.dumps(batch(number)))
    (tmp_path / cifar10.META).write_bytes(pickle.dumps(meta()))
    return tmp_path


def python2(value: Any) -> bytes:
    """What cPickle of Python 2 writes with protocol 2: texts and an array's content are its strings of bytes."""
    if isinstance(value, dict):
        return b"}(" + b"".join(python2(key) + python2(entry) for key, entry in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(python2, value)) + b"e"
    if isinstance(value, str | bytes):
        text = value.encode() if isinstance(value, str) else value
        return b"T" + struct.pack("<i", len(text)) + text
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    array = value
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    kind = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"(" + b"".join(map(python2, array.shape)) + b"t"
    by_columns = not array.flags.c_contiguous
    content = python2(array.tobytes("F" if by_columns else "C"))
    return empty + b"(K\x01" + shape + kind + (b"\x88" if by_columns else b"\x89") + content + b"tb"


def pixels(x: torch.Tensor) -> np.ndarray:
    """Rows of bytes as the files have them, from normalized images."""
    mean = torch.tensor([0.4914, 0.4822, 0.4465]).reshape(3, 1, 1)
    std = torch.tensor([0.2470, 0.2435, 0.2616]).reshape(3, 1, 1)
    return ((x * std + mean) * 255).round().byte().reshape(len(x), -1).numpy()


def check(folder: Path) -> None:
    splits = load("cifar10", folder)
    expected = [batch(number) for number in range(6)]
    assert splits.train.x.shape == (5 * N, 3, 32, 32)
    assert splits.train.x.dtype == torch.float32
    assert splits.train.y.dtype == torch.int64
    assert splits.train.y.tolist() == [label for part in expected[:5] for label in part["labels"]]
    assert splits.evaluation.y.tolist() == expected[5]["labels"]
    assert np.array_equal(pixels(splits.train.x), np.concatenate([part["data"] for part in expected[:5]]))
    assert np.array_equal(pixels(splits.evaluation.x), expected[5]["data"])
    # A row is the red plane, the green one, the blue one; each is normalized by itself.
    blue = expected[5]["data"][3, 2 * 1024 + 5 * 32 + 7]
    assert float(splits.evaluation.x[3, 2, 5, 7]) == pytest.approx((blue / 255 - 0.4465) / 0.2616, abs=1e-6)


@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
def test_files_of_python_3(made: Path, protocol: int) -> None:
    for number, name in enumerate(FILES):
        (made / name).write_bytes(pickle.dumps(batch(number), protocol=protocol))
    check(made)


def test_files_of_python_2_in_the_folder_of_the_archive(made: Path) -> None:
    folder = made / "place" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for number, name in enumerate(FILES):
        content = batch(number)
        content["data"] = np.asfortranarray(content["data"]) if number == 2 else content["data"]
        content |= {"batch_label": f"training batch {number}", "filenames": ["a.png"] * N}
        (folder / name).write_bytes(b"\x80\x02" + python2(content) + b".")
    (folder / cifar10.META).write_bytes(b"\x80\x02" + python2(meta()) + b".")
    check(made / "place")


def test_keys_that_are_bytes(made: Path) -> None:
    for number, name in enumerate(FILES):
        (made / name).write_bytes(pickle.dumps({key.encode(): value for key, value in batch(number).items()}))
    check(made)


def test_what_is_written_down_of_the_files(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {name: (made / name).read_bytes() for name in (*FILES, cifar10.META)}
    described = load("cifar10", made).describe()
    assert described["checksums"] == {name: hashlib.sha256(text).hexdigest() for name, text in contents.items()}
    assert described["normalization"] == {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2470, 0.2435, 0.2616]}
    assert described["shape"] == [3, 32, 32]
    assert described["origin"].startswith("none is byte for byte as published")
    sums = {name: hashlib.md5(text).hexdigest() for name, text in contents.items()}
    monkeypatch.setattr(cifar10, "MD5", sums)
    assert load("cifar10", made).describe()["origin"] == "the published files, byte for byte"
    monkeypatch.setattr(cifar10, "MD5", sums | {"test_batch": "0"})
    assert "all but test_batch are byte for byte as published" in load("cifar10", made).describe()["origin"]


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo it ran > ran.txt",)


@pytest.mark.parametrize("name", ["data_batch_2", "batches.meta"])
def test_a_file_that_would_run_something_is_refused(made: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    (made / name).write_bytes(pickle.dumps(batch(0) | meta() | {"more": Evil()}))
    with pytest.raises(DataError, match=rf"{name}: it asks for (posix|nt)\.system"):
        load("cifar10", made)
    assert not (made / "ran.txt").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(b"text"), "bytes in place of a dictionary"),
        (pickle.dumps({"a": np.zeros(3)}), "array of type f8"),
        (pickle.dumps({"a": np.array([{}])}), "array of type O8"),
        (pickle.dumps({"a": np.ma.zeros(2, np.uint8)}), "asks for numpy.*ma"),
        (pickle.dumps({"a": np.float64(1)}), "asks for numpy.*scalar"),
        (b"\x80\x02cnumpy\nload\nU\x01x\x85R.", "asks for numpy.load"),
        (b"\x80\x02}U\x01acnumpy\nndarray\n)Rs.", "truncated or altered"),
        (b"\x80\x02cnumpy\nndarray\n}U\x06__init_N\x86b.", "truncated or altered"),
        (b"", "truncated or altered"),
        (b"GIF89a", "truncated or altered"),
    ],
)
def test_what_is_no_dictionary_of_plain_values(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=rf"the file.*{message}"):
        parse_pickle(content, "the file")


def test_plain_values_come_as_they_are() -> None:
    value = {"a": [1, 2.5, None, True, "é", (b"x", {"b": -(2**70)})], 3: np.arange(6, dtype=np.uint8).reshape(2, 3)}
    found = parse_pickle(pickle.dumps(value), "it")
    assert found["a"] == value["a"]
    assert np.array_equal(found["3"], value[3])
    found["3"][0, 0] = 9  # its own memory, to be written to


def test_a_truncated_file_is_named(made: Path) -> None:
    path = made / "data_batch_4"
    whole = path.read_bytes()
    for length in (0, 1, 50, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"data_batch_4 is truncated or altered"):
            load("cifar10", made)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": np.zeros((N, 3071), np.uint8)}, r"shape \(20, 3071\) in place of \(20, 3072\)"),
        ({"data": np.zeros((N - 1, 3072), np.uint8)}, r"shape \(19, 3072\)"),
        ({"data": "pixels"}, "shape None"),
        ({"labels": list(range(10))}, "10 labels in place of 20"),
        ({"labels": b"\0" * N}, "no labels in place of 20"),
        ({"labels": [10] * N}, "a label 10, which is no number from 0 to 9"),
        ({"labels": [-1] * N}, "a label -1"),
        ({"labels": [1.5] * N}, r"a label 1\.5"),
    ],
)
def test_a_batch_that_is_not_one_is_named(made: Path, change: dict[str, Any], message: str) -> None:
    (made / "test_batch").write_bytes(pickle.dumps(batch(5) | change))
    with pytest.raises(DataError, match=rf"test_batch is not a batch of CIFAR-10: .*{message}"):
        load("cifar10", made)


@pytest.mark.parametrize("names", [None, 3, ["cat", "dog"], np.zeros(10, np.uint8)])
def test_other_classes_are_refused(made: Path, names: object) -> None:
    (made / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    with pytest.raises(DataError, match=r"batches\.meta names other classes"):
        load("cifar10", made)


def test_what_is_missing_is_said(made: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"no CIFAR-10 file in .*empty or .*cifar-10-batches-py.*leave out --data-dir"):
        load("cifar10", empty)
    (made / "data_batch_3").unlink()
    with pytest.raises(DataError, match="data_batch_3 is missing in"):
        load("cifar10", made)


def test_the_archive_is_fetched_once_and_only_its_known_files_are_unpacked(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as archive:
        for name in (*FILES, cifar10.META):
            archive.add(made / name, f"cifar-10-batches-py/{name}")
        archive.add(made / cifar10.META, "../outside")
    answers = Answers({"https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz": held.getvalue()})
    monkeypatch.setattr(downloading.urllib.request, "urlopen", answers)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz could not be downloaded:\n.*SHA-256"):
        load("cifar10")
    monkeypatch.setattr(cifar10, "SHA256", hashlib.sha256(held.getvalue()).hexdigest())
    assert len(load("cifar10").train) == len(load("cifar10").train) == 5 * N
    assert len(answers.asked) == 2
    cache = tmp_path / "cache"
    kept = {path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file()}
    assert kept == {f"bpfree/cifar10/cifar-10-batches-py/{name}" for name in (*FILES, cifar10.META)}
    # A process that was killed may leave an archive, and somebody else half of one.
    (cache / "bpfree/cifar10/cifar-10-batches-py" / cifar10.META).unlink()
    (cache / "bpfree/cifar10/cifar-10-python.tar.gz").write_bytes(held.getvalue()[:1000])
    assert len(load("cifar10").train) == 5 * N


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/CIFAR10")
def test_real_images_have_the_mean_and_deviation_that_they_are_normalized_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar10, "IMAGES", sheets.IMAGES)
    labels = np.load(REAL / "labels.npz")
    for number, name in enumerate(FILES):
        part = "test" if name == cifar10.TEST else "train"
        known = labels[f"{part}_labels"][sheets.IMAGES * (number % 5) :][: sheets.IMAGES].tolist()
        rows = sheets.pictures(REAL / f"{part}_{number % 5:02}.webp")
        (tmp_path / name).write_bytes(pickle.dumps({"data": rows, "labels": known}))
    (tmp_path / cifar10.META).write_bytes(pickle.dumps(meta()))
    splits = load("cifar10", tmp_path)
    sheets.assert_normalized(splits.train.x)
    assert splits.evaluation.y.bincount().tolist() == [100] * 10
