"""Networks written out by hand, as matrix products: what the library's gradients are compared with.

Nothing here uses the library or autograd.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


def softmax_error(output: Tensor, targets: Tensor) -> Tensor:
    """dL/do of the mean cross-entropy: (softmax(o) - onehot) / N."""
    shifted = (output - output.max(dim=1, keepdim=True).values).exp()
    error = shifted / shifted.sum(dim=1, keepdim=True)
    error[torch.arange(len(targets)), targets] -= 1
    return error / len(targets)


def scale(normalization: str, width: int, widest: int, c: int) -> float:
    """The factor in B_l = factor x U[:, :n_l], from methods.md's formulas."""
    return {
        "launay2019": math.sqrt(widest / width) / math.sqrt(widest * c),
        "launay2020": 1 / math.sqrt(width),
        "launay2020-code": 1 / math.sqrt(widest),
        "none": 1.0,
    }[normalization]


class TanhMLP:
    """h_l = tanh(W_l h_{l-1} + b_l), o = W h + b, from the weights of an nn.Sequential(Linear, Tanh, ..., Linear)."""

    def __init__(self, model: nn.Sequential) -> None:
        linears = [layer for layer in model if isinstance(layer, nn.Linear)]
        self.weights = [layer.weight.detach().clone() for layer in linears]
        self.biases = [layer.bias.detach().clone() for layer in linears]

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """[x, h_1, h_2, ...], and the output."""
        hidden = [x]
        for W, b in zip(self.weights[:-1], self.biases[:-1], strict=True):
            hidden.append(torch.tanh(hidden[-1] @ W.T + b))
        return hidden, hidden[-1] @ self.weights[-1].T + self.biases[-1]

    def gradients(self, hidden: Sequence[Tensor], error: Tensor, signals: Sequence[Tensor]) -> list[Tensor]:
        """[dW_1, db_1, ...] where tap l's activation receives ``signals[l]`` and the output receives ``error``."""
        deltas = [d * (1 - h**2) for d, h in zip(signals, hidden[1:], strict=True)] + [error]
        found = []
        for delta, below in zip(deltas, hidden, strict=True):
            found += [delta.T @ below, delta.sum(0)]
        return found

    def layerwise_signals(
        self, hidden: Sequence[Tensor], error: Tensor, backward_weights: Sequence[Tensor]
    ) -> list[Tensor]:
        """Signals that go back layer by layer through ``backward_weights`` in place of W (BP where they are W)."""
        signals: list[Tensor] = []
        delta = error
        for B, h in zip(reversed(backward_weights[1:]), reversed(hidden[1:]), strict=True):
            signals.insert(0, delta @ B)
            delta = signals[0] * (1 - h**2)
        return signals


def assert_same(found: Iterable[Tensor], expected: Iterable[Tensor], tolerance: float = 1e-12) -> None:
    """Every tensor within ``tolerance`` of the expected one, relative to its largest entry."""
    found, expected = list(found), list(expected)
    assert len(found) == len(expected)
    for index, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert ours.shape == theirs.shape
        difference = (ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30)
        assert difference <= tolerance, f"tensor {index}: relative difference {float(difference):.2e}"
