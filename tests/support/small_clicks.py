"""Small models of clicks and rows for them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

import bpfree
import bpfree.lab.models as models
from bpfree.lab.settings.model import ModelSettings

SHAPE = (5, 7, 3, 11)
ARGUMENTS: dict[str, dict[str, Any]] = {
    "FM": {"width": 6},
    "DeepFM": {"width": 6, "hidden": [8, 5]},
    "DeepCross": {"width": 6, "layers": 3, "hidden": [8, 5]},
    "AFN": {"width": 6, "neurons": 9, "hidden": [8, 5]},
    "AutoInt": {"width": 6, "attention_width": 8, "heads": 2, "layers": 3, "hidden": [8, 5]},
}
NAMES = tuple(ARGUMENTS)
DEEP = NAMES[1:]


def small(name: str, **arguments: Any) -> nn.Module:
    """Make a small model whose weights are all of some size, in float64."""
    torch.manual_seed(0)
    made: nn.Module = getattr(models, name)(SHAPE, **(ARGUMENTS[name] | arguments)).double()
    for weight in made.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    return made


def identifiers(n: int = 12, seed: int = 0) -> Tensor:
    """Return random identifiers ``(n, fields)``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(0, size, (n,), generator=generator) for size in SHAPE], dim=1)


def clicks(n: int = 12) -> Tensor:
    """Return targets, float64 ``(n,)``."""
    return (torch.arange(n) % 3 == 0).double()


def rows_of(ids: Tensor) -> Tensor:
    """Return the rows that identifiers have in tables of all fields."""
    return ids + torch.tensor([sum(SHAPE[:field]) for field in range(len(SHAPE))])


def attach(model: nn.Module, name: str, rule: Any, **arguments: Any) -> bpfree.Attachment:
    """Attach a rule where the model says."""
    taps = ModelSettings(name, ARGUMENTS[name] | arguments).suggestion("taps")
    return bpfree.attach(model, rule, taps=taps)


def feedback_row(attachment: bpfree.Attachment, tap: str) -> Tensor:
    """Return the row of feedback of a tap under ``DFA()``: the leading numbers of U over sqrt(width)."""
    mechanism: Any = attachment.mechanism
    width = math.prod(next(site.features for site in mechanism.sites if site.name == tap))
    return mechanism.feedback["shared"][0, :width] / math.sqrt(width)
