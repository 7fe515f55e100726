"""CIFAR-100: its two files, fine labels, and what is said of files that are not what they should be."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bpfree.lab.data import cifar100, load
from bpfree.lab.errors import DataError
from support import sheets

COUNTS = {"train": 300, "test": 200}
REAL = sheets.DATA / "CIFAR100"


def batch(name: str) -> dict[str, Any]:
    n = COUNTS[name]
    random = np.random.default_rng(n)
    fine = [position % 100 for position in range(n)]
    coarse = [position % 20 for position in range(n)]
    return {"data": random.integers(0, 256, (n, 3072), dtype=np.uint8), "fine_labels": fine, "coarse_labels": coarse}


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cifar100, "IMAGES", COUNTS)
    for name in COUNTS:
        (tmp_path / name).write_bytes(pickle.dumps(batch(name)))
    return tmp_path


@pytest.mark.parametrize("below", ["", "cifar-100-python"])
def test_images_have_their_fine_labels(made: Path, below: str) -> None:
    folder = made / "place" / below
    folder.mkdir(parents=True)
    for name in COUNTS:
        (made / name).rename(folder / name)
    splits = load("cifar100", made / "place")
    assert (splits.name, splits.classes, splits.shape) == ("cifar100", 100, (3, 32, 32))
    assert splits.train.y.tolist() == batch("train")["fine_labels"]
    assert splits.evaluation.y.tolist() == batch("test")["fine_labels"]
    # A row is the red plane, the green one, the blue one; each is normalized by itself.
    green = batch("test")["data"][9, 1024 + 4 * 32 + 6]
    assert float(splits.evaluation.x[9, 1, 4, 6]) == pytest.approx((green / 255 - 0.4865) / 0.2564, abs=1e-6)


def test_what_is_written_down_of_the_files(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {name: (made / name).read_bytes() for name in COUNTS}
    described = load("cifar100", made).describe()
    assert described["checksums"] == {name: hashlib.sha256(text).hexdigest() for name, text in contents.items()}
    assert described["origin"].startswith("none is byte for byte as published")
    monkeypatch.setattr(cifar100, "MD5", {name: hashlib.md5(text).hexdigest() for name, text in contents.items()})
    assert load("cifar100", made).describe()["origin"] == "the published files, byte for byte"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fine_labels": [100] * 200}, "a label 100, which is no number from 0 to 99"),
        ({"fine_labels": None}, "no labels in place of 200"),
        ({"data": np.zeros((200, 3071), np.uint8)}, r"shape \(200, 3071\) in place of \(200, 3072\)"),
    ],
)
def test_a_file_that_is_something_else_is_named(made: Path, change: dict[str, Any], message: str) -> None:
    (made / "test").write_bytes(pickle.dumps(batch("test") | change))
    with pytest.raises(DataError, match=rf"test is not a batch of CIFAR-100: .*{message}"):
        load("cifar100", made)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo it ran > ran.txt",)


def test_a_file_that_would_run_something_is_refused(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    (made / "train").write_bytes(pickle.dumps(batch("train") | {"more": Evil()}))
    with pytest.raises(DataError, match=r"train: it asks for (posix|nt)\.system"):
        load("cifar100", made)
    assert not (made / "ran.txt").exists()


def test_what_is_missing_is_said(made: Path) -> None:
    (made / "train").unlink()
    with pytest.raises(DataError, match="train is missing in"):
        load("cifar100", made)
    (made / "test").unlink()
    with pytest.raises(DataError, match=r"no CIFAR-100 file in .*cifar-100-python\.tar\.gz.*train, test"):
        load("cifar100", made)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/CIFAR100")
def test_real_images_have_the_mean_and_deviation_that_they_are_normalized_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"train": 5 * sheets.IMAGES, "test": sheets.IMAGES}
    monkeypatch.setattr(cifar100, "IMAGES", counts)
    labels = np.load(REAL / "labels.npz")
    for name, count in counts.items():
        rows = [sheets.pictures(REAL / f"{name}_{number:02}.webp") for number in range(count // sheets.IMAGES)]
        kinds = {f"{kind}_labels": labels[f"{name}_{kind}_labels"][:count].tolist() for kind in ("fine", "coarse")}
        (tmp_path / name).write_bytes(pickle.dumps({"data": np.concatenate(rows)} | kinds))
    splits = load("cifar100", tmp_path)
    sheets.assert_normalized(splits.train.x)
    assert splits.train.y.bincount().tolist() == [50] * 100
    assert splits.evaluation.y.bincount().tolist() == [10] * 100
