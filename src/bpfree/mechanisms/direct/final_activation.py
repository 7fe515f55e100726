"""A softmax or sigmoid at the end of the model: the error is taken before it, at the logits.

After log_softmax the error of the negative log likelihood is -y/N, which contains no prediction: DFA would be DRTP.
After a softmax or a sigmoid the error is stretched by 1/p. Before them it is softmax(z) - y, as in the rules' sources.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from bpfree.mechanisms.direct.mechanism import DirectMechanism

Kind: TypeAlias = Literal["log_softmax", "softmax", "sigmoid", "log_sigmoid"]

_KINDS: dict[str, Kind] = {
    "LogSoftmaxBackward0": "log_softmax",
    "SoftmaxBackward0": "softmax",
    "SigmoidBackward0": "sigmoid",
    "LogSigmoidBackward0": "log_sigmoid",
}


_RESHAPING = frozenset(
    f"{name}Backward0" for name in ("Squeeze", "Unsqueeze", "View", "UnsafeView", "ReshapeAlias", "Alias", "Clone")
) | {"SqueezeBackward1", "SqueezeBackward2", "IdentityBackward"}


@dataclass(frozen=True)
class FinalActivation:
    """The function o = f(z) at the end of a model, found from the graph of its output o.

    Attributes:
        kind: The function.
        dim: The dimension that a softmax runs over; 0 for the others.
    """

    kind: Kind
    dim: int = 0

    @staticmethod
    def of(output: Tensor) -> FinalActivation | None:
        """Return the function that made ``output``, read from its graph; None if it is another function."""
        node: Any = output.grad_fn
        reshaped = False
        while node is not None and node.name() in _RESHAPING:
            node, reshaped = node.next_functions[0][0], True
        kind = None if node is None else _KINDS.get(node.name())
        # After a change of shape, the dimension that a softmax ran over is not known.
        if kind is None or (reshaped and "softmax" in kind):
            return None
        dim = getattr(node, "_saved_dim", 0)
        return FinalActivation(kind, dim - 2**64 if dim >= 2**63 else dim)  # autograd's number has no sign

    def error_before(self, error: Tensor, output: Tensor) -> Tensor:
        """Return dL/dz, computed from dL/do; both have the shape of o."""
        if self.kind == "log_softmax":
            return error - output.exp() * error.sum(self.dim, keepdim=True)
        if self.kind == "softmax":
            return output * (error - (error * output).sum(self.dim, keepdim=True))
        return error * (output * (1 - output) if self.kind == "sigmoid" else 1 - output.exp())

    def change_before(self, change: Tensor, output: Tensor) -> Tensor:
        """Return the tangent of z, computed from that of o; for a softmax, up to a number added to a whole row.

        The error before a softmax sums to zero, so such a number does not change its product with the tangent.
        """
        if self.kind == "log_softmax":
            return change
        slope = {"softmax": output, "sigmoid": output * (1 - output), "log_sigmoid": 1 - output.exp()}[self.kind]
        return torch.where(slope > 0, change / slope.clamp_min(torch.finfo(slope.dtype).tiny), 0.0)


def final_activation(mechanism: DirectMechanism, name: str, output: Tensor) -> FinalActivation | None:
    """Return the softmax or sigmoid before which this error is taken; None if the user has named the place."""
    if mechanism.plan.placed:
        return None
    if not torch.compiler.is_compiling() and output.grad_fn is not None:
        mechanism.finals[name] = FinalActivation.of(output)
    final = mechanism.finals.get(name)
    if final is not None and not torch.compiler.is_compiling():
        mechanism.tell_once(
            "final",
            f"the model ends in a {final.kind}: {mechanism.rule} takes the error before it, as the rules' sources do. "
            f'To take it behind the {final.kind} say error_at="".',
        )
    return final
