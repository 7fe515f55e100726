"""The causal transformer against plain references: torch's own encoder layers, and forward passes by hand."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
from torch import nn

from bpfree.lab.errors import SettingsError
from bpfree.lab.models import CausalTransformer
from support.plain_transformer import Plain, encoder_layers
from support.small_transformer import CLASSES, SMALL, small_transformer

CONTEXT = 10
ATTENTIONS = ("standard", "dense", "random", "fixed")
NORMS = ("post", "pre")


model = partial(small_transformer, CONTEXT)


def tokens(count: int = CONTEXT) -> torch.Tensor:
    return torch.randint(0, CLASSES, (2, count), generator=torch.Generator().manual_seed(1))


# -- the forward pass --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("initialization", ["default", "launay2020"])
def test_blocks_are_torchs_encoder_layers(norm: str, initialization: str, training: bool) -> None:
    ours = model(norm=norm, positions="sinusoidal", initialization=initialization).train(training)
    layers = encoder_layers(ours.state_dict(), 4, 24, pre=norm == "pre", scale=1 / math.sqrt(3))
    mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT, dtype=torch.float64)
    with torch.set_grad_enabled(training):  # torch has another implementation for evaluation without gradients
        scale = 4 if initialization == "launay2020" else 1  # sqrt(16)
        h = scale * ours.tokens(tokens()) + ours.positions(torch.arange(CONTEXT))
        for layer in layers:
            h = layer.train(training)(h, src_mask=mask, is_causal=True)
        assert torch.allclose(ours(tokens()), ours.head(ours.norm(h)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_attention_is_the_one_by_hand(attention: str, norm: str, positions: str) -> None:
    arguments = SMALL | {"attention": attention, "norm": norm, "positions": positions}
    ours = model(**arguments)
    for count in (1, 2, 7, CONTEXT):
        by_hand = Plain(ours.state_dict(), arguments).logits(tokens(count))
        assert torch.allclose(ours(tokens(count)), by_hand, atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_no_token_sees_a_later_one(attention: str, norm: str) -> None:
    ours = model(attention=attention, norm=norm)
    before = ours(tokens())
    for place in (1, 5, 9):
        changed = tokens()
        changed[:, place:] = (changed[:, place:] + 1 + torch.arange(CONTEXT - place)) % CLASSES
        after = ours(changed)
        assert torch.equal(after[:, :place], before[:, :place])
        assert not torch.isclose(after[:, place], before[:, place]).all(1).any()


@pytest.mark.parametrize("attention", ["dense", "random", "fixed"])
def test_a_model_can_be_moved_to_other_numbers_and_saved(attention: str) -> None:
    ours, fresh = model(attention=attention), CausalTransformer((CONTEXT,), CLASSES, **SMALL, attention=attention)
    fresh.load_state_dict(ours.float().state_dict())
    assert torch.equal(fresh(tokens()), ours(tokens()))
    assert ours.bfloat16()(tokens()).dtype == torch.bfloat16


# -- sizes and beginnings ----------------------------------------------------------------------------------------------


def count(made: nn.Module) -> int:
    return sum(weight.numel() for weight in made.parameters())


def test_the_published_model_has_its_number_of_weights() -> None:
    arguments = {"blocks": 6, "width": 512, "heads": 8, "hidden": 2048, "positions": "sinusoidal"}
    with torch.device("meta"):
        made = CausalTransformer((128,), 32_000, **arguments)
    attention, feed, norms = 4 * (512 * 512 + 512), 2 * 512 * 2048 + 2048 + 512, 4 * 512
    assert count(made) == 32_000 * (512 + 512 + 1) + 6 * (attention + feed + norms) == 51_714_304


@pytest.mark.parametrize(
    ("attention", "weights"),
    [
        ("standard", 4 * (16 * 16 + 16)),
        ("dense", 3 * (16 * 16 + 16) + 16 * 4 * CONTEXT + 4 * CONTEXT),
        ("random", 2 * (16 * 16 + 16) + 4 * CONTEXT * CONTEXT),
        ("fixed", 2 * (16 * 16 + 16)),
    ],
)
def test_each_attention_has_its_number_of_weights(attention: str, weights: int) -> None:
    assert {count(block.attention) for block in model(attention=attention).blocks} == {weights}


def test_weights_begin_as_published() -> None:
    torch.manual_seed(0)
    made = CausalTransformer((8,), 500, blocks=2, width=64, heads=4, hidden=128, initialization="launay2020")
    for weight in (made.tokens.weight, made.head.weight):
        assert weight.abs().max() <= 0.1
        assert weight.std().item() == pytest.approx(0.2 / math.sqrt(12), rel=0.02)
    assert not made.head.bias.any()
    theirs = nn.MultiheadAttention(64, 4)
    for block in made.blocks:
        into, out = block.attention.into, block.attention.out
        assert not torch.cat([into.bias, out.bias]).any()
        assert into.weight.std().item() == pytest.approx(theirs.in_proj_weight.std().item(), rel=0.03)
        assert out.weight.std().item() == pytest.approx(theirs.out_proj.weight.std().item(), rel=0.05)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("alike", [False, True])
def test_blocks_begin_alike_if_asked_for(attention: str, alike: bool) -> None:
    made = CausalTransformer((CONTEXT,), CLASSES, **SMALL, attention=attention, identical_blocks=alike)
    assert len({id(weight) for weight in made.parameters()}) == len(list(made.parameters()))
    for first, other in itertools.combinations(made.blocks, 2):
        matrices = [
            (first.get_parameter(name), weight) for name, weight in other.named_parameters() if weight.dim() > 1
        ]
        assert all(torch.equal(*pair) == alike for pair in matrices)


# -- dropout -----------------------------------------------------------------------------------------------------------


def seen_by(module: nn.Module, made: nn.Module) -> list[torch.Tensor]:
    """The inputs of a module in one pass in training mode."""
    inputs: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    made.train()(tokens())
    handle.remove()
    return inputs


def test_dropout_is_at_its_places_outside_attention() -> None:
    made = model(dropout=0.4, activation="gelu")
    block = made.blocks[0]
    kept = {
        "behind the positions": seen_by(block, made)[0] != 0,
        "behind the non-linearity": seen_by(block.feed_forward[-1], made)[0] != 0,
        **{
            f"behind branch {n}": block.dropout(torch.ones_like(h)) != 0
            for n, h in enumerate(seen_by(block.dropout, made))
        },
    }
    assert len(kept) == 4
    for place, kept_there in kept.items():
        assert kept_there.double().mean().item() == pytest.approx(0.6, abs=0.1), place


@pytest.mark.parametrize(("attention", "drops"), [("standard", 1), ("dense", 1), ("random", 1), ("fixed", 0)])
def test_dropout_in_attention_drops_tokens(attention: str, drops: bool) -> None:
    """Where all values are 1, a token gets 1, and only dropout in the mixing changes that."""
    made = model(dropout=0.4, attention=attention)
    of_values = made.blocks[0].attention.into if attention == "standard" else made.blocks[0].attention.value
    of_values.weight.data[-16:] = 0
    of_values.bias.data[-16:] = 1
    (mixed,) = seen_by(made.blocks[0].attention.out, made)
    assert torch.allclose(mixed, torch.ones_like(mixed)) == (not drops)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention": "fixed", "heads": 8}, "heads=4, not 8"),
        ({"heads": 3}, "multiple of heads, 3"),
        ({"norm": "prae"}, "norm='prae' is not known. Did you mean 'pre'"),
        ({"positions": "sinus"}, "positions='sinus' is not known"),
        ({"placement": "mikro"}, "Did you mean 'micro'"),
        ({"attention": "Random"}, "attention='Random' is not known. Did you mean 'random'"),
        ({"initialization": "launay"}, "Did you mean 'launay2020'"),
        *(
            ({name: count}, f"{name} {count} must be at least 1")
            for name in ("blocks", "width", "heads", "hidden")
            for count in (0, -2)
        ),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        model(**arguments)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_a_sequence_longer_than_the_context_is_refused(attention: str, positions: str) -> None:
    with pytest.raises(SettingsError, match="11 tokens in a sequence, but the model's context is 10"):
        model(attention=attention, positions=positions)(tokens(CONTEXT + 1))
