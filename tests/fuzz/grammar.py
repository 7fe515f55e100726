"""The grammar: which models are made up, and how often what occurs in them."""

from __future__ import annotations

from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from fuzz.descriptions import (
    Activation,
    Attention,
    Bend,
    Branch,
    Checkpoint,
    Dense,
    Extra,
    Force,
    Hooked,
    Model,
    Noise,
    Norm,
    Offset,
    Part,
    Recurrent,
    Residual,
    Shared,
    State,
    Tied,
    is_sound,
)
from fuzz.modules import CONVOLUTION, LINEAR, MODULES


def _kinds(part: type[Part], *kinds: str) -> SearchStrategy[Part]:
    return st.sampled_from(kinds).map(lambda kind: part(kind=kind))  # type: ignore[call-arg]


LAYERS = st.builds(
    Dense,
    st.integers(3, 6),
    # Many layers are plain ones: of a rare kind two at once say no more than one.
    st.sampled_from(["plain"] * 8 + sorted({*LINEAR, *CONVOLUTION})),
)
ACTIVATIONS = st.builds(
    Activation,
    st.sampled_from([*MODULES, "spike"]),
    st.one_of(st.just("module"), st.sampled_from(["function", "own", "tap", "in_place"])),
)
SIMPLE = st.one_of(
    ACTIVATIONS,
    LAYERS,
    _kinds(Norm, "layer", "batch", "rms", "instance"),
    _kinds(Noise, "dropout", "torch", "numpy", "python", "generator"),
    _kinds(State, "counter", "list", "memory", "membrane", "dictionary", "buffer", "logged"),
    _kinds(Bend, "detached", "no_grad", "straight", "data", "reversed", "contradicted", "hook"),
    _kinds(Extra, "penalty", "side_head", "hook", "router"),
    st.sampled_from([Offset("added"), Offset("multiplied"), Force()]),
    _kinds(Tied, "transposed", "parameter"),
    _kinds(Recurrent, "loop", "cells", "gru", "rnn", "lstm"),
    _kinds(Attention, "softmax", "fused", "module", "encoder"),
)
BLOCK = st.tuples(LAYERS, ACTIVATIONS)
"""What most of a network consists of: a layer and its non-linearity."""


def _several(inner: SearchStrategy[tuple[Part, ...]], least: int, most: int) -> SearchStrategy[tuple[Part, ...]]:
    return st.lists(inner, min_size=least, max_size=most).map(lambda found: tuple(p for parts in found for p in parts))


def _structures(inner: SearchStrategy[tuple[Part, ...]]) -> SearchStrategy[tuple[Part, ...]]:
    parts = _several(inner, 1, 2)
    structure = st.one_of(
        st.builds(Residual, parts),
        st.builds(Branch, parts, parts, st.sampled_from(["add", "multiply", "cat"])),
        st.builds(Shared, parts, st.sampled_from([2, 3])),
        st.builds(Checkpoint, parts),
        st.builds(
            Hooked,
            parts,
            st.sampled_from(["output", "input", "count", "backward", "backward_scaled", "keyword", "forward"]),
        ),
    )
    return structure.map(lambda part: (part,))


PIECES = st.recursive(st.one_of(BLOCK, SIMPLE.map(lambda part: (part,))), _structures, max_leaves=4)


OUTPUTS = ["tensor"] * 4 + ["two", "two", "log_softmax", "softmax", "sigmoid", "tuple", "dict", "object", "loss"]
CALLS = ["positional"] * 5 + ["keyword", "reversed", "nested", "outside", "forward", "method"]
TAPS = st.one_of(
    st.none(),
    st.none(),
    st.tuples(st.integers(0, 5)),
    st.tuples(st.integers(0, 5), st.integers(0, 5)),
    st.sampled_from(["linear", "leaves"]),
)


@st.composite
def models(draw: st.DrawFn) -> Model:
    """A whole model: a layer and a non-linearity, and some pieces before or behind."""
    before = draw(_several(PIECES, 0, 1))
    block = draw(st.tuples(LAYERS, st.builds(Activation, st.sampled_from(list(MODULES)))))
    behind = draw(_several(PIECES, 0, 2))
    output = draw(st.sampled_from(OUTPUTS))
    whole = output in ("tensor", "log_softmax", "softmax", "sigmoid")
    model = Model(
        parts=(*before, *block, *behind),
        input=draw(st.sampled_from(["flat", "flat", "image", "tokens", "tokens", "integers", "time"])),
        samples=draw(st.sampled_from([5, 4, 3])),
        steps=draw(st.sampled_from([3, 4])),
        read=draw(st.sampled_from(["mean", "last", "each"])),
        output=output,
        loss=draw(st.sampled_from(["ce", "mse", "masked"])),
        call=draw(st.sampled_from(CALLS)),
        taps=draw(TAPS),
        # Models that return several things mostly say where the error is.
        error_at=draw(st.booleans() if whole else st.sampled_from([True, True, True, False])),
        frozen=draw(st.one_of(st.none(), st.none(), st.none(), st.integers(0, 7))),
    )
    assume(is_sound(model))
    return model
