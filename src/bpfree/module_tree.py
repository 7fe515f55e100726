"""The modules of a model as they were seen last, and whether others are there now."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from torch import nn

from bpfree.errors import ErrorPlacementError
from bpfree.plan import Plan
from bpfree.taps import select_taps

_MODULES = attrgetter("_modules")  # asked of every module in every pass: several times as quick as a generator


class ModuleTree:
    """Says at the begin of a pass whether modules of a model came, went or were replaced.

    A look costs a fraction of a microsecond for each module that holds others.

    Args:
        model: The model, with the modules that are known.

    Attributes:
        is_copy: True if it came with a copy of the model, whose modules may have lost their hooks: a module can say
            itself how it is copied.
    """

    is_copy = False

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        self._holders = [(module, dict(module._modules)) for module in modules if module._modules]
        self._leaves = [module for module in modules if not module._modules]

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a copy."""
        return {"_holders": [], "_leaves": [], "is_copy": True}

    def has_changed(self) -> bool:
        """Return whether a module holds others than before, compared by identity, or came with a copy."""
        if self.is_copy:
            return True
        for module, seen in self._holders:
            if module._modules != seen:
                return True
        return any(map(_MODULES, self._leaves))


def has_frozen_behind(model: nn.Module, tap: str) -> bool:
    """Return whether parameters registered after a tap are frozen: most probably those of the output layer."""
    modules = iter(model.named_modules())
    for name, _ in modules:
        if name == tap:
            break
    return any(not p.requires_grad for _, module in modules for p in module.parameters(recurse=False))


def newcomers(before: Mapping[str, nn.Module], now: Mapping[str, nn.Module]) -> list[str]:
    """Return the names in ``now`` whose module is not that of ``before``. Exchange the two for those that are gone."""
    return [name for name, module in now.items() if before.get(name) is not module]


def followed(plan: Plan) -> Plan:
    """Return the plan for the model as it is now: default taps are found again, named taps by their names.

    Raises:
        ErrorPlacementError: A module where an error is taken is gone.
    """
    modules = dict(plan.model.named_modules())
    lost = next((name for name in plan.errors if name not in modules), None)
    if lost is not None:
        raise ErrorPlacementError(
            f"error_at={lost!r}: the model has no such module any more. Call attachment.detach() and attach again, "
            "with another error_at."
        )
    named = {name: modules[name] for name in plan.taps if name in modules}
    taps = named if plan.explicit else select_taps(plan.model, None)
    return dataclasses.replace(plan, errors={name: modules[name] for name in plan.errors}, taps=taps)
