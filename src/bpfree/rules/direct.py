"""Rules that project the error, or the targets, straight to every tap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from bpfree.errors import TargetsError, choice, not_negative
from bpfree.finite import require_finite
from bpfree.mechanisms.base import taught
from bpfree.mechanisms.direct.delivery import Delivery
from bpfree.mechanisms.direct.rule import DirectRule

Reduction: TypeAlias = Literal["mean", "sum"]

IGNORED = -100
"""The class number that cross-entropy leaves out; such a row has no target and gets no signal."""


@dataclass(frozen=True)
class DFA(DirectRule):
    r"""Direct feedback alignment: the error reaches every tap through a fixed random matrix.

    .. math:: d_l = e B_l

    No segment needs another segment's weights (no weight transport) or result (no backward lock).

    Args:
        feedback: The options for drawing B, or a callable projector; see :class:`bpfree.Feedback`.
        error: ``"exact"`` projects e (Noekland 2016). ``"sign"`` projects sign(e) (sDFA, Frenkel et al. 2021).
            ``"ternary"`` projects e rounded to -1, 0 and 1, the input of an optical co-processor (Launay et al.
            2020): entries of at most ``threshold`` in magnitude become 0.
        reduction: ``"mean"`` takes e as autograd delivers it from a mean loss, with the factor 1/N. ``"sum"``
            multiplies it by N for the taps and leaves the output layer's gradient as it is (the code of Launay et
            al. 2019): at batch 128 the hidden layers get gradients that are 128 times as large. N counts the rows
            that the loss touches; rows whose error is zero (nodes without a label, padding) are left out. A rounded
            error has the factor 1/N with ``"mean"`` and lacks it with ``"sum"``. Its size does not follow the size
            of the loss, so do not use it with a GradScaler.
        threshold: The largest magnitude that ``"ternary"`` rounds to 0, in units of one sample's error N e (for
            softmax with cross-entropy: of a probability), at least 0.
    """

    error: Literal["exact", "sign", "ternary"] = "exact"
    reduction: Reduction = "mean"
    threshold: float = 0.1

    def __post_init__(self) -> None:
        choice("error", self.error, ("exact", "sign", "ternary"))
        choice("reduction", self.reduction, ("mean", "sum"))
        not_negative("threshold", self.threshold)

    def vector(self, delivery: Delivery) -> Tensor:
        r"""Return what is projected, shape ``(N, c)``.

        .. math::

            e, \qquad \mathrm{sign}(e)/N, \qquad
            \mathrm{sign}(Ne)\,[\,|Ne| > \mathrm{threshold}\,]/N

        for ``error="exact"``, ``"sign"`` and ``"ternary"``; each is N times as large with ``reduction="sum"``.
        """
        e = delivery.error
        if self.error == "exact" and self.reduction == "mean":
            return e
        n = taught(e).sum()
        if self.error == "exact":
            return e * n
        if self.error == "ternary":
            e = F.hardshrink(e * n, self.threshold)
        return e.sign() if self.reduction == "sum" else e.sign() / n.clamp_min(1)


@dataclass(frozen=True)
class DRTP(DirectRule):
    r"""Direct random target projection: the one-hot target y takes the place of the error.

    .. math:: d_l = \tfrac{1}{N}\, y B_l

    No error is needed, so with ``streaming=True`` the segments learn while the forward pass still runs. The output
    layer learns from its exact gradient. Give the targets with ``attachment.targets(y)`` before ``loss.backward()``;
    for a compiled model give them before the forward pass. The class number -100 gets no signal, as in cross-entropy.
    The size of the signal does not follow the size of the loss, so do not use it with a GradScaler. Source: Frenkel
    et al. 2021.

    Args:
        feedback: The options for drawing B, or a callable projector; see :class:`bpfree.Feedback`.
        reduction: ``"mean"`` divides the signal by the N rows of the batch, as a mean loss does; ``"sum"`` does not
            (the published code). Rows whose error is zero are not counted and get no signal, because the loss does
            not touch them. Where segments learn in the forward pass the error is not known yet: mark such rows with
            -100.
    """

    reduction: Reduction = "mean"

    def __post_init__(self) -> None:
        choice("reduction", self.reduction, ("mean", "sum"))

    @property
    def needs_error(self) -> bool:
        """False: with ``streaming=True`` and targets given before it, segments learn in the forward pass itself."""
        return False

    def vector(self, delivery: Delivery) -> Tensor:
        """Return the targets, shape ``(N, c)``; class numbers ``(N,)`` become one-hot rows.

        Raises:
            TargetsError: No targets were given, or they do not fit the output.
        """
        y, known = _one_hot(delivery.targets, delivery.error)
        if delivery.error_known:
            known = known & taught(delivery.error)
        y = y.where(known[:, None], 0)
        return y / known.sum().clamp_min(1) if self.reduction == "mean" else y


def _one_hot(targets: Tensor | None, error: Tensor) -> tuple[Tensor, Tensor]:
    """Return the targets of all rows as vectors, and which rows have one."""
    n, c = error.shape
    if targets is None:
        raise TargetsError("DRTP learns from targets: call attachment.targets(y) before loss.backward().")
    if c > 1 and targets.numel() == n and not targets.is_floating_point():
        classes = targets.reshape(n).long()
        ignored = classes == IGNORED
        classes = classes.masked_fill(ignored, 0)
        if not torch.compiler.is_compiling() and not bool(((classes >= 0) & (classes < c)).all()):
            raise TargetsError(
                f"targets hold the classes {int(classes.min())} to {int(classes.max())}; the output has {c} numbers, "
                f"so classes lie in 0 to {c - 1}. DRTP takes the error at the logits: leave error_at out, or name what "
                "gives them."
            )
        return F.one_hot(classes, c).to(error), ~ignored
    if targets.numel() == n * c:
        require_finite(targets, "one of the targets")
        return targets.reshape(n, c).to(error), targets.new_ones(n, dtype=torch.bool)
    raise TargetsError(
        f"targets of shape {tuple(targets.shape)} and {targets.dtype} fit neither {n} class numbers (integers) nor "
        f"an output of shape {(n, c)}."
    )
