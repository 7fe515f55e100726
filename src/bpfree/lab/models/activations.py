"""Non-linearities by name."""

from __future__ import annotations

from typing import Literal, TypeAlias

from torch import nn

from bpfree.errors import nearest
from bpfree.lab.errors import SettingsError

Activation: TypeAlias = Literal["tanh", "relu", "leaky_relu", "gelu"]

_MODULES: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
}


def activation_module(name: str, negative_slope: float = 0.01) -> nn.Module:
    """A new module for the non-linearity ``name``; ``negative_slope`` is that of ``leaky_relu`` below zero.

    Raises:
        SettingsError: An unknown name.
    """
    if name not in _MODULES:
        raise SettingsError(f"activation {name!r} is not known. {nearest(name, _MODULES)}")
    return nn.LeakyReLU(negative_slope) if name == "leaky_relu" else _MODULES[name]()
