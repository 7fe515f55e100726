"""The places of a transformer's taps.

======  ================================================  ============================================================
choice  taps                                              weights below the head that carry signals down
======  ================================================  ============================================================
macro   behind each block                                 all inside a block
micro   behind each sub-layer, and behind the             those of attention and of norms, each inside its sub-layer
        feed-forward network's non-linearity
local   behind every linear map and every norm            none
======  ================================================  ============================================================

``macro`` and ``micro`` are those of Launay et al. 2020, section 3.3; ``local`` goes beyond them. The embedding learns
through the first block or its attention, and under ``local`` from a tap of its own.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, TypeAlias

from torch import Tensor

import bpfree

Norm: TypeAlias = Literal["post", "pre"]
Placement: TypeAlias = Literal["macro", "micro", "local"]
AttentionKind: TypeAlias = Literal["standard", "dense", "random", "fixed"]

EMBEDDING = "embedding_tap"
"""The tap behind the embedding, the only one outside the blocks."""
_LAST_BRANCH = "feed_forward_tap"


def taps_of(placement: Placement, attention: AttentionKind, norm: Norm, *, last: bool) -> tuple[str, ...]:
    """Return the names of the taps in one block, in forward order.

    ==============================  ===================================================================================
    ``norm1_tap``, ``norm2_tap``    behind a norm
    ``middle_tap``                  behind the first residual sum of pre-norm
    ``tap``                         behind the block: the second norm of post-norm, the second residual sum of pre-norm
    ``attention.*``                 behind a dense Synthesizer's hidden layer, a random one's values, and the mixing
    ``attention_tap``,              behind the last linear map of a branch and its dropout
    ``feed_forward_tap``
    ``feed_forward.hidden_tap``     behind the non-linearity and its dropout
    ==============================  ===================================================================================

    Args:
        placement: The choice.
        attention: The kind of attention.
        norm: Where the block normalizes.
        last: Whether the block is the last one.
    """
    if placement == "macro":
        return ("tap",)
    if placement == "micro":
        return ("norm1_tap" if norm == "post" else "middle_tap", "feed_forward.hidden_tap", "tap")
    hidden = ("attention.scores.hidden_tap",) if attention == "dense" else ()
    # Values may learn from a signal that has come back through fixed patterns, which hold no weights, or through a
    # dense Synthesizer's coefficients, which are activations. A random one's are weights.
    values = ("attention.value_tap",) if attention == "random" else ()
    attending = (*hidden, *values, "attention.mixing_tap", "attention_tap")
    feeding = ("feed_forward.hidden_tap", _LAST_BRANCH)
    if norm == "post":
        return (*attending, "norm1_tap", *feeding, "tap")
    # Sums of pre-norm hold no weights: the last branch's map learns from the error itself.
    return ("norm1_tap", *attending, "norm2_tap", *(feeding[:-1] if last else feeding))


def patterns_of(placement: Placement, attention: AttentionKind, norm: Norm, blocks: int) -> tuple[str, ...]:
    """Return patterns of all taps of a model of so many blocks, in forward order."""
    of_blocks = tuple(f"blocks.*.{name}" for name in taps_of(placement, attention, norm, last=blocks == 1))
    return (EMBEDDING, *of_blocks) if placement == "local" else of_blocks


def tap_or_none(name: str, taps: Collection[str]) -> bpfree.Tap | None:
    """Return a new tap if ``name`` is among ``taps``."""
    return bpfree.Tap() if name in taps else None


def through(tap: bpfree.Tap | None, h: Tensor) -> Tensor:
    """Return ``h`` behind the tap, if there is one."""
    return h if tap is None else tap(h)
