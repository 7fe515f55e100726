"""Models: shapes, sizes, and how they are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import bpfree
from bpfree.lab.errors import SettingsError
from bpfree.lab.models import CNN, MLP
from bpfree.lab.settings.model import ModelSettings


def test_mlp_has_the_weights_of_its_layers() -> None:
    model = MLP((1, 28, 28), 10)
    assert sum(weight.numel() for weight in model.parameters()) == 784 * 1024 + 1024 + 1024 * 1025 + 1024 * 10 + 10
    assert sum(isinstance(module, nn.Tanh) for module in model) == 2
    assert model(torch.zeros(3, 1, 28, 28)).shape == (3, 10)


@pytest.mark.parametrize(("shape", "edge"), [((1, 28, 28), 2), ((3, 32, 32), 3)])
def test_cnn_has_three_poolings(shape: tuple[int, ...], edge: int) -> None:
    # 28 -> 13 -> 6 -> 2 and 32 -> 15 -> 7 -> 3.
    model = CNN(shape, 10, activation="relu")
    assert model.fc.in_features == 64 * edge * edge
    assert model(torch.zeros(2, *shape)).shape == (2, 10)
    assert sum(isinstance(module, nn.ReLU) for module in model) == 4


def test_cnn_takes_feedback_behind_its_poolings() -> None:
    model = CNN((3, 32, 32), 10, activation="leaky_relu", negative_slope=0.3)
    attachment = bpfree.attach(model, bpfree.DFA(), taps=["pool1", "pool2", "pool3", "act"])
    model(torch.zeros(2, 3, 32, 32)).sum().backward()
    # 32 -> 15 -> 7 -> 3, of 32, 64 and 64 channels.
    sizes = {"pool1": 32 * 15 * 15, "pool2": 64 * 7 * 7, "pool3": 64 * 3 * 3, "act": 128}
    assert list(attachment.taps) == list(sizes)
    assert attachment.feedback["shared"].shape == (10, max(sizes.values()))
    assert {module.negative_slope for module in model if isinstance(module, nn.LeakyReLU)} == {0.3}


def test_cnn_refuses_what_it_cannot_see() -> None:
    with pytest.raises(SettingsError, match="too small"):
        CNN((1, 8, 8), 10)
    with pytest.raises(SettingsError, match="images of shape"):
        CNN((64,), 10)


OWN = """
from torch import nn
from bpfree.lab.models import MLP

class Own(nn.Sequential):
    def __init__(self, classes: int, width: int = 5, act: nn.Module | None = None):
        super().__init__(nn.Flatten(), nn.Linear(16, width), act or nn.Tanh(), nn.Linear(width, classes))

class Fixed(nn.Linear):
    def __init__(self):
        super().__init__(16, 3)

class HandsOn(MLP):
    def __init__(self, *args, extra: int = 1, **kwargs):
        super().__init__(*args, **kwargs)
        self.extra = extra

class HandsNothingOn(Fixed):
    def __init__(self):
        super().__init__()
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_models.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("own")
def test_a_model_of_ones_own_gets_the_sizes_it_asks_for() -> None:
    model = ModelSettings("own_models.Own", {"width": 7, "act": "torch.nn.ReLU"}).build((1, 4, 4), 3)
    assert [type(module) for module in model] == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear]
    assert model(torch.zeros(2, 1, 4, 4)).shape == (2, 3)
    assert isinstance(ModelSettings("own_models.Fixed").build((16,), 3), nn.Linear)


@pytest.mark.usefixtures("own")
def test_a_model_that_hands_its_arguments_on_gets_the_sizes_too() -> None:
    model = ModelSettings("own_models.HandsOn", {"hidden": [6], "extra": 2}).build((1, 4, 4), 3)
    assert [tuple(weight.shape) for weight in model.parameters() if weight.dim() == 2] == [(6, 16), (3, 6)]
    assert model.extra == 2
    assert ModelSettings("own_models.HandsNothingOn").build((16,), 3).in_features == 16


@pytest.mark.usefixtures("own")
def test_the_description_is_complete() -> None:
    assert ModelSettings("own_models.Own").describe()["init_args"] == {"width": 5, "act": None}
    described = ModelSettings("MLP", {"hidden": [3]}).describe()
    assert described == {
        "class_path": "bpfree.lab.models.MLP",
        "init_args": {
            "hidden": [3],
            "activation": "tanh",
            "dropout": 0.0,
            "initialization": "torch",
            "negative_slope": 0.01,
            "batch_norm": False,
            "input_dropout": 0.0,
            "dropout_before_activation": False,
        },
    }
    assert ModelSettings(**described).describe() == described


def test_another_package_with_a_class_of_that_name_is_no_matter() -> None:
    class MLP(nn.Linear):  # as torch_geometric's is, once a rule or model of one's own imports it
        pass

    MLP.__module__ = "elsewhere"
    assert ModelSettings("MLP").describe()["class_path"] == "bpfree.lab.models.MLP"


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        ("own_models.Owm", {}, "Owm"),
        ("nowhere.Net", {}, "No module named 'nowhere'"),
        (
            "own_models.Own",
            {"widht": 3},
            "^--model own_models.Own: Own has no argument 'widht'. Did you mean 'width'.$",
        ),
        ("own_models.HandsOn", {"hiden": [3]}, "HandsOn has no argument 'hiden'. Did you mean 'hidden'"),
        ("MLP", {"depth_of_it": 3}, "MLP has no argument 'depth_of_it'. Valid: 'hidden', 'activation', 'dropout'"),
        ("MLP", {"activation": "tan"}, "^--model MLP: activation: tan is not known. Did you mean 'tanh'.$"),
        ("json.JSONDecoder", {}, "json.JSONDecoder"),
    ],
)
def test_a_model_that_cannot_be_built_is_named(path: str, arguments: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        ModelSettings(path, arguments).build((1, 4, 4), 3)


def test_he_initialization_keeps_the_size_of_what_passes():
    torch.manual_seed(0)
    model = MLP((784,), 10, hidden=[512] * 6, activation="relu", initialization="he")
    x = torch.randn(500, 784)
    hidden = nn.Sequential(*list(model)[:-1])(x)
    assert 0.7 < float(hidden.detach().square().mean() / x.square().mean()) < 1.3
    assert all(float(layer.bias.detach().abs().max()) == 0 for layer in model if isinstance(layer, nn.Linear))


@pytest.mark.parametrize("kind", [MLP, CNN])
def test_normalization_begins_at_one_or_uniform_as_before_torch_1_2(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    for batch_norm in (True, "uniform"):
        model = kind((3, 32, 32), 10, batch_norm=batch_norm)
        norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
        factors = torch.cat([norm.weight.detach() for norm in norms])
        assert all(float(norm.bias.detach().abs().max()) == 0 for norm in norms)
        if batch_norm is True:
            assert bool((factors == 1).all())
        else:  # the deviation of n uniform numbers' mean is 1 / sqrt(12 n)
            assert float(factors.min()) >= 0
            assert float(factors.max()) <= 1
            assert abs(float(factors.mean()) - 0.5) < 4 / (12 * len(factors)) ** 0.5
            assert abs(float(factors.std()) - 12**-0.5) < 0.05
