"""The causal transformer written once more, from its weights alone: every softmax and every mask by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Weights = Mapping[str, Tensor]


class Plain:
    """A forward pass by hand, in which ``seen`` gets what stands at the place of each tap.

    Args:
        weights: The state of a ``CausalTransformer``.
        arguments: The arguments that it was made with.
        change: Called with the name and the value at each place of a tap; what it returns goes on.
    """

    def __init__(
        self, weights: Weights, arguments: Mapping[str, Any], change: Callable[[str, Tensor], Tensor] | None = None
    ) -> None:
        self.weights, self.arguments, self.change = weights, arguments, change
        self.seen: dict[str, Tensor] = {}
        self.pre = arguments.get("norm") == "pre"

    def logits(self, tokens: Tensor) -> Tensor:
        """Return the logits ``(N, T, classes)``."""
        h = self.below_head(tokens)
        return self.linear(self.norm(h, "norm") if self.pre else h, "head")

    def below_head(self, tokens: Tensor) -> Tensor:
        """Return the last block's output ``(N, T, d)``."""
        width, blocks = self.weights["tokens.weight"].shape[1], self.arguments["blocks"]
        scale = math.sqrt(width) if self.arguments.get("initialization") == "launay2020" else 1.0
        h = self.at(
            "embedding_tap", self.weights["tokens.weight"][tokens] * scale + self.places(tokens.shape[1], width)
        )
        for number in range(blocks):
            h = self.block(h, f"blocks.{number}", 1 / math.sqrt(blocks))
        return h

    def places(self, count: int, width: int) -> Tensor:
        if "positions.weight" in self.weights:
            return self.weights["positions.weight"][:count]
        rows = [
            [math.sin(t / 10_000 ** (k / width)) if k % 2 == 0 else math.cos(t / 10_000 ** ((k - 1) / width))
             for k in range(width)]
            for t in range(count)
        ]  # fmt: skip
        return torch.tensor(rows, dtype=self.weights["tokens.weight"].dtype)

    def block(self, h: Tensor, name: str, scale: float) -> Tensor:
        if self.pre:
            inner = self.at(f"{name}.norm1_tap", self.norm(h, f"{name}.norm1"))
            attended = self.at(f"{name}.attention_tap", self.attention(inner, f"{name}.attention"))
            h = self.at(f"{name}.middle_tap", h + scale * attended)
            inner = self.at(f"{name}.norm2_tap", self.norm(h, f"{name}.norm2"))
            return self.at(f"{name}.tap", h + scale * self.feed(inner, name))
        attended = self.at(f"{name}.attention_tap", self.attention(h, f"{name}.attention"))
        h = self.at(f"{name}.norm1_tap", self.norm(h + attended, f"{name}.norm1"))
        return self.at(f"{name}.tap", self.norm(h + self.feed(h, name), f"{name}.norm2"))

    def feed(self, h: Tensor, name: str) -> Tensor:
        hidden = self.at(f"{name}.feed_forward.hidden_tap", self.linear(h, f"{name}.feed_forward.0").clamp(min=0))
        return self.at(f"{name}.feed_forward_tap", self.linear(hidden, f"{name}.feed_forward.2"))

    def attention(self, h: Tensor, name: str) -> Tensor:
        heads, (_, count, width) = self.arguments["heads"], h.shape
        kind = self.arguments.get("attention", "standard")
        weights = getattr(self, f"{kind}_weights")(h, name, heads)
        if kind == "standard":
            values = self.linear(h, f"{name}.into")[..., 2 * width :]
        else:
            values = self.at(f"{name}.value_tap", self.linear(h, f"{name}.value"))
        mixed = torch.zeros_like(values)
        size = width // heads
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            for i in range(count):
                for j in range(i + 1):
                    mixed[:, i, own] = mixed[:, i, own] + weights[head][:, i, j, None] * values[:, j, own]
        return self.linear(self.at(f"{name}.mixing_tap", mixed), f"{name}.out")

    def standard_weights(self, h: Tensor, name: str, heads: int) -> list[Tensor]:
        q, k, _ = self.linear(h, f"{name}.into").chunk(3, dim=2)
        size = h.shape[2] // heads
        parts = [slice(head * size, (head + 1) * size) for head in range(heads)]
        return [causal_softmax(q[..., own] @ k[..., own].transpose(1, 2) / math.sqrt(size)) for own in parts]

    def dense_weights(self, h: Tensor, name: str, heads: int) -> list[Tensor]:
        hidden = self.linear(h, f"{name}.scores.hidden").clamp(min=0)
        scores = self.linear(self.at(f"{name}.scores.hidden_tap", hidden), f"{name}.scores.out")
        context, count = scores.shape[2] // heads, h.shape[1]
        return [causal_softmax(scores[..., head * context : head * context + count]) for head in range(heads)]

    def random_weights(self, h: Tensor, name: str, heads: int) -> list[Tensor]:
        scores, count = self.weights[f"{name}.scores.weight"], h.shape[1]
        return [causal_softmax(scores[head, :count, :count].expand(len(h), -1, -1)) for head in range(heads)]

    def fixed_weights(self, h: Tensor, name: str, heads: int) -> list[Tensor]:
        assert heads == 4
        weights = h.new_zeros(4, h.shape[1], h.shape[1])
        for i in range(h.shape[1]):
            weights[0, i, i] = 1
            weights[1, i, max(i - 1, 0)] = 1
            earlier = range(i - 1) if i > 1 else [0]
            for j in earlier:
                weights[2, i, j] = 1 / len(earlier)
                weights[3, i, j] = (j + 1) ** 3 / sum((other + 1) ** 3 for other in earlier)
        return [one.expand(len(h), -1, -1) for one in weights]

    def linear(self, h: Tensor, name: str) -> Tensor:
        return h @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, h: Tensor, name: str) -> Tensor:
        centred = h - h.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True)
        return centred / (variance + 1e-5).sqrt() * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def at(self, name: str, h: Tensor) -> Tensor:
        self.seen[name] = h
        return h if self.change is None else self.change(name, h)


def causal_softmax(scores: Tensor) -> Tensor:
    """Return softmax over j <= i of ``(N, T, T)``."""
    exponents = scores.exp() * torch.ones(scores.shape[1:], dtype=scores.dtype).tril()
    return exponents / exponents.sum(-1, keepdim=True)


def encoder_layers(weights: Weights, heads: int, hidden: int, *, pre: bool, scale: float) -> list[nn.Module]:
    """Return torch's own encoder layers with the weights of the blocks; ``scale`` goes into each branch's last map."""
    layers: list[nn.Module] = []
    width = weights["tokens.weight"].shape[1]
    while f"blocks.{len(layers)}.norm1.weight" in weights:
        block = f"blocks.{len(layers)}"
        layer = nn.TransformerEncoderLayer(width, heads, hidden, 0.0, batch_first=True, norm_first=pre).double()
        names = {
            "self_attn.in_proj_": "attention.into.",
            "self_attn.out_proj.": "attention.out.",
            "linear1.": "feed_forward.0.",
            "linear2.": "feed_forward.2.",
            "norm1.": "norm1.",
            "norm2.": "norm2.",
        }
        state = {
            theirs + kind: weights[f"{block}.{ours}{kind}"].clone()
            for theirs, ours in names.items()
            for kind in ("weight", "bias")
        }
        for name, weight in state.items() if pre else ():
            if name.startswith(("self_attn.out_proj", "linear2")):
                weight *= scale
        layer.load_state_dict(state)
        layers.append(layer)
    return layers
