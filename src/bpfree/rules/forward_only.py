"""Rules without a backward pass: forward gradients, and two forward passes compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from torch import Tensor

from bpfree.axes.sites import Site
from bpfree.errors import OptionError, choice, positive
from bpfree.feedback.options import LATER
from bpfree.feedback.signals import SignalKeys, Signals
from bpfree.forward_mode.perturbations import Perturbations
from bpfree.forward_mode.sample_part import Rows, are_all, check_rows
from bpfree.mechanisms.base import Mechanism, Rule
from bpfree.mechanisms.direct.delivery import Delivery
from bpfree.mechanisms.direct.rule import DirectRule
from bpfree.mechanisms.forward_only.activity_perturbation import ActivationsMechanism
from bpfree.mechanisms.forward_only.pepita import OutputError, PepitaMechanism, PepitaOptions, Positions
from bpfree.mechanisms.forward_only.weight_perturbation import WeightsMechanism
from bpfree.plan import Plan

Of: TypeAlias = Literal["activations", "weights"]
Per: TypeAlias = Literal["sample", "row", "batch"]


@dataclass(frozen=True)
class ForwardGradient(DirectRule):
    r"""Forward gradient: the slope of the loss along a random direction, times the direction.

    .. math:: \mathbb{E}[(g \cdot v)\,v] = g

    On average over directions this is the gradient g. Its variance grows with the number of entries that are perturbed
    at once.

    Args:
        of: ``"activations"`` (FG-A, Ren et al. 2022): a direction v_l at every tap and the signal
            d_l = (e . odot) v_l, where odot = sum_k J_k v_k is the output's tangent. Inside a segment backpropagation
            runs; the output layer is exact. ``"weights"`` (FG-W; Silver et al. 2021, Baydin et al. 2022): a direction
            V for every trainable parameter that the pass uses below ``error_at``. Its gradient is
            (sum_b e_b . odot_b) V. No graph is stored and nothing runs backward. The model is not compiled, and its
            forward hooks get dual numbers.
        perturbations: ``"normal"`` or ``"rademacher"`` (random signs), the distribution of v.
        per: The group of rows over which e . odot is summed, for activations. ``"sample"``: all rows of one sample
            (tokens that see each other). ``"row"``: each row by itself, for rows that are independent (points); less
            noise, but biased where rows see each other. ``"batch"``: all rows (nodes of one graph, batch
            normalization).
        rows: For activations: the samples of an estimating pass, drawn anew for each, as a fraction of the batch (a
            float) or as their number (an int). The others get no signal, and these N/k times theirs, which is the
            gradient on average. Refused where samples see each other, and with dropout.
    """

    of: Of = "activations"
    perturbations: Perturbations = "normal"
    per: Per = "sample"
    rows: Rows = field(default=1.0, kw_only=True, metadata=LATER)
    feedback: None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        choice("of", self.of, ("activations", "weights"))
        choice("perturbations", self.perturbations, ("normal", "rademacher"))
        choice("per", self.per, ("sample", "row", "batch"))
        check_rows(self.rows)
        if self.of == "weights" and not are_all(self.rows):
            raise OptionError(f"rows={self.rows}: forward gradients of weights have no estimating pass. Leave it out.")

    def mechanism(self, plan: Plan) -> Mechanism:
        """Return the mechanism: an estimating pass after the forward pass, or a forward pass with dual numbers."""
        if self.of == "weights":
            return WeightsMechanism(self, plan, self.perturbations)
        return ActivationsMechanism(self, plan, self.perturbations, self.rows)

    def signals(self, delivery: Delivery) -> Sequence[Tensor | None]:
        r"""Return the signal of every tap, shape ``(N, n_l)``.

        .. math:: d_l = (e \cdot \dot o)\,v_l
        """
        seen = delivery.observation
        assert seen is not None
        error, part = delivery.error.to(seen.change), seen.part
        slopes = ((error if part is None else part.of_rows(error)) * seen.change).sum(1)
        places = {site.name: place for place, site in enumerate(seen.sites)}

        def along(name: str) -> Tensor | None:
            if name not in places:
                return None
            v, site = seen.perturbations[places[name]], seen.sites[places[name]]
            signal = v * self._of_rows(slopes, site)[:, None].to(v)
            return signal if part is None else part.spread(signal * (part.of / len(part.numbers)))

        return Signals(along, SignalKeys([(site.name,) for site in delivery.sites]))

    def _of_rows(self, slopes: Tensor, site: Site) -> Tensor:
        """Return, for each row of a tap, the sum of e . odot over its rows of the error."""
        if self.per == "row":
            return slopes if site.pairing is None else site.pairing.gather(slopes[:, None])[:, 0]
        groups = site.error.shape[0] if self.per == "sample" else 1
        if not len(slopes):  # an empty batch has no groups
            return slopes
        return slopes.view(groups, -1).sum(1).repeat_interleave(site.rows // groups)


@dataclass(frozen=True)
class PEPITA(Rule):
    r"""PEPITA: a second forward pass runs on x - F e, and layers learn from how their activations differ.

    .. math::

        \nabla W_l = \frac{1}{N} \sum_b (h_l - h_l^{\mathrm{err}}) \otimes h_{l-1}^{\mathrm{err}}, \qquad
        \nabla W_L = \frac{1}{N} \sum_b e \otimes h_{L-1}^{\mathrm{err}}

    The second equation is the output layer's. Biases learn likewise; no derivative of the non-linearity enters. e is
    the error of one sample, N dL/do, and N the number of rows that the loss touches (those whose error is not zero
    throughout). F, ``attachment.feedback["F"]``, is fixed, of shape ``(n_in, c)``, uniform on
    +-``amplitude`` sqrt(6 / n_in). Sources: Dellaferrera and Kreiman 2022, Srinivasan et al. 2023.

    These layers learn: Linear, Conv1d, Conv2d and Conv3d layers that are followed by a tap of their output's shape
    (their non-linearity; a dropout module after it belongs to h_l), and the last layer, at whose output the error is
    taken. Everything else below ``error_at`` gets no gradient (None; zeros under DDP). The size of the error matters,
    so do not use it with a GradScaler.

    Args:
        amplitude: The factor of F's standard deviation, .05 in the paper.
        output_error: The error that the output layer gets. ``"first"``: the first pass's (the published rule).
            ``"second"``: the second pass's (the released code), softmax(o_err) - y. That one is for softmax
            cross-entropy only, because y is computed from the first error.
        positions: The way in which the positions of a convolution are joined: their ``"mean"`` (the released code),
            their sum divided by the root of their number (``"sqrt"``, an option of that code), or their ``"sum"``, as
            in a convolution's gradient.
        scale: The factor by which the mean loss is multiplied before ``backward()``, for example 1/k for each of k
            micro-batches. The rule divides it out of e and multiplies the gradients by it.
    """

    amplitude: float = 0.05
    output_error: OutputError = "first"
    positions: Positions = "mean"
    scale: float = 1.0

    def __post_init__(self) -> None:
        choice("output_error", self.output_error, ("first", "second"))
        choice("positions", self.positions, ("mean", "sqrt", "sum"))
        positive("amplitude", self.amplitude)
        positive("scale", self.scale)

    def mechanism(self, plan: Plan) -> Mechanism:
        """Return the mechanism: a forward pass without a graph, and a second one when the error arrives."""
        options = PepitaOptions(self.amplitude, self.output_error, self.positions, self.scale)
        return PepitaMechanism(self, plan, options)
