"""The initialization of weights."""

from __future__ import annotations

from typing import Literal, TypeAlias

from torch import nn

Initialization: TypeAlias = Literal["torch", "he"]
BatchNorm: TypeAlias = bool | Literal["uniform"]
"""Whether a model normalizes over the batch; ``"uniform"`` as in PyTorch before 1.2, see :func:`begin_norms`."""


def initialize(model: nn.Module, initialization: Initialization) -> None:
    """Draw the weights of linear layers and convolutions anew, from the global random state.

    Args:
        model: The model.
        initialization: PyTorch's own (``"torch"``), which every layer has already, or normal weights of variance
            2 / inputs and no bias (``"he"``, He et al. 2015), under which ReLU layers keep the size of their inputs.
    """
    if initialization == "torch":
        return
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def begin_norms(model: nn.Module, batch_norm: BatchNorm) -> None:
    """Let the factors of batch normalization begin uniform on (0, 1), if ``batch_norm`` is ``"uniform"``.

    So did PyTorch before 1.2, with which papers of that time were made; since then they begin at 1.
    """
    if batch_norm != "uniform":
        return
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(layer.weight)
