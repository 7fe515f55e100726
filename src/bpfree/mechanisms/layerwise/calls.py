"""The state of the present pass, and of the calls of layers in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from bpfree.layers.function import Service
from bpfree.rerun.arguments import Call


@dataclass
class ModelPass:
    """A forward pass of the model.

    Attributes:
        awaited: The places of errors that it has not reached yet; after the last one, layers learn exactly.
    """

    awaited: set[str]


@dataclass
class LayerCalls:
    """The calls of layers in one thread.

    Attributes:
        current: The pass that the thread is in.
        inputs: For every running layer, its input before it was detached, its call, and its service.
        weights: The running layers' weights, as a parametrization has computed them for this call.
        outside: The layers that were called without the model since a pass without the model began.
        reached: The places of errors that such a pass has reached.
        sent_back: True if an error has come back to such a pass: the next call of a layer begins another pass.
        transporting: True while B is W, for a comparison with autograd.
    """

    current: ModelPass | None = None
    inputs: dict[str, tuple[Tensor, Call, Service]] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    outside: set[str] = field(default_factory=set)
    reached: set[str] = field(default_factory=set)
    sent_back: bool = False
    transporting: bool = False

    def begin_outside(self) -> None:
        """Forget the layers called without the model: another such pass begins."""
        self.outside.clear()
        self.reached.clear()
        self.sent_back = False


def end_outside(calls: LayerCalls, weight: Callable[[], Tensor]) -> Tensor:
    """Return the weight for the backward pass of a call without the model, and note that this pass is over."""
    calls.sent_back = True
    return weight()
