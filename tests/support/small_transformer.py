"""A causal transformer for tests, whose weights are all of some size."""

from __future__ import annotations

from typing import Any

import torch

from bpfree.lab.models import CausalTransformer

SMALL: dict[str, Any] = {"blocks": 3, "width": 16, "heads": 4, "hidden": 24}
CLASSES = 23


def small_transformer(context: int, **arguments: Any) -> CausalTransformer:
    """Make a small model whose biases and gains are not 0 and 1, in float64."""
    torch.manual_seed(0)
    made = CausalTransformer((context,), CLASSES, **(SMALL | arguments)).double()
    for weight in made.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    return made
