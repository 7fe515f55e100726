"""The images that excite filters most."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import bpfree
from bpfree.lab.errors import RunError
from bpfree.lab.running import runs
from bpfree.lab.running.runs import run
from bpfree.lab.settings.model import ModelSettings
from bpfree.lab.tasks.visualize import exciting, visualized
from support import tiny_lab


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 20, 3), nn.BatchNorm2d(20), nn.ReLU(), nn.Flatten(),
        nn.Linear(20 * 12 * 12, 5),
    )  # fmt: skip


def test_a_linear_filter_is_excited_by_the_sum_of_its_weights() -> None:
    # The mean output of one convolution has, inside the picture, the slope sum(w_c) for every pixel of channel c: 40
    # steps in that direction, on faint noise.
    model = network()
    images = exciting(model, model[0], (3, 16, 16))
    assert images.shape == (8, 3, 16, 16)
    inside = images[:, :, 2:-2, 2:-2].mean((2, 3))
    sums = model[0].weight.detach().sum((2, 3))
    cosine = torch.nn.functional.cosine_similarity(inside, sums)
    assert cosine.min() > 0.99


def test_deeper_filters_answer_more_to_their_images_than_to_others() -> None:
    model = network().eval()
    images = exciting(model, model[2], (3, 16, 16))
    assert images.shape == (12, 3, 16, 16)
    images = images / images.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * 20
    with torch.no_grad():
        answers = model[:3](images).mean((2, 3))[:, :12] - model[:3](torch.zeros(1, 3, 16, 16)).mean((2, 3))[:, :12]
    own = answers.diagonal()
    assert (own >= answers.max(0).values - 1e-4).float().mean() > 0.8
    assert (own > 0).all()


def test_the_rule_is_left_aside_and_nothing_is_left_behind() -> None:
    model, plain = network(), network()
    attachment = bpfree.attach(model, bpfree.DFA(), seed=0, example_inputs=torch.zeros(2, 3, 16, 16))
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    found = visualized(attachment, "2", (3, 16, 16))
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    other = visualized(bpfree.attach(plain, bpfree.BP()), "2", (3, 16, 16))
    assert found == other
    picture = Image.open(io.BytesIO(base64.b64decode(found["visualized"]["png"])))
    # Four pictures of 16 pixels side by side and three lines of them, one pixel between.
    assert picture.size == (4 * 16 + 3, 3 * 16 + 2)
    assert np.asarray(picture).std() > 20


def test_a_run_shows_the_filters_that_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelSettings("LeNet4", {"channels": [4, 6]}).describe()
    record = run(tiny_lab.settings(model=model, epochs=1, visualize="conv2.conv"), tiny_lab.splits(), tmp_path)
    assert record["visualized"]["module"] == "conv2.conv"
    assert record["visualized"]["filters"] == 6
    monkeypatch.setattr(runs, "_fit", lambda *_: pytest.fail("it was trained before"))
    with pytest.raises(RunError, match=r"no such convolution\. Did you mean 'conv2\.conv'"):
        run(tiny_lab.settings(model=model, epochs=1, visualize="conv2.cnov"), tiny_lab.splits(), tmp_path)
