"""A decoder-only transformer for language modelling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor, nn

from bpfree.errors import nearest
from bpfree.lab.errors import SettingsError
from bpfree.lab.models.activations import Activation
from bpfree.lab.models.transformer.attention import attention_module
from bpfree.lab.models.transformer.block import Block
from bpfree.lab.models.transformer.initialization import Initialization, initialize
from bpfree.lab.models.transformer.placement import (
    EMBEDDING,
    AttentionKind,
    Norm,
    Placement,
    patterns_of,
    tap_or_none,
    taps_of,
    through,
)
from bpfree.lab.models.transformer.positions import Positions, Waves, learned


class CausalTransformer(nn.Module):
    """Blocks of causal attention and a feed-forward network: tokens ``(N, T)`` to logits ``(N, T, classes)``.

    The error is best taken below the vocabulary head (``error_at="below_head"``), where it is as wide as a block; the
    last block's last tap then stands where the error is taken, and gets its exact gradient.

    Launay et al. 2020, table 5, have ``blocks=6, width=512, heads=8, hidden=2048, positions="sinusoidal", dropout=0.1,
    initialization="launay2020"``, and in their code ``identical_blocks=True``: 51.7 million weights at 32,000 tokens.

    Sources: Vaswani et al. 2017 (post-norm, sinusoidal positions); Xiong et al. 2020 (pre-norm). Other than in
    Vaswani et al. embeddings are multiplied by sqrt(width) under ``initialization="launay2020"`` alone: with the other
    one sinusoidal positions are large beside them at first.

    Args:
        shape: ``(context,)``, the largest number of tokens in a sequence.
        classes: The number of tokens in the vocabulary.
        blocks: The number of blocks.
        width: The width d of the residual stream.
        heads: Attention heads; they divide the width.
        hidden: The width of the feed-forward network's hidden layer.
        norm: Normalize behind each residual sum (post), or in front of each branch and once below the head (pre). The
            branches of pre-norm are scaled by 1 / sqrt(blocks).
        positions: A learned vector for each position, or fixed waves.
        activation: The non-linearity of the feed-forward network.
        dropout: The fraction of activations that dropout sets to zero in attention, behind each branch, inside the
            feed-forward network behind its non-linearity, and behind the embedding with its positions.
        placement: Where feedback enters. ``macro``: behind each block; ``micro``: behind each of its two sub-layers
            (post-norm: their norms) and behind the feed-forward network's non-linearity; ``local``: behind every linear
            map, the embedding and every norm, so that no weight below the head carries a signal down.
        attention: How tokens see each other: by queries and keys (``standard``), by Synthesizers (``dense``,
            ``random``), or by ``fixed`` patterns of four heads, see :mod:`bpfree.lab.models.transformer.attention`.
        initialization: Embeddings and learned positions normal of deviation 0.02, the rest as PyTorch's linear layers
            draw it (``default``), or as in Launay et al. 2020, with embeddings multiplied by sqrt(width).
        identical_blocks: All blocks begin with the weights of the first one, as in the code of Launay et al. 2020,
            where this comes from copying a layer.

    Raises:
        SettingsError: A choice is not known, or the sizes do not fit each other.
    """

    suggested_error_at: ClassVar[str] = "below_head"

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        blocks: int = 4,
        width: int = 128,
        heads: int = 4,
        hidden: int = 512,
        norm: Norm = "post",
        positions: Positions = "learned",
        activation: Activation = "relu",
        dropout: float = 0.0,
        placement: Placement = "macro",
        attention: AttentionKind = "standard",
        initialization: Initialization = "default",
        identical_blocks: bool = False,
    ) -> None:
        super().__init__()
        _check_choices(
            norm=norm,
            positions=positions,
            placement=placement,
            attention=attention,
            initialization=initialization,
        )
        _check_counts(blocks=blocks, width=width, heads=heads, hidden=hidden)
        _check(shape, width, heads)
        (self.context,) = shape
        self.scale = math.sqrt(width) if initialization == "launay2020" else 1.0
        self.tokens = nn.Embedding(classes, width)
        self.positions = learned(self.context, width) if positions == "learned" else Waves(self.context, width)
        self.dropout = nn.Dropout(dropout)
        self.embedding_tap = tap_or_none(EMBEDDING, patterns_of(placement, attention, norm, blocks))
        self.blocks = nn.ModuleList()
        for number in range(blocks):
            taps = taps_of(placement, attention, norm, last=number == blocks - 1)
            attending = attention_module(attention, width, heads, self.context, dropout, taps)
            block = Block(attending, width, hidden, norm, 1 / math.sqrt(blocks), activation, dropout, taps)
            self.blocks.append(block)
        self.below_head = nn.Identity()
        self.norm = nn.LayerNorm(width) if norm == "pre" else nn.Identity()
        self.head = nn.Linear(width, classes)
        initialize(self.tokens, self.blocks, self.head, initialization)
        if identical_blocks:
            for other in self.blocks[1:]:
                other.load_state_dict(self.blocks[0].state_dict())

    @staticmethod
    def suggested_taps(
        blocks: int = 4,
        norm: Norm = "post",
        placement: Placement = "macro",
        attention: AttentionKind = "standard",
        **_: object,
    ) -> tuple[str, ...]:
        """Return patterns of the taps that a model with these arguments has."""
        return patterns_of(placement, attention, norm, blocks)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits ``(N, T, classes)`` of the token after each of ``tokens``, int64 ``(N, T)``.

        Raises:
            SettingsError: There are more tokens in a sequence than the context has places.
        """
        if tokens.shape[1] > self.context:
            raise SettingsError(
                f"{tokens.shape[1]} tokens in a sequence, but the model's context is {self.context}: cut the text into "
                "shorter sequences, or build the model for a longer context."
            )
        places = torch.arange(tokens.shape[1], device=tokens.device)
        h = through(self.embedding_tap, self.dropout(self.scale * self.tokens(tokens) + self.positions(places)))
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(self.below_head(h)))


_CHOICES: dict[str, Any] = {
    "norm": Norm,
    "positions": Positions,
    "placement": Placement,
    "attention": AttentionKind,
    "initialization": Initialization,
}


def _check_choices(**given: str) -> None:
    for argument, value in given.items():
        choices = get_args(_CHOICES[argument])
        if value not in choices:  # callers are not type-checked
            raise SettingsError(f"{argument}={value!r} is not known. {nearest(value, choices)}")


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise SettingsError(f"{name} {count} must be at least 1.")


def _check(shape: Sequence[int], width: int, heads: int) -> None:
    if len(shape) != 1:
        raise SettingsError(f"CausalTransformer takes tokens of shape (context,), not {tuple(shape)}.")
    if width % heads or width % 2:
        raise SettingsError(f"width {width} must be even and a multiple of heads, {heads}.")
