"""Optimizers, the course of the learning rate, and what happens to gradients before a step.

The course ``noam`` is that of Vaswani et al. 2017 with the rate at its peak in place of a factor: step t = 1, 2, ... is
taken with

    lr * min(t / warmup, sqrt(warmup / t))

Theirs is ``factor * width^-.5 * min(t^-.5, t * warmup^-1.5)``, whose peak, at t = warmup, is
``lr = factor * (width * warmup)^-.5``: 7.0e-4 for factor 1, width 512 and warmup 4,000.

The two plateaus are torch's :class:`~torch.optim.lr_scheduler.ReduceLROnPlateau`, with its threshold: a loss that has
not fallen by 1e-4 of the lowest has not fallen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from bpfree.attachment import Attachment
from bpfree.feedback.lazy_buffers import name_of
from bpfree.lab.settings import RuleSettings
from bpfree.mechanisms.layerwise.kolen_pollack import KolenPollackMechanism

# Functions of the part of a run that is done, 0 to 1, and its epochs: the factor of the learning rate.
_COURSES: dict[str, Callable[[float, int], float]] = {
    "constant": lambda done, epochs: 1.0,
    "cosine": lambda done, epochs: (1 + math.cos(math.pi * done)) / 2,
    "exponential": lambda done, epochs: 0.95 ** math.floor(done * epochs + _ROUNDING),
    "multistep": lambda done, epochs: 0.1 ** sum(done + _ROUNDING >= part for part in (0.6, 0.9)),
}
_ROUNDING = 1e-9  # of a step's number divided by the number of steps
VALIDATION_PLATEAU = "validation-plateau"
_PLATEAUS: dict[str, dict[str, Any]] = {
    "plateau": {"factor": 0.1, "patience": 5},
    # That of the code of Launay et al. 2020 for language.
    VALIDATION_PLATEAU: {"factor": 0.2, "patience": 1},
}


def make_optimizer(settings: RuleSettings, weights: Sequence[Any]) -> Optimizer:
    """Make a rule's optimizer of weights or of groups of them."""
    options: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    if settings.optimizer != "RAdam":  # torch has none that is fused
        # One pass over the weights in place of ten, which on a CPU is a third of a small network's step.
        options["fused"] = True
    if settings.optimizer == "SGD":
        return torch.optim.SGD(weights, momentum=settings.momentum, **options)
    options |= {"betas": (0.9, settings.beta2), "eps": settings.eps}
    kinds = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW, "RAdam": torch.optim.RAdam}
    return kinds[settings.optimizer](weights, **options)


def make_plateau(settings: RuleSettings, optimizer: Optimizer) -> ReduceLROnPlateau | None:
    """Make the schedule that follows a loss; None for those that follow the number of the step."""
    options = _PLATEAUS.get(settings.schedule)
    return None if options is None else ReduceLROnPlateau(optimizer, **options)


def course(settings: RuleSettings, steps: int, epochs: int) -> Callable[[int], float]:
    """Return the factor of the learning rate as a function of the number of steps that are done.

    Args:
        settings: The schedule.
        steps: The steps of the whole run.
        epochs: Its epochs.
    """
    if settings.schedule == "noam":
        return lambda done: noam(done + 1, settings.warmup)
    shape = _COURSES[settings.schedule]
    return lambda done: shape(min(done / steps, 1.0), epochs)


def noam(step: int, warmup: int) -> float:
    """Return the factor of step 1, 2, ...: it rises in a straight line to 1 at ``warmup`` and falls with the root."""
    return min(step / warmup, math.sqrt(warmup / step))


def micro_batches(batch: tuple[Any, Tensor], parts: int) -> Iterator[tuple[Any, Tensor]]:
    """Yield a batch in so many equal parts, or fewer where it has too few rows; the last part may be smaller.

    Args:
        batch: Inputs and targets, a row of each a sample; with one part, inputs of any form.
        parts: The number of micro-batches.
    """
    if parts == 1:
        yield batch
        return
    x, y = batch
    yield from zip(x.chunk(parts), y.chunk(parts), strict=True)


class MeanGradients:
    """Makes the gradients of micro-batches, which add up in ``.grad``, the mean over all their rows.

    Gradients are scaled, not the loss: the signals of some rules (DRTP, ternary DFA) do not follow the loss.

    Args:
        weights: The weights, and the feedback that an optimizer steps.
    """

    def __init__(self, weights: Iterable[nn.Parameter]) -> None:
        self._weights = list(weights)
        self._rows, self._last = 0, 0

    def before(self, rows: int) -> None:
        """Call before the backward pass of so many rows: what is there is weighed against what is to come."""
        if self._last not in (0, rows):
            self._scale(self._last / rows)
        self._last = rows
        self._rows += rows

    def finish(self) -> None:
        """Call after the last backward pass."""
        if self._last != self._rows:
            self._scale(self._last / self._rows)

    def _scale(self, factor: float) -> None:
        gradients = [weight.grad for weight in self._weights if weight.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, factor)


def kolen_pollack_pairs(attachment: Attachment) -> list[tuple[Tensor, nn.Parameter]]:
    """Return every W that Kolen-Pollack learning has a B of, and that B: what happens to one must happen to both."""
    return [
        (part.layers[name_of(key)].weight, B)  # type: ignore[misc]
        for part in attachment.parts()
        if isinstance(part, KolenPollackMechanism)
        for key, B in part.feedback.named_parameters()
    ]


def clip_gradients(attachment: Attachment, largest: float) -> None:
    """Scale the gradients of a model's weights down to this norm of all of them together, where theirs is larger.

    Kolen-Pollack's B gets the same factor as its W, whose gradient it has: the difference of the two shrinks only if
    both take the same steps. Other feedback, which an optimizer may step too, learns from another objective: its
    gradients neither count nor change. Feedback that steps by itself has none.
    """
    weights = list(attachment.model.parameters())
    norm = nn.utils.get_total_norm(weight.grad for weight in weights if weight.grad is not None)
    copies = [B for _, B in kolen_pollack_pairs(attachment)]
    nn.utils.clip_grads_with_norm_([*weights, *copies], largest, norm)
