"""Crops and flips: what they may do to an image, how often, and that a resumed run sees the same images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bpfree.lab.data import Images, Normalization
from bpfree.lab.data.augmentation import Augmentation, augmented
from bpfree.lab.data.batches import Shuffled, augmented_batches
from bpfree.lab.display.terminal import Display
from bpfree.lab.errors import SettingsError
from bpfree.lab.options.training import CompareOptions
from bpfree.lab.running.runs import run
from support import tiny_lab

BLACK = torch.tensor([-1.0, -2.0])
WHOLE = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}


def images(n: int, height: int = 6, width: int = 5) -> Tensor:
    """Two channels, every pixel another number."""
    return torch.arange(n * 2.0 * height * width).reshape(n, 2, height, width)


def apply(x: Tensor, seed: int = 0, black: Tensor = BLACK, **options: object) -> Tensor:
    return augmented(x, Augmentation(**options), black, torch.Generator().manual_seed(seed))


def crops(image: Tensor, padding: int, flips: bool) -> dict[bytes, tuple[int, int, bool]]:
    """Every image that may come of one, by its bytes."""
    channels, height, width = image.shape
    framed = BLACK.reshape(2, 1, 1).expand(channels, height + 2 * padding, width + 2 * padding).clone()
    framed[:, padding : padding + height, padding : padding + width] = image
    found = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            part = framed[:, top : top + height, left : left + width]
            found[part.contiguous().numpy().tobytes()] = (top, left, False)
            if flips:
                found[part.flip(2).contiguous().numpy().tobytes()] = (top, left, True)
    return found


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("padding", [0, 2])
def test_crops_and_flips_are_all_there_and_about_as_often(padding: int, flip: bool) -> None:
    n = 2000
    x = images(1).expand(n, -1, -1, -1)
    possible = crops(x[0], padding, flip)
    found = [possible[row.numpy().tobytes()] for row in apply(x, crop_padding=padding, flip=flip)]
    counts = [found.count(place) for place in possible.values()]
    expected = n / len(possible)
    assert len(possible) == (2 * padding + 1) ** 2 * (1 + flip)
    # Five standard deviations of a count.
    assert all(abs(count - expected) <= 5 * expected**0.5 for count in counts)


def test_every_image_is_drawn_for_by_itself_and_the_batch_is_not_changed() -> None:
    x = images(64)
    before = x.clone()
    out = apply(x, crop_padding=1, flip=True)
    assert torch.equal(x, before)
    places = [crops(image, 1, True)[row.numpy().tobytes()] for image, row in zip(x, out, strict=True)]
    assert len(set(places)) > 9


def test_the_whole_image_is_a_part_of_it() -> None:
    x = images(3)
    torch.testing.assert_close(apply(x, resized_crop_scale=(1.0, 1.0), resized_crop_ratio=(5 / 6, 5 / 6))[:], x * 1.0)


def test_a_resized_part_is_a_ramp_of_the_ramp() -> None:
    # Pixels are their own coordinates, which bilinear interpolation keeps: a part is a line, from its edges.
    n, size = 500, 64
    across = ((torch.arange(size) + 0.5) / size).expand(size, size)
    x = torch.stack([across, across.T]).expand(n, -1, -1, -1)
    out = apply(x, resized_crop_scale=(0.2, 0.6), resized_crop_ratio=(0.5, 2.0))
    inner = out[:, :, 8:-8, 8:-8]
    slope = torch.stack([inner[:, 0].diff(dim=2).mean((1, 2)), inner[:, 1].diff(dim=1).mean((1, 2))], dim=1) * size
    first = torch.stack([out[:, 0, 32, 32], out[:, 1, 32, 32]], dim=1) - slope * 32.5 / size
    area, aspect = slope.prod(1), slope[:, 0] / slope[:, 1]
    assert 0.2 - 1e-3 < float(area.min()) < 0.22
    assert 0.58 < float(area.max()) < 0.6 + 1e-3
    assert 0.5 - 1e-2 < float(aspect.min()) < 0.6
    assert 1.7 < float(aspect.max()) < 2.0 + 1e-2
    assert float(first.min()) > -1e-3
    assert float((first + slope).max()) < 1 + 1e-3
    # Places are uniform: the middle of the parts' middles is the image's.
    torch.testing.assert_close((first + slope / 2).mean(0), torch.full((2,), 0.5), atol=0.03, rtol=0)


def test_a_part_that_never_fits_is_cut_off() -> None:
    x = images(4, 8, 8)
    out = apply(x, resized_crop_scale=(1.0, 1.0), resized_crop_ratio=(4.0, 4.0))
    # Twice as wide as the image, half as high: all of its width.
    torch.testing.assert_close(out[:, :, :, 0] + 7, out[:, :, :, 7])


def test_black_is_a_pixel_of_0() -> None:
    normalization = Normalization((0.5, 0.2), (0.25, 0.1))
    torch.testing.assert_close(normalization.black, torch.tensor([-2.0, -2.0]))
    x = torch.zeros(200, 2, 4, 4)
    out = apply(x, black=normalization.black, crop_padding=4)
    assert set(out.flatten().tolist()) == {0.0, -2.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_padding": -1}, "crop_padding -1"),
        ({"resized_crop_scale": (0.5, 0.1)}, r"resized_crop_scale 0\.5 0\.1"),
        ({"resized_crop_scale": (0.0, 1.0)}, "resized_crop_scale"),
        ({"resized_crop_ratio": (0.0, 1.0)}, "resized_crop_ratio"),
        ({"crop_padding": 4, "resized_crop_scale": (0.1, 1.0)}, "not both"),
    ],
)
def test_augmentations_that_mean_nothing(options: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Augmentation(**options)


def test_batches_depend_on_seed_and_number_alone() -> None:
    data = Images(torch.randn(10, 1, 8, 8), torch.arange(10))
    augmentation = Augmentation(crop_padding=3, flip=True)

    def batches(seed: int, *epochs: int) -> list[tuple[Tensor, Tensor]]:
        loader = augmented_batches(data, Shuffled(10, 4, seed), augmentation, torch.zeros(1))
        found = []
        for epoch in epochs:
            loader.sampler.set_epoch(epoch)
            found += list(loader)
        return found

    torch.manual_seed(1)
    state = torch.get_rng_state()
    both = batches(0, 0, 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(y) for _, y in both] == [4, 4, 2, 4, 4, 2]
    for (x, y), (again, labels) in zip(both[3:], batches(0, 1), strict=True):
        assert torch.equal(x, again)
        assert torch.equal(y, labels)
    # The same images in another epoch, and of another seed, look otherwise.
    first, second = (
        torch.cat([x for x, _ in part])[torch.cat([y for _, y in part]).argsort()] for part in (both[:3], both[3:])
    )
    assert (first != second).flatten(1).any(1).sum() >= 8
    assert not torch.equal(batches(1, 0)[0][0], both[0][0])


def test_a_resumed_run_sees_the_same_images(tmp_path: Path) -> None:
    settings = tiny_lab.settings(augmentation=Augmentation(crop_padding=1, flip=True))

    class Stops(Display):
        steps = 0

        def step(self, samples: int = 0) -> None:
            self.steps += 1
            if self.steps == 19:
                raise OSError("stopped here")

    whole = run(settings, tiny_lab.splits(), tmp_path / "whole")
    with pytest.raises(OSError, match="stopped here"):
        run(settings, tiny_lab.splits(), tmp_path / "broken", display=Stops(None))
    resumed = run(settings, tiny_lab.splits(), tmp_path / "broken")
    plain = run(replace(settings, augmentation=Augmentation()), tiny_lab.splits(), tmp_path / "plain")

    def losses(record: dict) -> str:
        return json.dumps([(epoch["train_loss"], epoch["eval_loss"]) for epoch in record["epochs"]])

    assert losses(resumed) == losses(whole) != losses(plain)
    assert whole["settings"]["augmentation"]["crop_padding"] == 1
    assert "augmentation" not in plain["settings"]


def test_a_run_is_asked_for_it_by_name() -> None:
    augmentation = Augmentation(flip=True)
    assert CompareOptions(augmentation=augmentation).run("DFA", 0, details=False).augmentation == augmentation
    with pytest.raises(SettingsError, match="--augmentation: text has no images"):
        CompareOptions(data="text", augmentation=augmentation).run("DFA", 0, details=False)
