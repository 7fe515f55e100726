"""The mechanism of the layerwise rules: backward weights for linear and convolution layers.

A forward pre-hook detaches the layer's input, so that autograd never forms W^T delta; a forward hook joins the
output to that input again through :class:`Join`, whose gradient uses B. Weight and bias keep their exact local
gradients. Both hooks are the innermost of their layer: changes that other hooks make have ordinary gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bpfree.errors import OptionError, StateError, UnsupportedLayerError, VerificationError, shape_of
from bpfree.feedback.lazy_buffers import LazyBuffers, at_least_single, name_of
from bpfree.feedback.random import derived_seed
from bpfree.layers.first_argument import first_argument, with_first
from bpfree.layers.function import function_gradient
from bpfree.layers.kinds import input_gradient
from bpfree.mechanisms.autograd import apply_function
from bpfree.mechanisms.function_transforms import refuse_transform_within, refuse_transforms_of_pass
from bpfree.mechanisms.layerwise.calls import LayerCalls, ModelPass, end_outside
from bpfree.mechanisms.layerwise.hooks import LayerwiseHooks
from bpfree.mechanisms.layerwise.join import Join
from bpfree.mechanisms.no_gradient_warnings import warn_of_input_gradients
from bpfree.plan import Plan
from bpfree.rerun.checkpoints import Repetition, checkpoints_around, hooks_on_saving
from bpfree.tabulate import others

if TYPE_CHECKING:
    from bpfree.mechanisms.layerwise.rule import LayerwiseRule


class LayerwiseMechanism(LayerwiseHooks):
    """Hooks and backward weights of one layerwise rule on one model.

    ``feedback[name]`` is the tensor that the rule keeps for the layer ``name``; a layer whose input needs no gradient,
    such as the first layer, has none.
    """

    rule: LayerwiseRule
    learns = False
    """True if B takes steps: these may be too small for a low precision."""

    def __init__(self, rule: LayerwiseRule, plan: Plan) -> None:
        super().__init__(rule, plan)
        self.feedback = LazyBuffers(seed=plan.seed, passes=0)
        self._called: set[str] = set()
        # Layers above the error's place, which learn exactly, in the last training pass.
        self._exact: set[str] = set()
        self._in_checkpoints: Repetition[bool] = Repetition()

    # -- passes --------------------------------------------------------------------------------------------------

    def _begin(self, module: nn.Module, args: Any) -> None:
        current, calls = ModelPass(set(self.plan.errors)), self._calls()
        self._passes.begin(current)
        calls.current = current
        calls.begin_outside()
        if not self.active or self.recomputing():  # a second run may end where the error is taken
            return
        if not torch.compiler.is_compiling():
            warn_of_input_gradients(args, self.tell_once, self.rule)
            self._follow_model()
            self._keep_innermost()
        self._exact = set()
        refuse_transforms_of_pass(self.rule, args)
        self._count_pass()

    def _count_pass(self) -> None:
        """Count a training pass that begins, for rules whose B differs from pass to pass."""
        if self.rule.redraws:
            self.feedback.numbers["passes"] += 1

    def _leave(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        calls = self._calls()
        (calls.reached.add if calls.current is None else calls.current.awaited.discard)(name)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        self._passes.end()
        self._calls().current = self._passes.now()

    def _is_exact(self, name: str, calls: LayerCalls) -> bool:
        """Return whether a layer that is called lies above the error's place."""
        if calls.current is not None:
            above = not calls.current.awaited
        elif self.recomputing():  # a checkpoint's second run of a part: as in the last pass
            return name in self._exact
        else:
            above = self._is_above_outside(name, calls)
        if above:
            self._exact.add(name)
        return above

    def _is_above_outside(self, name: str, calls: LayerCalls) -> bool:
        """Return the same if the model itself was not called, but a part of it, or another of its methods.

        Such a pass begins after the backward pass of the one before. It also begins when all errors have been reached,
        with a layer that was called already.
        """
        above, compiling = len(calls.reached) == len(self.plan.errors), torch.compiler.is_compiling()
        if not calls.outside or calls.sent_back or (name in calls.outside and (above or compiling)):
            calls.begin_outside()
            above = False
            if not compiling:
                self._require_same_model(name)
            refuse_transforms_of_pass(self.rule, ())
            self._count_pass()
        calls.outside.add(name)
        return above

    def _require_same_model(self, name: str) -> None:
        """Raise VerificationError if layers that are new in the model may have run in this pass without B."""
        if self._tree.has_changed():
            pairs = self._hooked.values()
            is_whole_copy = self._tree.is_copy and not self._has_lost_hooks(chain.from_iterable(pairs))
            self._follow_model()
            if is_whole_copy:
                return
            raise VerificationError(
                f"modules of the model have changed, and layer {name!r} was reached without a call of the model: new "
                f"layers that ran before it had no backward weights of {self.rule} yet. They have them now: run this "
                "pass again. After such a change call the model itself first, model(...)."
            )

    # -- one layer -----------------------------------------------------------------------------------------------

    def _cut(self, name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        calls = self._calls()
        if calls.inputs:
            calls.inputs.pop(name, None)  # left by a call that has raised
        if not torch.compiler.is_compiling() and hooks_on_saving() is not None:
            served = self._is_served_in_checkpoint(name, calls)
        else:
            served = self.active and not self._is_exact(name, calls)
        if not served:
            return None
        refuse_transform_within(self.rule, "layer", name)
        if not calls.transporting:
            self._called.add(name)
        key, given = (None, args[0]) if args else first_argument(layer, args, kwargs)
        if not isinstance(given, Tensor) or not (given.requires_grad or self._learns_without_signal(name, layer)):
            return None
        service = self._services.of(name, layer, (args, kwargs))
        if service.way == "ordinary":
            return None
        calls.inputs[name] = given, (args, kwargs), service
        if key is None and len(args) == 1:  # the usual case
            return (given.detach(),), kwargs
        return with_first((args, kwargs), key, given.detach())

    def _learns_without_signal(self, name: str, layer: nn.Module) -> bool:
        """Return whether B takes part in a pass in which the layer's input needs no gradient."""
        return False

    def _is_served_in_checkpoint(self, name: str, calls: LayerCalls) -> bool:
        """Return whether this call of a layer uses B; the second run of a checkpointed part repeats its first run."""
        around = checkpoints_around()
        if around.second is None:
            served = self.active and not self._is_exact(name, calls)
        else:
            served = self._in_checkpoints.next(around.second) is not None
        self._in_checkpoints.note(around.first, True if served else None)
        return served

    def _computed(self, name: str, module: nn.Module, args: Any, weight: Tensor) -> None:
        """Keep the weight that a parametrization has computed: to compute it again may change its state."""
        if self.active:
            self._calls().weights[name] = weight.detach()

    def _join(self, name: str, layer: nn.Module, args: Any, output: Any) -> Tensor | None:
        calls = self._calls()
        weight = calls.weights.pop(name, None) if calls.weights else None
        kept = calls.inputs.pop(name, None)
        if kept is None:
            return None
        given, call, service = kept
        if not isinstance(output, Tensor):
            raise UnsupportedLayerError(
                f"layer {name!r} returns a {type(output).__name__} now, and returned a tensor before: {self.rule} "
                "cannot send it a signal. Let it always return a tensor, or put what changes into a module of its own."
            )
        if weight is None:
            # Modules look for their attributes in Python, in three dictionaries.
            there: Any = layer._parameters.get("weight")
            found: Tensor = layer.weight if there is None else there  # type: ignore[assignment]
            weight = found.detach()
        delivered, gradient = (
            input_gradient(layer, given) if service.way == "formula" else (given, function_gradient(layer, call))
        )
        B = (lambda: weight) if calls.transporting else self._backward_weight(name, layer, weight)
        if calls.current is None and not torch.compiler.is_compiling():
            B = partial(end_outside, calls, B)
        result: Tensor = apply_function(Join, output, delivered, B, gradient)
        return result

    def _backward_weight(self, name: str, layer: nn.Module, weight: Tensor) -> Callable[[], Tensor]:
        feedback = self.feedback
        if name not in feedback:
            self._draw(name, weight)
        kept, numbers = feedback[name], feedback.numbers
        passes = numbers["passes"]

        def generator() -> torch.Generator:
            seed = derived_seed(numbers["seed"], self.plan.whole_name(name), passes)
            return torch.Generator(weight.device).manual_seed(seed)

        def at_backward() -> Tensor:
            B = self.rule.backward_weight(weight, kept, generator)
            if not isinstance(B, Tensor) or B.shape != weight.shape:  # callers are not type-checked
                raise StateError(
                    f"the backward weights of layer {name!r} are {shape_of(B)}, its weights have shape "
                    f"{tuple(weight.shape)}: a loaded state is that of another model, or the rule drew another shape."
                )
            return B

        return at_backward

    def _draw(self, name: str, weight: Tensor) -> None:
        # On the CPU, so that every machine draws the same; once.
        seed = derived_seed(self.feedback.numbers["seed"], self.plan.whole_name(name))
        generator = torch.Generator().manual_seed(seed)
        like = at_least_single(weight) if self.learns else weight
        drawn = self.rule.draw(weight, generator)
        if not isinstance(drawn, Tensor):  # callers are not type-checked
            raise OptionError(
                f"the draw of {self.rule} for layer {name!r} is {shape_of(drawn)}; draw() must return a tensor."
            )
        self.feedback[name] = drawn.to(like)

    @contextmanager
    def transporting(self) -> Generator[None]:
        """Within this context B is W in this thread: the rule is backpropagation, if all layers are served right."""
        calls = self._calls()
        before = calls.transporting
        try:
            calls.transporting = True
            yield
        finally:
            calls.transporting = before

    @property
    def layers(self) -> dict[str, nn.Module]:
        """The layers of known kinds, and of classes derived from them, by name."""
        return self._layers

    def served(self) -> dict[str, nn.Module]:
        """Return, by name, the layers called so far whose inputs get signals made with B."""
        return {name: self._layers[name] for name, kept in self._services.known().items() if kept.way != "ordinary"}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        self._follow_model()
        start = f"{prefix}feedback."
        saved = {name_of(key.removeprefix(start)) for key in state_dict if key.startswith(start)}
        unknown = saved - self._layers.keys() - self.feedback.numbers.keys()
        if unknown:
            raise StateError(f"the state is for layers that this model does not have: {', '.join(sorted(unknown))}.")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    # -- what it looks like ----------------------------------------------------------------------------------------

    def table(self) -> tuple[list[str], list[list[str]], list[str]]:
        """Return the header, a row for each served layer, and a remark on layers that pass ordinary gradients."""
        rows = [[name, type(layer).__name__, self._state(name)] for name, layer in self._layers.items()]
        ordinary = ", ".join(sorted(others(self.plan.model, self._layers)))
        remarks = [f"Ordinary gradients pass through {ordinary}."] if ordinary else []
        return ["layer", "kind", "backward weights"], rows, remarks

    def _state(self, name: str) -> str:
        service = self._services.known().get(name)
        if service is not None and service.way == "ordinary":
            return f"none: ordinary gradients, for {service.why}"
        if name in self.feedback:
            shape = " x ".join(map(str, self.feedback[name].shape)) or "magnitude and signs of W"
            through = ", through its own forward" if service is not None and service.way == "function" else ""
            return shape + through
        if name in self._exact:
            return "none: it lies above the error and learns exactly"
        if name in self._called:
            return "none: its input needs no gradient"
        return "not called as a module: ordinary gradients" if self._called else "drawn in the first forward pass"
