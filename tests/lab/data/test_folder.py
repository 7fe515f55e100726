"""Pictures in folders: what is read of them, when, and what is said of folders that are laid out otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bpfree.lab.data import Images, ImageSettings, folder, load
from bpfree.lab.data.batches import InOrder, batches
from bpfree.lab.data.splits import hold_out
from bpfree.lab.errors import DataError, SettingsError

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
COLOURS = {"ant": (255, 0, 0), "bee": (0, 255, 0), "cat": (0, 0, 255)}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Three classes of one colour each, in wide and in high pictures."""
    for part, n in (("train", 4), ("val", 2)):
        for name, colour in COLOURS.items():
            place = tmp_path / part / name
            place.mkdir(parents=True)
            for number in range(n):
                size = (40, 30) if number % 2 else (20, 50)
                Image.new("RGB", size, colour).save(place / f"{number}.png")
    return tmp_path


def test_pictures_have_the_class_of_their_folder(made: Path) -> None:
    splits = load("folder", made, images=ImageSettings(size=16))
    assert (splits.name, splits.classes, splits.shape) == ("folder", 3, (3, 16, 16))
    assert splits.train.y.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert splits.evaluation.y.tolist() == [0, 0, 1, 1, 2, 2]
    x, y = next(iter(batches(splits.train, InOrder(12, 12))))
    assert x.dtype == torch.float32
    expected = torch.tensor([COLOURS[name] for name in COLOURS]) / 255
    torch.testing.assert_close(x, ((expected - MEAN) / STD)[y].reshape(12, 3, 1, 1).expand(x.shape))


def test_the_middle_is_kept_at_its_proportions(tmp_path: Path) -> None:
    # 64 x 16 pixels, of which the middle 16 x 16 have a white right half.
    pixels = np.zeros((16, 64, 3), np.uint8)
    pixels[:, 32:40] = 255
    for part in ("train", "test"):
        (tmp_path / part / "only").mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / part / "only" / "a.png")
    splits = load("folder", tmp_path, images=ImageSettings(size=16, mean=[0, 0, 0], std=[1, 1, 1]))
    assert splits.measured_on == "test"
    expected = torch.zeros(1, 3, 16, 16)
    expected[..., 8:] = 1
    assert torch.equal(splits.train.x[:], expected)
    larger = load("folder", tmp_path, images=ImageSettings(size=32, mean=[0, 0, 0], std=[1, 1, 1])).train.x[:]
    assert float(larger[..., :15].max()) == 0
    assert float(larger[..., 17:31].min()) == 1  # the last column also sees what is beside the middle


def test_pictures_are_decoded_when_they_are_asked_for_and_no_others(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    decode = folder.picture
    monkeypatch.setattr(folder, "picture", lambda path, size: asked.append(path.parent.name) or decode(path, size))
    splits = load("folder", made)
    assert splits.shape == (3, 224, 224)
    held = hold_out(splits, 3, seed=0)
    taken = splits.evaluation.take(torch.tensor([5, 0]))
    assert isinstance(taken, Images)
    assert (len(held.train), len(held.evaluation), len(taken)) == (9, 3, 2)
    assert asked == []
    assert taken.x[1:].shape == (1, 3, 224, 224)
    assert asked == ["ant"]
    assert splits.train.x.index_select(0, torch.tensor([8, 4])).shape == (2, 3, 224, 224)
    assert sorted(asked[1:]) == ["bee", "cat"]


def test_jpegs_of_grey_and_any_case_of_ending_are_read(tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / part / "only").mkdir(parents=True)
        Image.new("L", (30, 30), 51).save(tmp_path / part / "only" / "A.JPEG")
        (tmp_path / part / "only" / "notes.txt").write_text("no picture")
    splits = load("folder", tmp_path, images=ImageSettings(size=8, mean=[0, 0, 0], std=[1, 1, 1]))
    torch.testing.assert_close(splits.train.x[:], torch.full((1, 3, 8, 8), 0.2), atol=0.01, rtol=0)


def test_other_files_are_other_data(made: Path) -> None:
    first = load("folder", made).describe()
    assert first["checksums"].keys() == {"train", "val"}
    assert first["measured_on"] == "validation"
    Image.new("RGB", (9, 9)).save(made / "train" / "bee" / "9.png")
    second = load("folder", made).describe()
    assert second["checksums"]["train"] != first["checksums"]["train"]
    assert second["checksums"]["val"] == first["checksums"]["val"]


def test_a_picture_that_cannot_be_decoded_is_named(made: Path) -> None:
    (made / "train" / "bee" / "1.png").write_bytes(b"\x89PNG half of")
    splits = load("folder", made)
    with pytest.raises(DataError, match=r"bee.1\.png cannot be decoded"):
        splits.train.x[:]


def test_a_folder_that_is_laid_out_otherwise_is_named(made: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--data-dir DIR.*train/CLASS/\*\.jpg"):
        load("folder")
    with pytest.raises(DataError, match="train has no folder val or test"):
        load("folder", made / "train")
    (made / "val" / "dog").mkdir()
    with pytest.raises(DataError, match=r"val.dog: .*train has no class of this name"):
        load("folder", made)
    (made / "train" / "dog").mkdir()
    with pytest.raises(DataError, match=r"dog holds no picture \(\.jpg, \.jpeg, \.png\)"):
        load("folder", made)
    (tmp_path / "empty" / "val").mkdir(parents=True)
    with pytest.raises(DataError, match="train is missing or holds no folders"):
        load("folder", tmp_path / "empty")


def test_normalization_is_of_three_channels(made: Path) -> None:
    with pytest.raises(SettingsError, match=r"--images\.mean \[0\.5\]: the images have 3 channel"):
        load("folder", made, images=ImageSettings(mean=[0.5]))
