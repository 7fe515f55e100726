"""The page of radiance fields: held-out views beside the truth."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("altair")
pytest.importorskip("vl_convert")

from bpfree.lab.commands import main
from bpfree.lab.data import load
from bpfree.lab.rendering.rays import Rays
from bpfree.lab.report import panels
from bpfree.lab.tasks.view_sheet import sheet
from support import tiny_scene
from support.tiny_scene import HEIGHT, POSITIONS, WIDTH


def parts(shown: dict[str, Any], count: int = 4) -> list[np.ndarray]:
    """Truth, picture, error and depth of all views, from 0 to 1, and what follows them."""
    with Image.open(io.BytesIO(base64.b64decode(shown["png"]))) as picture:
        assert picture.size == (shown["width"], shown["height"])
        return np.split(np.asarray(picture) / 255, count, axis=1)


class Grey:
    """A field that is seen half way between 2 and 6 to the left of the middle, and nowhere else."""

    def render(self, rays: Rays, *, dual: bool = False) -> dict[str, torch.Tensor]:
        seen = (torch.arange(len(rays.origins)) % WIDTH < WIDTH / 2).float()
        return {"colours": torch.full((len(seen), 3), 0.4), "depth": 4 * seen, "opacity": seen}


def truth(numbers: list[int]) -> np.ndarray:
    poses = [tiny_scene.look_at(POSITIONS[number], (0, 0, 0)) for number in numbers]
    return np.concatenate([np.asarray(tiny_scene.picture(pose, alpha=False)) for pose in poses]) / 255


def test_a_sheet_has_truth_picture_error_and_depth(tmp_path: Path) -> None:
    views = load("blender", tiny_scene.blender(tmp_path)).evaluation
    found = sheet(Grey(), views)
    seen, shown, error, depth = parts(found)
    assert seen.shape == (2 * HEIGHT, WIDTH, 3)
    np.testing.assert_allclose(seen, truth([5, 6]), atol=1e-6)
    np.testing.assert_allclose(shown, 0.4, atol=0.01)
    expected = 1 - np.clip(abs(truth([5, 6]) - 0.4).mean(-1, keepdims=True) / 0.25, 0, 1)
    np.testing.assert_allclose(error, np.broadcast_to(expected, error.shape), atol=0.01)
    np.testing.assert_allclose(depth[:, : WIDTH // 2], 0.5, atol=0.01)
    assert not depth[:, WIDTH // 2 :].any()
    assert len(found["names"]) == 2


class Two(Grey):
    """A field of two nets, whose mean is seen in another grey."""

    fine = Grey()

    def render(self, rays: Rays, *, dual: bool = False) -> dict[str, torch.Tensor]:
        shown = super().render(rays)
        return shown | {"colours": shown["colours"] + 0.2} if dual else shown


def test_the_sheet_of_two_nets_has_the_view_by_their_mean_too(tmp_path: Path) -> None:
    views = load("blender", tiny_scene.blender(tmp_path)).evaluation
    *first, dual, error = parts(sheet(Two(), views), 6)
    np.testing.assert_array_equal(first, parts(sheet(Grey(), views)))
    np.testing.assert_allclose(dual, 0.6, atol=0.01)
    expected = 1 - np.clip(abs(truth([5, 6]) - 0.6).mean(-1, keepdims=True) / 0.25, 0, 1)
    np.testing.assert_allclose(error, np.broadcast_to(expected, error.shape), atol=0.01)


def test_large_views_are_drawn_smaller(tmp_path: Path) -> None:
    tiny_scene.blender(tmp_path)
    for path in tmp_path.glob("*/*.png"):
        with Image.open(path) as one:
            one.resize((20 * WIDTH, 20 * HEIGHT), Image.Resampling.NEAREST).save(path)
    found = sheet(Grey(), load("blender", tmp_path).evaluation)
    assert (found["width"], found["height"]) == (4 * 128, 2 * round(128 * HEIGHT / WIDTH))


def test_the_page_of_a_comparison_shows_the_first_seeds_views(tmp_path: Path) -> None:
    tiny_scene.blender(tmp_path / "ball")
    words = [
        "compare",
        "--data",
        "blender",
        "--data-dir",
        str(tmp_path / "ball"),
        "--rules",
        "BP",
        "DFA",
        "--seeds",
        "2",
    ]
    words += [
        "--model",
        "NeRFTiny",
        "--model.width",
        "16",
        "--model.samples",
        "8",
        "--steps",
        "2",
        "--evaluations",
        "1",
    ]
    assert main([*words, "--batch-size", "16", "--threads", "1", "--out", str(tmp_path / "out")]) == 0
    (file,) = (tmp_path / "out").glob("**/comparison.json")
    comparison = json.loads(file.read_text())
    runs = comparison["runs"]
    kept = {run["label"]: run["views"]["png"] for run in runs if run["seed"] == 0}
    assert not any(run.get("views") for run in runs if run["seed"] == 1)
    page = file.with_name("report.html").read_text(encoding="utf-8")
    part = re.search(r'<section aria-labelledby="views">.*?</section>', page, re.DOTALL)
    assert part is not None
    assert re.findall(r'base64,([^"]+)"', part[0]) == [kept["BP"], kept["DFA"]]
    assert re.findall(r'alt="Held-out views ([^:]+): the photograph, the view by (\w+)', part[0]) == [
        ("r_0 and r_1", "BP"), ("r_0 and r_1", "DFA"),
    ]  # fmt: skip
    (title, _, psnr), (_, _, loss) = panels.learning(comparison)
    assert title == "PSNR on the validation set"
    # PSNR is a logarithm itself: it lies on a linear axis, the loss on a logarithmic one.
    assert (psnr.scale.to_dict().get("type", "linear"), loss.scale.to_dict()["type"]) == ("linear", "log")
