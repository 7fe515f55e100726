"""Direct rules whose feedback learns: from forward estimates of do/dh_l, or from errors and activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from bpfree.errors import OptionError, choice, fraction, not_negative, positive
from bpfree.forward_mode.estimate import Observation
from bpfree.mechanisms.learned.calibrated import CalibratedMechanism
from bpfree.mechanisms.learned.from_errors import ErrorLearnedRule
from bpfree.mechanisms.learned.from_forward import ForwardLearnedRule
from bpfree.mechanisms.learned.mechanism import LearnedMechanism
from bpfree.mechanisms.learned.rule import Size, Stepper
from bpfree.plan import Plan

GrAPEEstimate: TypeAlias = Literal["batch", "cumulative", "floor"]


@dataclass(frozen=True)
class GrAPE(ForwardLearnedRule):
    r"""GrAPE: the feedback turns towards the mean Jacobian that forward passes estimate, and keeps its norm.

    .. math::

        B_l \leftarrow B_l + \eta\,(1 - c)\,\|B_l\|\,(g - c\,b), \qquad
        g = \frac{G_l}{\|G_l\|}, \quad b = \frac{B_l}{\|B_l\|}, \quad c = \langle g, b \rangle

    Then B is rescaled to its first norm. G estimates E[do/dh_l]. This is a gradient step on 1 - cos(B, G), weighted by
    1 - c. Source: Caillon, Fagnou, Delattre and Allauzen 2026. It is a reading of their equation 6: as printed the
    equation only rescales B and aligns nothing (``bpfree.lab.studies.feedback_update`` shows it).

    Args:
        step: eta, the step of the feedback for one training pass. A step that is taken in every ``every``-th pass is
            ``every`` times as long.
        estimate: The estimate G of the Jacobian: that of this batch (``"batch"``), the average of all estimates so far
            (``"cumulative"``, as in the paper), or an average in which the newest estimate weighs 1/t but at least
            ``floor`` (``"floor"``), so that it follows weights that move.
        floor: The least weight of the newest estimate.
        calibrate: In every ``calibrate``-th training pass the weights get backpropagation's gradient; 0 for never. Such
            a step transports weights, and ``print(attachment)`` says so. The paper takes one every T epochs.
    """

    step: float = 0.1
    estimate: GrAPEEstimate = "floor"
    floor: float = 0.005
    calibrate: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("estimate", self.estimate, ("batch", "cumulative", "floor"))
        positive("step", self.step)
        fraction("floor", self.floor)
        if not isinstance(self.calibrate, int) or self.calibrate < 0:  # callers are not type-checked
            raise OptionError(f"calibrate={self.calibrate!r}: a whole number of passes, or 0 for never.")

    def mechanism(self, plan: Plan) -> LearnedMechanism:
        """Make the mechanism: an estimating pass follows each forward pass; calibrating passes are backpropagation."""
        return CalibratedMechanism(self, plan, self.calibrate) if self.calibrate else super().mechanism(plan)

    @property
    def begins_at_zero(self) -> bool:
        """False: a direction is turned, so there must be one."""
        return False

    @property
    def keeps_norm(self) -> bool:
        """True."""
        return True

    def memory(self, step: int) -> float:
        """Return the weight of the newest estimate in G."""
        if self.estimate == "batch":
            return 1.0
        return max(1 / step, self.floor if self.estimate == "floor" else 0.0)

    def direction(self, matrix: Tensor, evidence: Tensor) -> Tensor:
        r"""Return what B moves against, shape ``(c, m)``.

        .. math:: -(1 - c)\,\|B\|\,(g - c\,b)
        """
        tiny = torch.finfo(matrix.dtype).tiny
        norm = matrix.norm()
        g, b = evidence / evidence.norm().clamp_min(tiny), matrix / norm.clamp_min(tiny)
        cosine = (g * b).sum()
        along: Tensor = norm * (cosine * b - g) * (1 - cosine)
        return along

    def rate(self, size: Size) -> float:
        """Return eta, times the passes that one step stands for."""
        return self.step * self.every


@dataclass(frozen=True)
class FDFA(ForwardLearnedRule):
    r"""Forward direct feedback alignment: the feedback is a running average of forward estimates of E[do/dh_l].

    .. math:: d_l = e B_l, \qquad B_l \leftarrow (1 - \beta)\,B_l + \beta\,G_l, \qquad \mathbb{E}[G_l] = \mathbb{E}[J_l]

    G is the estimate of one pass. Source: Bacho and Chu 2022.

    Args:
        beta: The weight of the newest estimate. The estimate's noise grows with n_l, so wide layers need a small beta.
        debiased: Let the weight begin at 1 and fall as 1/t to ``beta``, so that B is an average from the first step on.
            False keeps it at ``beta``, as the published code does: B then grows slowly from zero.
    """

    beta: float = 0.005
    debiased: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction("beta", self.beta)

    def direction(self, matrix: Tensor, evidence: Tensor) -> Tensor:
        """Return B - G, shape ``(c, m)``."""
        return matrix - evidence

    def rate(self, size: Size) -> float:
        """Return the weight of the newest estimate."""
        return max(1 / size.step, self.beta) if self.debiased else self.beta


@dataclass(frozen=True)
class LMS(ForwardLearnedRule):
    r"""Least mean squares: the feedback learns from the part of the output's change that it does not explain yet.

    .. math::

        r_b = \dot o_b - \sum_k B_k v_{b,k}, \qquad
        B_l \leftarrow B_l + \mu\,\frac{1}{N}\sum_b r_b \otimes v_{b,l}, \qquad
        \mu = \frac{s\,N}{\sum_k m_k + N}

    This is the Widrow-Hoff rule with a normalised step; m_k is the number of columns of B_k. Its noise falls as B
    approaches E[J]; FDFA's does not.

    Args:
        scale: s in mu. Values of .1 to .5 work; above 1 B may diverge. In a wide net (the sum of m_k far above N) B
            forgets its start slowly.
    """

    scale: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("scale", self.scale)

    @property
    def mixes_taps(self) -> bool:
        """True: the residual is what all taps together leave."""
        return True

    def evidence(self, seen: Observation, matrices: Sequence[Tensor]) -> list[Tensor]:
        r"""Return the correlation of residual and perturbation, shape ``(c, m_l)``, for every tap of ``seen``.

        .. math:: \frac{1}{N}\sum_b r_b \otimes v_{b,l}
        """
        change = seen.change.to(matrices[0])
        explained = torch.zeros_like(change)
        # One at a time: behind a streaming pass each is drawn when it is asked for.
        for v, B, site in zip(seen.perturbations, matrices, seen.sites, strict=True):
            if site.pairing is None:
                explained = torch.addmm(explained, v.to(B), B.T)
            else:
                explained = explained + site.pairing.scatter(v.to(B) @ B.T)
        return seen.correlations(change - seen.total(explained))

    def direction(self, matrix: Tensor, evidence: Tensor) -> Tensor:
        """Return the evidence with the opposite sign, shape ``(c, m)``."""
        return -evidence

    def rate(self, size: Size) -> float:
        """Return the normalised step mu."""
        return self.scale * size.rows / (size.width + size.rows)


@dataclass(frozen=True)
class DKP(ErrorLearnedRule):
    r"""Direct Kolen-Pollack: B_l learns like the weights of a layer that leads from h_l straight to the output.

    .. math:: \nabla B_l = \sum_b e_b \otimes h_{b,l} + \lambda B_l

    The matrices are parameters of the attachment: give them to an optimizer,
    ``torch.optim.Adam([*model.parameters(), *attachment.parameters()])``. No estimating pass runs. Source: Webster,
    Choi and Ahn 2020.

    Args:
        decay: lambda, the decay of B.
    """

    decay: float = 1e-6
    stepped_by: Stepper = field(default="optimizer", init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative("decay", self.decay)

    def direction(self, matrix: Tensor, evidence: Tensor) -> Tensor:
        r"""Return B's gradient, shape ``(c, m)``.

        .. math:: e^\top h + \lambda B
        """
        return torch.add(evidence, matrix, alpha=self.decay)
