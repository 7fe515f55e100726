"""Which blocks and which head are suggested, and what ``taps="blocks"`` makes of them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bpfree
from bpfree import errors
from support.rule_contract import assert_equal


class Residual(nn.Module):
    """A block: ``(N, 6)`` to ``(N, 6)``."""

    def __init__(self):
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


class Net(nn.Module):
    """Blocks one after another, between what comes before and behind them."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        for part in self.children():
            for step in part if isinstance(part, nn.ModuleList) else [part]:
                x = step(x)
        return x


def blocks(count):
    return nn.ModuleList(Residual() for _ in range(count))


def stage(count):
    return nn.Sequential(*(Residual() for _ in range(count)))


class Stage(nn.Module):
    """A stage that makes the tensor smaller before its blocks, as ConvNeXt's."""

    def __init__(self, count):
        super().__init__()
        self.smaller, self.blocks = nn.Linear(6, 6), stage(count)

    def forward(self, x):
        return self.blocks(self.smaller(x))


class Experts(nn.Module):
    """A block that holds a list of modules beside each other."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(6, 3), nn.ModuleList(stage(1) for _ in range(3))

    def forward(self, x):
        weights = self.gate(x).softmax(1)
        return x + sum(weights[:, i : i + 1] * expert(x) for i, expert in enumerate(self.experts))


MADE = {
    "a stack": (lambda: Net(stem=nn.Linear(4, 6), h=blocks(3), head=nn.Linear(6, 3)), ["h.0", "h.1", "h.2"], "head"),
    "more than nine": (lambda: Net(h=blocks(12), head=nn.Linear(6, 3)), [f"h.{i}" for i in range(12)], "head"),
    "in a Sequential": (
        lambda: nn.Sequential(nn.Linear(4, 6), Residual(), Residual(), nn.Linear(6, 3)),
        ["1", "2"],
        "3",
    ),
    "of Sequentials": (
        lambda: nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3)), nn.Linear(6, 3)),
        ["0", "1", "2"],
        "3",
    ),
    "numbered attributes": (
        lambda: Net(block1=Residual(), block2=Residual(), fc=nn.Linear(6, 3)),
        ["block1", "block2"],
        "fc",
    ),
    "stages": (
        lambda: Net(layer1=stage(2), layer2=stage(1), norm=nn.LayerNorm(6), fc=nn.Linear(6, 3)),
        ["layer1.0", "layer1.1", "layer2.0"],
        "fc",
    ),
    "stages with more in them": (
        lambda: Net(stages=nn.Sequential(Stage(2), Stage(3)), head=nn.Linear(6, 3)),
        ["stages.0.blocks.0", "stages.0.blocks.1", "stages.1.blocks.0", "stages.1.blocks.1", "stages.1.blocks.2"],
        "head",
    ),
    "experts": (
        lambda: Net(h=nn.ModuleList(Experts() for _ in range(2)), head=nn.Linear(6, 3)),
        ["h.0", "h.1"],
        "head",
    ),
    "no head": (lambda: Net(stem=nn.Linear(4, 6), h=blocks(3)), ["h.0", "h.1"], "h.2"),
    "a norm for a head": (lambda: Net(h=blocks(2), norm=nn.LayerNorm(6)), ["h.0", "h.1"], "norm"),
    "a small list beside them": (
        lambda: Net(h=blocks(12), gate=nn.Sequential(*(nn.Sequential(nn.Linear(6, 1)) for _ in range(2)))),
        [f"h.{i}" for i in range(12)],
        "gate.1.0",
    ),
    "another model inside": (
        lambda: Net(body=Net(h=blocks(2)), head=nn.Linear(6, 3)),
        ["body.h.0", "body.h.1"],
        "head",
    ),
}
by_model = pytest.mark.parametrize(("build", "taps", "error_at"), MADE.values(), ids=MADE)


@by_model
def test_blocks_and_head(build, taps, error_at):
    suggestion = bpfree.suggest_taps(build())
    assert list(suggestion.taps) == taps
    assert suggestion.error_at == error_at
    assert repr(error_at) in str(suggestion)
    assert "Residual" in str(suggestion) or "Sequential" in str(suggestion) or "Experts" in str(suggestion)


RUNNING = [name for name in MADE if name != "a small list beside them"]


@pytest.mark.parametrize("name", RUNNING)
def test_taps_blocks_is_what_is_suggested(name):
    build, taps, error_at = MADE[name]
    gradients = []
    for options in ({"taps": "blocks"}, {"taps": taps, "error_at": error_at}):
        torch.manual_seed(1)
        model = build()
        width = next(p for p in model.parameters() if p.dim() > 1).shape[1]
        attachment = bpfree.attach(model, bpfree.DFA(), seed=3, **options)
        assert list(attachment.taps) == taps
        torch.manual_seed(2)
        model(torch.randn(5, width)).square().mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert_equal(*gradients)
    assert all(gradient is not None for gradient in gradients[0])


def test_a_named_error_is_kept():
    model = MADE["a stack"][0]()
    attachment = bpfree.attach(model, bpfree.DFA(), taps="blocks", error_at="")
    assert attachment.mechanism.plan.error_name == ""


class Language(nn.Module):
    """Words in, a number for each word out; the head may share the embedding's matrix."""

    def __init__(self, words, width, *, norm=True, tied=False):
        super().__init__()
        self.words, self.h = (
            nn.Embedding(words, width),
            nn.ModuleList(nn.Sequential(nn.Linear(width, width)) for _ in range(2)),
        )
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.head = nn.Linear(width, words, bias=False)
        if tied:
            self.head.weight = self.words.weight


