"""The services of a model's layers, found once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bpfree.layers.function import Service, circumstances_of, find_service
from bpfree.rerun.arguments import Call


class Services:
    """The services of a model's layers, by name: each is found at the first call, and when its layer has changed."""

    def __init__(self) -> None:
        # With the circumstances in which each was found.
        self._found: dict[str, tuple[Any, Service]] = {}

    def of(
        self, name: str, layer: nn.Module, call: Call, find: Callable[[nn.Module, Call], Service] = find_service
    ) -> Service:
        """Return the service of the layer of this name, which is about to be called; ``find`` finds it, if need be."""
        kept = self._found.get(name)
        if kept is not None:
            # Compare the class alone for torch's own classes, the usual case; else everything a layer may depend on.
            known = kept[0] is type(layer) and "forward" not in layer.__dict__
            if known or torch.compiler.is_compiling() or kept[0] == circumstances_of(layer, call):
                return kept[1]
        service = find(layer, call)
        self._found[name] = circumstances_of(layer, call), service
        return service

    def known(self) -> dict[str, Service]:
        """Return the services found so far."""
        return {name: service for name, (_, service) in self._found.items()}

    def forget(self) -> None:
        """Forget all: the model's layers have changed."""
        self._found.clear()
