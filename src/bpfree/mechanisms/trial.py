"""Runs of a model before its pass, that leave no trace in it."""

from __future__ import annotations

from collections.abc import Generator, Hashable, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from bpfree.preserve import preserved
from bpfree.ranks import ranks


@contextmanager
def without_trace(model: nn.Module) -> Generator[None]:
    """Within this context the model may run: buffers, random state and weights are put back behind it.

    Weights are copied too, for a model may move them in its own forward pass. No gradient is there yet when a pass is
    the first, so that the copies take the place that the gradients will have.
    """
    owners = [(owner, dict(owner._parameters)) for owner in model.modules() if owner._parameters]
    weights = {p: (p._version, p.detach().clone()) for p in model.parameters() if not p.is_inference()}
    try:
        with preserved(model), torch.enable_grad():
            yield
    finally:
        for owner, parameters in owners:
            if owner._parameters != parameters:
                owner._parameters.update(parameters)
        with torch.no_grad():
            for weight, (version, copy) in weights.items():
                if weight._version != version:
                    weight.copy_(copy)


def copied(call: tuple[tuple[Any, ...], Mapping[str, Any]]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a pass, their tensors copied, for a run that may write to them."""

    def copy(tensor: Tensor) -> Tensor:
        return tensor.detach().clone().requires_grad_(tensor.requires_grad)

    args, kwargs = tree_map_only(Tensor, copy, (call[0], dict(call[1])))
    return args, kwargs


def kind_of_call(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Hashable:
    """What calls have in common that take the same way: the model's mode, and which sizes of the arguments agree.

    Where there are several processes the mode alone: all must look at a pass at the same time.
    """
    if ranks() > 1:
        return model.training
    shapes = [tuple(entry.shape) for entry in (*args, *kwargs.values()) if isinstance(entry, Tensor)]
    known: dict[int, int] = {}
    pattern = [[known.setdefault(size, len(known)) if size > 1 else size for size in shape] for shape in shapes]
    return model.training, tuple(kwargs), str(pattern)
