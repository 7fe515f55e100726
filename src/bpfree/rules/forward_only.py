"""Rules without a backward pass: forward gradients, and two forward passes compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from torch import Tensor

from bpfree.axes.sites import Site
from bpfree.errors import OptionError, choice
from bpfree.feedback.signals import Signals
from bpfree.forward_mode.estimate import Perturbations
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
    """The directional derivative of the loss along a random direction, times the direction.

    On average over directions this is the gradient: E[(g . v) v] = g. Its variance grows with the number of directions
    that are perturbed at once.

    Args:
        of: ``"activations"`` (FG-A, Ren et al. 2022): v_l at every tap, and the signal d_l = (e . odot) v_l with odot
            the output's tangent, sum_k J_k v_k; backpropagation inside a segment, the output layer exact.
            ``"weights"`` (FG-W; Silver et al. 2021, Baydin et al. 2022): V for every trainable parameter that the
            pass uses below ``error_at``, which gets (sum_b e_b . odot_b) V; no graph is stored and nothing runs
            backward. The model is not compiled, and its forward hooks see dual numbers.
        perturbations: ``"normal"`` or ``"rademacher"``, the distribution of v.
        per: For activations, over what e . odot is summed. ``"sample"``: over what lies behind the first dimension
            (tokens that see each other). ``"row"``: over nothing, for rows that are independent (points): less noise,
            biased where rows see each other. ``"batch"``: over everything (nodes of one graph, batch normalization).
    """

    of: Of = "activations"
    perturbations: Perturbations = "normal"
    per: Per = "sample"
    feedback: None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        choice("of", self.of, ("activations", "weights"))
        choice("perturbations", self.perturbations, ("normal", "rademacher"))
        choice("per", self.per, ("sample", "row", "batch"))

    def mechanism(self, plan: Plan) -> Mechanism:
        """An estimating pass behind the forward pass, or a forward pass with dual numbers."""
        kind = ActivationsMechanism if self.of == "activations" else WeightsMechanism
        return kind(self, plan, self.perturbations)

    def signals(self, delivery: Delivery) -> Sequence[Tensor | None]:
        """(e . odot) v_l, shape ``(N, n_l)``, for every tap."""
        seen = delivery.observation
        assert seen is not None
        slopes = (delivery.error.to(seen.change) * seen.change).sum(1)
        places = {site.name: place for place, site in enumerate(seen.sites)}

        def along(name: str) -> Tensor | None:
            if name not in places:
                return None
            v, site = seen.perturbations[places[name]], seen.sites[places[name]]
            return v * self._of_rows(slopes, site)[:, None].to(v)

        return Signals(along, [(site.name,) for site in delivery.sites])

    def _of_rows(self, slopes: Tensor, site: Site) -> Tensor:
        """What e . odot of every row of the error comes to at each row of a tap."""
        if self.per == "row":
            return slopes if site.pairing is None else site.pairing.gather(slopes[:, None])[:, 0]
        groups = site.error.shape[0] if self.per == "sample" else 1
        if not len(slopes):  # an empty batch has no groups
            return slopes
        return slopes.view(groups, -1).sum(1).repeat_interleave(site.rows // groups)


@dataclass(frozen=True)
class PEPITA(Rule):
    """PEPITA: a second forward pass on x - F e; a layer learns from how its activation differs between the passes.

    dL/dW_l is taken to be (1/N) sum_b (h_l - h_l^err) (x) h_(l-1)^err, for the bias likewise; no derivative of the
    non-linearity enters. The output layer's is (1/N) sum_b e (x) h_(L-1)^err. e is the error of one sample, N dL/do, N
    the number of rows that the loss touches: those whose error is not zero throughout. F,
    ``attachment.feedback["F"]``, is fixed, of shape ``(n_in, c)``, uniform on +-``amplitude`` sqrt(6 / n_in). Sources:
    Dellaferrera and Kreiman 2022, Srinivasan et al. 2023.

    The layers that learn are Linear and Conv1d, 2d, 3d ones that a tap of their output's shape follows (their
    non-linearity; a dropout module behind it belongs to h_l), and the last one, whose output is the error's place.
    Everything else below ``error_at`` gets no gradient (None; zeros under DDP). The size of the error matters, so it
    is not for a GradScaler.

    Args:
        amplitude: The factor of F's standard deviation, .05 in the paper.
        output_error: ``"first"``: the output layer gets the first pass's error (the published rule). ``"second"``: the
            second pass's (the released code), softmax(o_err) - y, for the softmax cross-entropy alone: y is found in
            the first error.
        positions: How a convolution's positions enter: their ``"mean"`` (the released code), the sum over the root
            of their number (``"sqrt"``, its option), or the ``"sum"``, as in a convolution's gradient.
        scale: What the mean loss is multiplied by before ``backward()``: 1/k for each of k micro-batches. e is what
            it would be without, and the gradients what they would be times ``scale``.
    """

    amplitude: float = 0.05
    output_error: OutputError = "first"
    positions: Positions = "mean"
    scale: float = 1.0

    def __post_init__(self) -> None:
        choice("output_error", self.output_error, ("first", "second"))
        choice("positions", self.positions, ("mean", "sqrt", "sum"))
        for option, value in (("amplitude", self.amplitude), ("scale", self.scale)):
            if not value > 0:
                raise OptionError(f"{option}={value} must be positive.")

    def mechanism(self, plan: Plan) -> Mechanism:
        """A forward pass without a graph, and a second one when the error arrives."""
        options = PepitaOptions(self.amplitude, self.output_error, self.positions, self.scale)
        return PepitaMechanism(self, plan, options)
