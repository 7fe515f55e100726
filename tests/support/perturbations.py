"""Perturbations that are noted on each process, and given to one process that stands for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import bpfree
from bpfree.forward_mode.estimate import Observation
from bpfree.mechanisms.direct.delivery import Delivery
from bpfree.mechanisms.learned.from_forward import ForwardLearnedRule
from support.runs import variant

Notes = list[list["np.ndarray[Any, Any]"]]
"""For every estimating pass the perturbations of its taps, ``(N, m_l)``."""


def estimates(rule: bpfree.Rule) -> bool:
    """Whether the rule has an estimating pass behind its forward passes."""
    return isinstance(rule, ForwardLearnedRule) or getattr(rule, "of", None) == "activations"


def noting(rule: bpfree.Rule, notes: Notes) -> bpfree.Rule:
    """The same rule, which notes its perturbations."""

    def seen(observation: Observation) -> Observation:
        notes.append([v.numpy().copy() for v in observation.perturbations])
        return observation

    return _through(rule, seen)


def told(rule: bpfree.Rule, notes: Sequence[Notes], model: nn.Sequential, x: Tensor) -> bpfree.Rule:
    """The rule on the joined batch ``x``, with the perturbations of all processes one below the other."""
    passes = zip(*notes, strict=True)

    def seen(observation: Observation) -> Observation:
        drawn = [torch.from_numpy(np.concatenate(parts)) for parts in zip(*next(passes), strict=True)]
        return Observation(change(model, x, drawn), drawn, observation.sites)

    return _through(rule, seen)


def _through(rule: bpfree.Rule, seen: Any) -> bpfree.Rule:
    """The same rule, whose observations pass through ``seen``."""
    kind: Any = type(rule)

    def evidence(self: Any, observation: Observation, matrices: Sequence[Tensor]) -> list[Tensor]:
        found: list[Tensor] = kind.evidence(self, seen(observation), matrices)
        return found

    def signals(self: Any, delivery: Delivery) -> Sequence[Tensor | None]:
        assert delivery.observation is not None
        known = Delivery(delivery.error, delivery.sites, delivery.targets, delivery.project, seen(delivery.observation))
        found: Sequence[Tensor | None] = kind.signals(self, known)
        return found

    if isinstance(rule, ForwardLearnedRule):
        return variant(rule, evidence=evidence)
    return variant(rule, signals=signals) if estimates(rule) else rule


@torch.no_grad()
def change(model: nn.Sequential, x: Tensor, drawn: Sequence[Tensor]) -> Tensor:
    """How the output of a tanh net answers to perturbations of its activations, sum_l J_l v_l: by matrix products."""
    perturbations = iter(drawn)
    h, t = x, torch.zeros_like(x)
    for layer in model:
        if isinstance(layer, nn.Linear):
            h, t = h @ layer.weight.T + layer.bias, t @ layer.weight.T
        else:
            h = h.tanh()
            t = t * (1 - h**2) + next(perturbations)
    return t
