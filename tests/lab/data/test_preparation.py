"""Images of another size and with other numbers for their pixels than their data set comes with."""

from __future__ import annotations

import pytest
import torch

from bpfree.lab.data import ImageSettings, load
from bpfree.lab.data.lazy import Lazy
from bpfree.lab.data.preparation import prepared
from bpfree.lab.errors import SettingsError
from support import tiny_lab


def test_images_come_as_they_are_unless_asked_otherwise() -> None:
    splits = tiny_lab.splits()
    assert prepared(splits, ImageSettings()) is splits
    assert load("digits", images=ImageSettings(size=28)).describe() == load("digits").describe()


def test_pixels_between_0_and_1() -> None:
    plain = load("digits")
    found = load("digits", images=ImageSettings(mean=[0.0], std=[1.0]))
    torch.testing.assert_close(found.train.x, plain.train.x * 0.3081 + 0.1307, atol=1e-6, rtol=0)
    assert float(found.evaluation.x.min()) == pytest.approx(0, abs=1e-6)
    assert float(found.evaluation.x.max()) == pytest.approx(1, abs=1e-6)
    assert found.describe()["normalization"] == {"mean": [0.0], "std": [1.0]}


def test_one_of_the_two_can_be_given_alone() -> None:
    found = load("digits", images=ImageSettings(std=[0.5]))
    assert found.describe()["normalization"] == {"mean": [0.1307], "std": [0.5]}
    torch.testing.assert_close(found.train.x, load("digits").train.x * 0.3081 / 0.5)


def test_another_size_is_made_batch_by_batch() -> None:
    splits = tiny_lab.splits()
    found = prepared(splits, ImageSettings(size=16))
    assert found.shape == (1, 16, 16)
    assert isinstance(found.train.x, Lazy)
    rows = found.train.x[:5]
    # Each pixel becomes four, which bilinear interpolation puts a quarter of a pixel beside it.
    x = splits.train.x[:5]
    expected = (9 * x[:, :, 3, 3] + 3 * x[:, :, 3, 4] + 3 * x[:, :, 4, 3] + x[:, :, 4, 4]) / 16
    torch.testing.assert_close(rows[:, :, 7, 7], expected)
    torch.testing.assert_close(rows.mean((1, 2, 3)), x.mean((1, 2, 3)), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, r"--images\.size 0"),
        ({"std": [0.0]}, r"--images\.std"),
        ({"mean": [0.5, 0.5, 0.5]}, r"--images\.mean \[0\.5, 0\.5, 0\.5\]: the images have 1 channel"),
    ],
)
def test_settings_that_mean_nothing(settings: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load("digits", images=ImageSettings(**settings))


def test_text_has_no_images() -> None:
    with pytest.raises(SettingsError, match="--images: text has no images"):
        load("text", images=ImageSettings(size=3))
