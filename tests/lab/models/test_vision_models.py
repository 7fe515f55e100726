"""The papers' networks: their weights counted by hand, where feedback enters, and the order of their layers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bpfree
from bpfree.lab.errors import SettingsError
from bpfree.lab.models import CNN, MLP, VGG16, AlexNet, BottleneckMLP, LeNet4, ResNet
from bpfree.lab.options.training import CompareOptions
from bpfree.lab.settings.model import ModelSettings

IMAGE, LARGE = (3, 32, 32), (3, 224, 224)


def of_layers(*layers: tuple[int, int, int]) -> int:
    """Weights and biases of layers with so many inputs, outputs, and numbers a kernel."""
    return sum(inputs * outputs * kernel + outputs for inputs, outputs, kernel in layers)


VGG_CONVOLUTIONS = of_layers(
    (3, 64, 9), (64, 64, 9), (64, 128, 9), (128, 128, 9), (128, 256, 9), (256, 256, 9), (256, 256, 9),
    (256, 512, 9), (512, 512, 9), (512, 512, 9), (512, 512, 9), (512, 512, 9), (512, 512, 9),
)  # fmt: skip
VGG_NORMS = 2 * (2 * 64 + 2 * 128 + 3 * 256 + 6 * 512)
ALEX_CONVOLUTIONS = of_layers((3, 64, 121), (64, 192, 25), (192, 384, 9), (384, 256, 9), (256, 256, 9))
ALEX_NORMS = 2 * (64 + 192 + 384 + 256 + 256)


def residual(blocks: int, projected: bool) -> int:
    """Weights of a residual network: convolutions have no bias, and a channel two numbers to normalize by."""
    found, channels = 3 * 16 * 9 + 2 * 16, 16
    for width in (16, 32, 64):
        for _ in range(blocks):
            found += channels * width * 9 + width * width * 9 + 2 * 2 * width
            found += channels * width + 2 * width if projected and channels != width else 0
            channels = width
    return found + 64 * 10 + 10


ALEX_SMALL = of_layers((3, 64, 9), (64, 192, 9), (192, 384, 9), (384, 256, 9), (256, 256, 9))


def test_the_tables_of_layers_add_up_to_the_published_numbers() -> None:
    # The weights of torchvision's models for ImageNet, as its documentation gives them.
    assert VGG_CONVOLUTIONS + of_layers((25088, 4096, 1), (4096, 4096, 1), (4096, 1000, 1)) == 138_357_544
    assert ALEX_CONVOLUTIONS + of_layers((9216, 4096, 1), (4096, 4096, 1), (4096, 1000, 1)) == 61_100_840
    # "138 million" (Simonyan and Zisserman 2014, table 2); VGG-16 on CIFAR-10 is usually said to have 15.25 million.
    assert VGG_CONVOLUTIONS + of_layers((512, 512, 1), (512, 512, 1), (512, 10, 1)) == 15_245_130
    # He et al. 2016, table 6: ResNet-20 .27 million, ResNet-56 .85 million.
    assert round(residual(3, projected=False), -4) == 270_000
    assert round(residual(9, projected=False), -4) == 850_000


@pytest.mark.parametrize(
    ("model", "shape", "classes", "options", "weights"),
    [
        (MLP, IMAGE, 10, {"hidden": [800] * 3}, of_layers((3072, 800, 1), (800, 800, 1), (800, 800, 1), (800, 10, 1))),
        (MLP, IMAGE, 10, {"hidden": [800] * 3, "batch_norm": True}, 3_748_010 + 3 * 1600),
        (MLP, (1, 28, 28), 10, {"hidden": [1024] * 3}, 803_840 + 2 * 1_049_600 + 10_250),
        (BottleneckMLP, IMAGE, 10, {"bottleneck": 46}, 3_748_010),
        (CNN, IMAGE, 10, {}, of_layers((3, 32, 25), (32, 64, 25), (64, 64, 25), (576, 128, 1), (128, 10, 1))),
        (CNN, IMAGE, 10, {"batch_norm": True}, 231_306 + 2 * (32 + 64 + 64 + 128)),
        (LeNet4, (1, 32, 32), 10, {}, 104 + 1616 + 48_120 + 1210),
        (LeNet4, (1, 28, 28), 10, {}, 51_050),
        (LeNet4, IMAGE, 100, {}, of_layers((3, 4, 25), (4, 16, 25), (400, 120, 1), (120, 100, 1))),
        (AlexNet, IMAGE, 10, {}, 23_272_266),
        (AlexNet, IMAGE, 100, {}, ALEX_SMALL + of_layers((1024, 4096, 1), (4096, 4096, 1), (4096, 100, 1))),
        (AlexNet, IMAGE, 10, {"batch_norm": True}, 23_272_266 + ALEX_NORMS),
        (AlexNet, LARGE, 1000, {"form": 224}, 61_100_840),
        (AlexNet, LARGE, 1000, {"form": 224, "batch_norm": True}, 61_100_840 + ALEX_NORMS),
        (VGG16, IMAGE, 10, {}, 15_245_130),
        (ResNet, IMAGE, 10, {}, residual(3, projected=False)),
        (ResNet, IMAGE, 10, {"shortcut": "projection"}, residual(3, projected=True)),
        (ResNet, IMAGE, 10, {"blocks": 9}, residual(9, projected=False)),
        (VGG16, IMAGE, 100, {"hidden": []}, VGG_CONVOLUTIONS + of_layers((512, 100, 1))),
        (VGG16, LARGE, 1000, {"form": 224}, 138_357_544),
        (VGG16, LARGE, 1000, {"form": 224, "batch_norm": True}, 138_357_544 + VGG_NORMS),
    ],
)
def test_weights_are_as_many_as_counted_by_hand(
    model: type[nn.Module], shape: tuple[int, ...], classes: int, options: dict[str, Any], weights: int
) -> None:
    with torch.device("meta"):  # nothing is drawn: VGG-16 for ImageNet would be half a gigabyte
        made = model(shape, classes, **options)
        assert sum(weight.numel() for weight in made.parameters()) == weights
        assert made.eval()(torch.empty(2, *shape)).shape == (2, classes)


def vgg_taps(edge: int, *linear: int) -> dict[str, int]:
    """Outputs of hidden layers for images of this size: each block ends in a pooling that halves it."""
    taps = {}
    for block, widths in enumerate([(64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3], start=1):
        for number, width in enumerate(widths, start=1):
            last = number == len(widths)
            taps[f"conv{block}_{number}"] = width * (edge // (2 if last else 1)) ** 2
        edge //= 2
    return taps | {f"fc{number}": width for number, width in enumerate(linear, start=1)}


ALEX_32 = {"conv1": 64 * 8 * 8, "conv2": 192 * 4 * 4, "conv3": 384 * 4 * 4, "conv4": 256 * 4 * 4, "conv5": 256 * 2 * 2}
ALEX_224 = {"conv1": 64 * 27**2, "conv2": 192 * 13**2, "conv3": 384 * 13**2, "conv4": 256 * 13**2, "conv5": 256 * 6**2}
RESNET_TAPS = {"first": 16 * 32 * 32} | {
    f"block{stage}_{block}": width * edge * edge
    for stage, (width, edge) in enumerate([(16, 32), (32, 16), (64, 8)], start=1)
    for block in (1, 2, 3)
}
CNN_TAPS = {"pool1": 32 * 15 * 15, "pool2": 64 * 7 * 7, "pool3": 64 * 3 * 3}


@pytest.mark.parametrize(
    ("name", "shape", "options", "sizes"),
    [
        ("MLP", IMAGE, {"hidden": [8, 7, 6]}, {"2": 8, "4": 7, "6": 6}),
        ("MLP", IMAGE, {"hidden": [8, 7], "activation": "abs", "dropout": 0.1}, {"2": 8, "5": 7}),
        ("MLP", IMAGE, {"hidden": [8, 7, 6], "batch_norm": True}, {"norm1": 8, "norm2": 7, "norm3": 6}),
        ("BottleneckMLP", IMAGE, {"bottleneck": 3, "hidden": [8, 7, 6]}, {"4": 7, "6": 6}),
        ("CNN", IMAGE, {}, CNN_TAPS | {"act": 128}),
        ("CNN", IMAGE, {"batch_norm": True, "dropout": 0.5, "conv_dropout": 0.1}, CNN_TAPS | {"norm": 128}),
        ("LeNet4", (1, 28, 28), {}, {"conv1": 4 * 14 * 14, "conv2": 16 * 5 * 5, "fc": 120}),
        ("LeNet4", IMAGE, {}, {"conv1": 4 * 14 * 14, "conv2": 16 * 5 * 5, "fc": 120}),
        ("AlexNet", IMAGE, {"hidden": [9, 8]}, ALEX_32 | {"fc1": 9, "fc2": 8}),
        ("AlexNet", LARGE, {"form": 224, "hidden": [9, 8], "batch_norm": True}, ALEX_224 | {"fc1": 9, "fc2": 8}),
        ("VGG16", IMAGE, {}, vgg_taps(32, 512, 512)),
        ("VGG16", IMAGE, {"batch_norm": True, "dropout": 0.5, "hidden": [9, 8]}, vgg_taps(32, 9, 8)),
        ("VGG16", (3, 64, 64), {"form": 224, "hidden": [9, 8]}, vgg_taps(64, 9, 8)),
        ("ResNet", IMAGE, {}, RESNET_TAPS),
        ("ResNet", IMAGE, {"shortcut": "projection"}, RESNET_TAPS),
    ],
)
def test_feedback_enters_where_the_papers_put_it(
    name: str, shape: tuple[int, ...], options: dict[str, Any], sizes: dict[str, int]
) -> None:
    asked = ModelSettings(name, options)
    torch.manual_seed(0)
    model = asked.build(shape, 3)
    attachment = bpfree.attach(model, bpfree.DFA(), taps=asked.suggestion("taps"), seed=0)
    found = {}
    for tap, module in attachment.taps.items():
        module.register_forward_hook(lambda _, args, output, tap=tap: found.update({tap: math.prod(output.shape[1:])}))
    x, y = torch.randn(2, *shape), torch.tensor([0, 2])
    nn.functional.cross_entropy(model(x), y).backward()
    assert found == sizes
    assert attachment.feedback["shared"].shape == (3, max(sizes.values()))
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())
    # Every hidden layer is taught: the first one has a gradient, which dropout may thin out and nothing takes away.
    assert any(float(weight.grad.abs().max()) > 0 for weight in next(iter_layers(model)).parameters())


def iter_layers(model: nn.Module) -> Any:
    return (module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d))


def test_vgg_for_imagenet_has_the_sizes_of_its_feature_maps() -> None:
    found = {}
    with torch.device("meta"):
        model = VGG16(LARGE, 1000, form=224)
        for name in vgg_taps(224, 4096, 4096):
            hook = lambda _, args, output, name=name: found.update({name: math.prod(output.shape[1:])})  # noqa: E731
            model.get_submodule(name).register_forward_hook(hook)
        model(torch.empty(1, *LARGE))
    assert found == vgg_taps(224, 4096, 4096)
    assert found["conv1_1"] == 3_211_264
    assert found["conv5_3"] == 25_088


def kinds(model: nn.Module) -> list[str]:
    return [type(module).__name__ for module in model.modules() if not list(module.children())]


def test_layers_of_an_mlp_stand_in_the_papers_order() -> None:
    options = {"dropout": 0.5, "input_dropout": 0.1, "batch_norm": True, "dropout_before_activation": True}
    model = MLP(IMAGE, 10, [8, 7], **options)
    hidden = ["Linear", "Dropout", "Tanh", "BatchNorm1d"]
    assert kinds(model) == ["Flatten", "Dropout", *hidden, *hidden, "Linear"]
    assert [module.p for module in model if isinstance(module, nn.Dropout)] == [0.1, 0.5, 0.5]


def test_layers_of_a_cnn_stand_in_the_papers_order() -> None:
    model = CNN(IMAGE, 10, batch_norm=True, input_dropout=0.1, conv_dropout=0.2, dropout=0.5)
    convolution = ["Conv2d", "Dropout2d", "Tanh", "BatchNorm2d", "MaxPool2d"]
    linear = ["Flatten", "Linear", "Dropout", "Tanh", "BatchNorm1d", "Linear"]
    assert kinds(model) == ["Dropout2d", *convolution, *convolution, *convolution, *linear]
    drops = [module.p for module in model if isinstance(module, nn.Dropout | nn.Dropout2d)]
    assert drops == [0.1, 0.2, 0.2, 0.2, 0.5]


def test_normalization_stands_between_a_deep_networks_convolution_and_its_non_linearity() -> None:
    assert kinds(VGG16(IMAGE, 10, batch_norm=True))[3:7] == ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"]
    assert kinds(AlexNet(IMAGE, 10, hidden=[4, 4], dropout=0.5))[-7:] == [
        "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear",
    ]  # fmt: skip


@pytest.mark.parametrize("options", [{"blocks": 0}, {"widths": []}])
def test_a_residual_network_without_blocks_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="needs blocks, and widths"):
        ResNet(IMAGE, 10, **options)


@pytest.mark.parametrize("shortcut", ["identity", "projection"])
def test_a_residual_network_is_the_papers(shortcut: str) -> None:
    """Beside the same network written with functions and its weights."""
    torch.manual_seed(0)
    model = ResNet(IMAGE, 10, 2, (4, 6, 9), shortcut).double()
    weights, x = model.state_dict(), torch.randn(3, *IMAGE, dtype=torch.float64)
    F = nn.functional

    def normalized(x: Tensor, conv: str, norm: str, stride: int, padding: int = 1) -> Tensor:
        x = F.conv2d(x, weights[f"{conv}.weight"], stride=stride, padding=padding)
        return F.batch_norm(x, None, None, weights[f"{norm}.weight"], weights[f"{norm}.bias"], training=True)

    h = normalized(x, "first.conv", "first.norm", 1).relu()
    for stage in (1, 2, 3):
        for block in (1, 2):
            name, stride = f"block{stage}_{block}", 2 if (stage, block) in ((2, 1), (3, 1)) else 1
            change = normalized(h, f"{name}.conv1", f"{name}.norm1", stride).relu()
            change = normalized(change, f"{name}.conv2", f"{name}.norm2", 1)
            if stride == 2 and shortcut == "identity":
                kept = h[:, :, ::2, ::2]
                h = torch.cat([kept, kept.new_zeros(3, change.shape[1] - kept.shape[1], *kept.shape[2:])], 1)
            elif stride == 2:
                h = normalized(h, f"{name}.shortcut.conv", f"{name}.shortcut.norm", 2, 0)
            h = (h + change).relu()
    expected = h.mean((2, 3)) @ weights["head.weight"].T + weights["head.bias"]
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("activation", "slope", "expected"),
    [
        ("abs", 0.01, [2.0, 0.0, 3.0]),
        ("leaky_relu", -0.5, [1.0, 0.0, 3.0]),
        ("leaky_relu", 0.5, [-1.0, 0.0, 3.0]),
        ("leaky_relu", 0.01, [-0.02, 0.0, 3.0]),
    ],
)
def test_non_linearities_below_zero(activation: str, slope: float, expected: list[float]) -> None:
    model = MLP((3,), 3, [3], activation, negative_slope=slope)
    x = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True)
    (out,) = [module(x) for module in model if isinstance(module, nn.LeakyReLU)]
    torch.testing.assert_close(out, torch.tensor(expected))
    out.sum().backward()
    assert x.grad is not None
    assert float(x.grad[0]) == pytest.approx(expected[0] / -2.0)
    assert float(x.grad[2]) == 1.0


def gradients(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


def test_a_bottleneck_keeps_the_same_part_of_its_gradients_and_all_of_its_output() -> None:
    def made(model: type[MLP], **options: Any) -> MLP:
        torch.manual_seed(3)
        return model((20,), 4, hidden=[40, 30, 20], **options)

    whole, narrow = made(MLP), made(BottleneckMLP, bottleneck=10)
    x, y = torch.randn(16, 20), torch.arange(16) % 4
    assert torch.equal(narrow(x), whole(x))
    full, thinned = gradients(whole, x, y), gradients(narrow, x, y)
    assert full.keys() == thinned.keys()
    for name in ("3.weight", "3.bias"):
        kept = thinned[name] != 0
        assert torch.equal(thinned[name], torch.where(kept, full[name], 0.0))
        # Elements are kept with probability 10 / 40: five standard deviations of a fraction of 1,200 and of 30.
        assert abs(float(kept.float().mean()) - 0.25) < 5 * (0.25 * 0.75 / kept.numel()) ** 0.5
        other = gradients(narrow, torch.randn(16, 20), y)[name]
        assert torch.equal(other != 0, kept)
    # Layers behind it have their whole gradients; what goes down through it is a part.
    for name in ("5.weight", "7.weight"):
        torch.testing.assert_close(thinned[name], full[name])
    assert not torch.allclose(thinned["1.weight"], full["1.weight"])


def test_what_passes_down_through_a_bottleneck_depends_on_the_place_in_the_batch() -> None:
    torch.manual_seed(0)
    layer = BottleneckMLP((5,), 2, bottleneck=3, hidden=[6, 4], activation="relu")[3]
    x = torch.randn(130, 6, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    kept = x.grad != 0
    assert len({tuple(row) for row in kept.tolist()}) > 20
    assert torch.equal(kept[128:], kept[:2])
    assert abs(float(kept.float().mean()) - 0.5) < 5 * (0.25 / 768) ** 0.5


@pytest.mark.parametrize(("kept", "learns"), [(0, False), (8, True)])
def test_a_bottleneck_of_nothing_and_of_everything(kept: int, learns: bool) -> None:
    model = BottleneckMLP((5,), 2, bottleneck=kept, hidden=[8, 4])
    found = gradients(model, torch.randn(3, 5), torch.tensor([0, 1, 0]))["3.weight"]
    assert bool((found != 0).all()) == learns
    assert bool((found == 0).all()) != learns


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("BottleneckMLP", IMAGE, {"bottleneck": 801}, "bottleneck 801 must lie between 0 and the layer's width, 800"),
        ("BottleneckMLP", IMAGE, {"hidden": [5]}, "at least two hidden layers"),
        ("VGG16", (1, 28, 28), {}, "images of 28 x 28 are too small for VGG16"),
        ("AlexNet", IMAGE, {"form": 224}, "images of 32 x 32 are too small for AlexNet in its form for 224 x 224"),
        ("LeNet4", (64,), {}, r"LeNet4 takes images of shape \(channels, height, width\), not \(64,\)"),
        ("VGG16", IMAGE, {"form": 64}, "form"),
    ],
)
def test_models_that_cannot_be_built_are_named(
    name: str, shape: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        ModelSettings(name, options).build(shape, 10)


def test_he_initialization_keeps_the_size_of_what_passes_through_vgg() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 32, 32)
    out = [float(VGG16(IMAGE, 10, initialization=how)(x).std()) for how in ("torch", "he")]
    assert out[1] > 0.3 > 10 * out[0]


def test_a_run_takes_the_suggestions_of_the_model_with_its_arguments() -> None:
    model = ModelSettings("CNN", {"batch_norm": True})
    assert CompareOptions(model=model).run("DFA", 0, details=False).taps == ["pool*", "norm"]
    assert CompareOptions(model=ModelSettings("VGG16")).run("DFA", 0, details=False).taps == ["conv?_?", "fc?"]
    assert CompareOptions().run("DFA", 0, details=False).taps is None
