"""One block of a transformer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection

from torch import Tensor, nn

from bpfree.lab.models.activations import Activation, activation_module
from bpfree.lab.models.transformer.placement import Norm, tap_or_none, through


class Block(nn.Module):
    """Attention and a feed-forward network, each in a residual branch, and taps: ``(N, T, d)`` to ``(N, T, d)``.

    Args:
        attention: Maps ``(N, T, d)`` to ``(N, T, d)``.
        width: d.
        hidden: The width of the hidden layer.
        norm: Where to normalize, see :class:`CausalTransformer`.
        scale: The factor of pre-norm's branches.
        activation: The non-linearity of the feed-forward network.
        dropout: Behind each branch and behind the non-linearity.
        taps: The names of the block's taps, see :mod:`bpfree.lab.models.transformer.placement`.
    """

    def __init__(
        self,
        attention: nn.Module,
        width: int,
        hidden: int,
        norm: Norm,
        scale: float,
        activation: Activation,
        dropout: float,
        taps: Collection[str],
    ) -> None:
        super().__init__()
        self.pre, self.scale = norm == "pre", scale
        self.attention = attention
        self.norm1 = nn.LayerNorm(width)
        self.feed_forward = _feed_forward(width, hidden, activation, dropout, taps)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.attention_tap = tap_or_none("attention_tap", taps)
        self.norm1_tap = tap_or_none("norm1_tap", taps)
        self.middle_tap = tap_or_none("middle_tap", taps)
        self.norm2_tap = tap_or_none("norm2_tap", taps)
        self.feed_forward_tap = tap_or_none("feed_forward_tap", taps)
        self.tap = tap_or_none("tap", taps)

    def forward(self, h: Tensor) -> Tensor:
        """Return the block's output, shaped as ``h``."""
        if self.pre:
            h = through(self.middle_tap, h + self.scale * self._attend(through(self.norm1_tap, self.norm1(h))))
            h = h + self.scale * self._feed(through(self.norm2_tap, self.norm2(h)))
        else:
            h = through(self.norm1_tap, self.norm1(h + self._attend(h)))
            h = self.norm2(h + self._feed(h))
        return through(self.tap, h)

    def _attend(self, h: Tensor) -> Tensor:
        return through(self.attention_tap, self.dropout(self.attention(h)))

    def _feed(self, h: Tensor) -> Tensor:
        return through(self.feed_forward_tap, self.dropout(self.feed_forward(h)))


def _feed_forward(
    width: int, hidden: int, activation: Activation, dropout: float, taps: Collection[str]
) -> nn.Sequential:
    tap = tap_or_none("feed_forward.hidden_tap", taps)
    # The layers have the names from before there were dropout and a tap between them: the feedback of layerwise rules
    # is drawn by the layer's name, so that other names would change the numbers of earlier runs.
    return nn.Sequential(
        OrderedDict(
            {
                "0": nn.Linear(width, hidden),
                "1": activation_module(activation),
                "dropout": nn.Dropout(dropout),
                **({} if tap is None else {"hidden_tap": tap}),
                "2": nn.Linear(hidden, width),
            }
        )
    )