@pytest.mark.parametrize(
    ("model", "error_at"),
    [
        (Language(20, 6), "h.1"),
        (Language(20, 6, tied=True), "h.1"),
        (Language(20, 6, norm=False), "h.1"),
        (Language(5, 6), "head"),  # fewer words than numbers below: the error is smaller at the head
    ],
    ids=["vocabulary", "tied", "post-norm", "few words"],
)
def test_the_error_is_taken_at_the_last_block_below_a_vocabulary_head(model, error_at):
    suggestion = bpfree.suggest_taps(model)
    assert suggestion.error_at == error_at
    assert suggestion.taps == tuple(name for name in ("h.0", "h.1") if name != error_at)


def test_layers_before_the_blocks_are_no_head():
    model = Net(h=blocks(2), embed_norm=nn.LayerNorm(6), head=nn.Linear(6, 3))
    assert bpfree.suggest_taps(model).error_at == "head"
    model = Net(h=blocks(2), norms=nn.ModuleList(nn.LayerNorm(6) for _ in range(2)))
    assert bpfree.suggest_taps(model).error_at == "h.1"


def test_a_head_that_is_registered_first_is_known_by_its_name():
    model = Net(stem=nn.Linear(4, 6), head=nn.Linear(6, 3), h=blocks(2))
    suggestion = bpfree.suggest_taps(model)
    assert (suggestion.taps, suggestion.error_at) == (("h.0", "h.1"), "head")


def test_places_that_the_model_marks_itself_are_shown():
    model = Net(h=nn.ModuleList(nn.Sequential(nn.Linear(6, 6), bpfree.Tap()) for _ in range(3)), head=nn.Linear(6, 3))
    text = str(bpfree.suggest_taps(model))
    assert text.endswith("The model marks places itself, which taps=bpfree.Tap takes: h.0-2.1.")
    assert list(bpfree.attach(model, bpfree.DFA(), taps=bpfree.Tap).taps) == ["h.0.1", "h.1.1", "h.2.1"]
    assert "marks" not in str(bpfree.suggest_taps(Net(h=blocks(3), head=nn.Linear(6, 3))))


def test_a_model_without_blocks_gets_the_default():
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    suggestion = bpfree.suggest_taps(model)
    assert (suggestion.taps, suggestion.error_at) == (None, None)
    assert "1, 3" in str(suggestion)
    attachment = bpfree.attach(model, bpfree.DFA(), taps=suggestion.taps, error_at=suggestion.error_at)
    assert list(attachment.taps) == ["1", "3"]
    attachment.detach()
    with pytest.raises(errors.TapSelectionError, match=r"no repeated blocks.*Leave taps out"):
        bpfree.attach(model, bpfree.DFA(), taps="blocks")
    for options in ({}, {"taps": "blocks"}):
        with pytest.raises(errors.TapSelectionError, match=r"bpfree\.Tap"):
            bpfree.attach(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), bpfree.DFA(), **options)


def test_the_error_for_a_model_without_non_linearities_names_the_blocks():
    model = Net(layer1=stage(2), layer2=stage(1), fc=nn.Linear(6, 3))
    with pytest.raises(errors.TapSelectionError, match=r"taps='blocks', which means layer1\.0, layer1\.1, layer2\.0\."):
        bpfree.attach(model, bpfree.DFA())


def test_a_module_of_that_name_is_meant_in_a_list():
    model = nn.Sequential()
    model.add_module("blocks", stage(3))
    model.add_module("head", nn.Linear(6, 3))
    assert list(bpfree.attach(model, bpfree.DFA(), taps=["blocks"]).taps) == ["blocks"]
    bpfree.detach_all(model)
    assert list(bpfree.attach(model, bpfree.DFA(), taps="blocks").taps) == ["blocks.0", "blocks.1", "blocks.2"]


def test_a_transformer_of_torch():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3)
    suggestion = bpfree.suggest_taps(encoder)
    assert (suggestion.taps, suggestion.error_at) == (("layers.0", "layers.1"), "layers.2")
    bpfree.attach(encoder, bpfree.DFA(), taps="blocks", example_inputs=torch.randn(2, 3, 8))
    both = nn.Transformer(8, 2, 2, 2, 16, batch_first=True)
    suggestion = bpfree.suggest_taps(both)
    assert suggestion.taps == ("encoder.layers.0", "encoder.layers.1", "decoder.layers.0", "decoder.layers.1")
    assert suggestion.error_at == "decoder.norm"
