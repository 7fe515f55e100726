"""Non-linearities by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, TypeAlias

from torch import nn

from bpfree.errors import nearest
from bpfree.lab.errors import SettingsError

Activation: TypeAlias = Literal["tanh", "relu", "leaky_relu", "gelu", "abs"]

_MODULES: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    # |x| has slope -1 below zero. torch has no module for it, and feedback enters behind those that it has.
    "abs": partial(nn.LeakyReLU, -1.0),
}


def activation_module(name: str, negative_slope: float = 0.01) -> nn.Module:
    """Return a new module for the non-linearity ``name``; ``negative_slope`` is that of ``leaky_relu`` below zero.

    Raises:
        SettingsError: An unknown name.
    """
    if name not in _MODULES:
        raise SettingsError(f"activation {name!r} is not known. {nearest(name, _MODULES)}")
    return nn.LeakyReLU(negative_slope) if name == "leaky_relu" else _MODULES[name]()
