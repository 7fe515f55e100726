"""The mechanism of Kolen-Pollack learning: backward weights that get the gradients of the forward ones."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from bpfree.distributed import whole
from bpfree.errors import UnsupportedLayerError
from bpfree.feedback.lazy_buffers import REQUIRES_NO_GRADIENT, at_least_single
from bpfree.layers.kinds import is_computed
from bpfree.mechanisms.layerwise.mechanism import LayerwiseMechanism
from bpfree.mechanisms.layerwise.rule import LayerwiseRule
from bpfree.plan import Plan

_AT_FIRST, _LATER = 4, 64
"""Numbers are compared in so many first steps, and afterwards once in so many steps."""


@dataclass
class _Watch:
    """One weight whose gradients are copied.

    Attributes:
        weight: W.
        handle: Removes the hook on W.
        versions: The versions of W and B when B last got a gradient.
        seen: The place of the largest number of a gradient, and the numbers of W and B there.
        looks: The number of times such a place was noted.
        wait: The number of gradients until the numbers are compared again.
    """

    weight: Tensor
    handle: RemovableHandle
    versions: tuple[int, int] | None = None
    seen: tuple[Tensor, Tensor, Tensor] | None = None
    looks: int = 0
    wait: int = 0

    def only_w_moved(self, weight: Tensor, B: Tensor) -> bool:
        """Return whether an optimizer has stepped W but not B since B last got a gradient.

        Fused optimizers write without changing the version, so numbers are compared as well.
        """
        if self.versions is None:
            return False
        w, b = weight._version != self.versions[0], B._version != self.versions[1]
        if self.seen is not None and not b and (w or not self.wait):
            place, was_w, was_b = self.seen
            w, b = w or not _same(weight, place, was_w), not _same(B, place, was_b)
        return w and not b

    def look(self, weight: Tensor, B: Tensor) -> None:
        """Keep the versions and numbers for :meth:`only_w_moved`."""
        self.versions = weight._version, B._version
        if self.wait:
            self.wait -= 1
            return
        self.looks += 1
        self.wait = 0 if self.looks < _AT_FIRST else _LATER
        # Each process holds only a part of a sharded weight.
        if weight.shape == B.shape and not hasattr(weight, "full_tensor") and weight.numel():
            assert weight.grad is not None
            place = weight.grad.abs().argmax()
            self.seen = place, _at(weight, place).clone(), _at(B, place).clone()


def _no_gradient_of(name: str) -> str:
    return (
        f"layer {name!r} has no gradient when the backward pass ends, and its backward weights learn from it then: "
        "they did not. An optimizer's step in the backward pass is not for this rule, nor are weights that "
        "torch.func.functional_call lends."
    )


def _at(tensor: Tensor, place: Tensor) -> Tensor:
    return tensor.detach().take(place)


def _same(tensor: Tensor, place: Tensor, was: Tensor) -> bool:
    return tensor.device == was.device and bool(_at(tensor, place) == was.to(tensor.dtype))


class KolenPollackMechanism(LayerwiseMechanism):
    """Backward weights that are parameters; when a backward pass has ended, they hold the gradient of W.

    ``feedback[name]`` is B of the layer ``name``, an ``nn.Parameter``. Every served layer has one from the start, so
    that it can be given to an optimizer. It stays empty until a forward pass shows that the layer's input needs a
    gradient; if the input never needs one, it stays empty for ever.

    When a backward pass ends, ``B.grad`` becomes a copy of ``W.grad`` for the layers that learned in it by the rule,
    also where no signal went further down (a cut right below, frozen layers): W and B approach each other only if
    they always take the same steps. The copy must not be made sooner: only then has DDP or FSDP2 averaged ``W.grad``
    over the processes. These need to know nothing of B: every process holds the whole B, also if W is sharded.
    """

    learns = True

    def __init__(self, rule: LayerwiseRule, plan: Plan) -> None:
        super().__init__(rule, plan)
        for name, layer in self._layers.items():
            self._take_in(name, layer)
        self._watched: dict[str, _Watch] = {}
        self._learning: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        # Parameters are copied without their hooks: a copy's first forward pass puts them in again.
        return {**self.__dict__, "_watched": {}}

    def remove(self) -> None:
        """Take the hooks out, also those on the weights."""
        super().remove()
        for watch in self._watched.values():
            watch.handle.remove()
        self._watched.clear()

    def copy_gradients(self) -> None:
        """Give every B that has a gradient that of its W as it is now, such as behind clipping."""
        for name in self.feedback:
            weight, B = self._layers[name].weight, self.feedback[name]
            if B.grad is not None and isinstance(weight, Tensor) and weight.grad is not None:
                B.grad = whole(weight.grad.detach()).to(B, copy=True)

    def _take_in(self, name: str, layer: nn.Module) -> None:
        self._require_parameter(name, layer)
        weight: Any = layer.weight
        self.feedback.reserve(name, at_least_single(weight), 1 if is_lazy(weight) else weight.dim())

    def _require_parameter(self, name: str, layer: nn.Module) -> None:
        """Raise UnsupportedLayerError if the weight of a layer is computed from others, perhaps since the last pass."""
        if is_computed(layer) or "weight" not in layer._parameters:
            raise UnsupportedLayerError(
                f"{type(self.rule).__name__} gives B the gradient of W, and the weight of layer {name!r} is no "
                "parameter: it is computed from others (a parametrization, pruning). Use bpfree.FA or "
                "bpfree.WeightMirror."
            )

    def _told_of(self, new: list[str], gone: list[str]) -> str:
        told = super()._told_of(new, gone)
        return (
            told + "B is a new parameter: make the optimizer anew, of [*model.parameters(), "
            "*attachment.parameters()], or it does not learn."
            if new
            else told
        )

    def _begin(self, module: nn.Module, args: Any) -> None:
        """Begin a training pass with no layer marked: a torch.autograd.grad() marks layers and never clears the marks.

        A pass without gradients, such as an evaluation, clears nothing: another thread's backward pass may be running.
        """
        super()._begin(module, args)
        if torch.is_grad_enabled() and not self.recomputing():
            self._learning.clear()

    def _follow_model(self) -> None:
        super()._follow_model()
        for name in self._watched.keys() - self._layers.keys():
            self._watched.pop(name).handle.remove()

    def _backward_weight(self, name: str, layer: nn.Module, weight: Tensor) -> Callable[[], Tensor]:
        self._require_parameter(name, layer)
        found = super()._backward_weight(name, layer, weight)
        self._watch(name, layer)

        def at_backward() -> Tensor:
            self._learning.add(name)
            return found()

        return at_backward

    def _learns_without_signal(self, name: str, layer: nn.Module) -> bool:
        return torch.is_grad_enabled() and name in self.feedback and layer.weight.requires_grad is True

    def _watch(self, name: str, layer: nn.Module) -> None:
        weight, watch = layer.weight, self._watched.get(name)
        assert isinstance(weight, Tensor)
        if not weight.requires_grad or (watch is not None and watch.weight is weight):
            return
        if not weight.is_leaf:
            self.tell_once("gradients of W", _no_gradient_of(name))
            return
        if watch is not None:
            watch.handle.remove()
        # The garbage collector does not see a tensor's hooks: a mechanism held by them would never be freed.
        of = weakref.ref(self)

        def accumulated(_: Tensor) -> None:
            mechanism = of()
            if mechanism is not None:
                mechanism._accumulated(name)

        handle = weight.register_post_accumulate_grad_hook(accumulated)  # type: ignore[no-untyped-call]
        self._watched[name] = _Watch(weight, handle)

    def _accumulated(self, name: str) -> None:
        if name in self._learning:
            self._learning.discard(name)
            # After the end of the backward pass, and after DDP's work there: a queued call queues this one.
            at_end: Callable[[Callable[[], None]], None] = Variable._execution_engine.queue_callback
            at_end(partial(at_end, partial(self._copy, name)))

    def _copy(self, name: str) -> None:
        watch, weight = self._watched.get(name), getattr(self._layers.get(name), "weight", None)
        # Not `watch.weight`: FSDP2 gives the layer another, whole weight while it runs.
        if watch is None or not isinstance(weight, Tensor):
            return
        if weight.grad is None:
            if weight.requires_grad:  # it was frozen since the forward pass otherwise: neither learns
                self.tell_once("gradients of W", _no_gradient_of(name))
            return
        B = self.feedback[name]
        if watch.only_w_moved(weight, B):
            self.tell_once(
                "gradients of W",
                f"the weight of layer {name!r} was changed, and its backward weight B has a gradient and was not: no "
                "optimizer has it, so B does not learn. Give it both, torch.optim.SGD([*model.parameters(), "
                f"*attachment.parameters()], lr=.1, weight_decay=1e-3). {REQUIRES_NO_GRADIENT}",
            )
        watch.look(weight, B)
        # A copy: code that scales or clips both gradients would otherwise act on one tensor twice.
        B.grad = whole(weight.grad.detach()).to(B, copy=True)
