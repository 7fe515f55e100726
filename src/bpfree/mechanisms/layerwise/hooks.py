"""The hooks of a layerwise rule on its model: put in, taken out, and put in anew where layers have changed.

Both hooks of a layer are its innermost: changes that other hooks make have ordinary gradients.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bpfree.errors import BpfreeWarning, UnsupportedLayerError
from bpfree.layers.kinds import is_computed, is_linear
from bpfree.layers.services import Services
from bpfree.mechanisms.base import Mechanism
from bpfree.mechanisms.layerwise.calls import LayerCalls, ModelPass
from bpfree.module_tree import ModuleTree, followed, newcomers
from bpfree.passes import Passes
from bpfree.per_thread import PerThread
from bpfree.plan import Plan

if TYPE_CHECKING:
    from bpfree.mechanisms.layerwise.rule import LayerwiseRule


class LayerwiseHooks(Mechanism):
    """Puts the hooks of a layerwise rule where they belong. What they do is left to the mechanism that derives from it.

    Args:
        rule: The rule.
        plan: The model and the options.

    Raises:
        UnsupportedLayerError: The model has no layer that such a rule serves.
    """

    def __init__(self, rule: LayerwiseRule, plan: Plan) -> None:
        super().__init__(rule, plan)
        self._layers = _served(plan.model)
        if not self._layers:
            raise UnsupportedLayerError(
                f"{type(rule).__name__} gives backward weights to Linear and convolution layers, and the model has "
                "none. Use a direct rule (bpfree.DFA) or backpropagation; bpfree.serve_layer() makes a linear layer of "
                "your own known."
            )
        self._tree = ModuleTree(plan.model)
        self._hooked: dict[str, list[RemovableHandle]] = {}
        self._error_handles: dict[str, RemovableHandle] = {}
        self._services = Services()
        self._passes: Passes[ModelPass] = Passes()
        self._calls: PerThread[LayerCalls] = PerThread(LayerCalls)

    def install(self) -> None:
        """Put a pair of hooks on every served layer, and hooks where a pass begins, takes its error and ends."""
        add = self._handles.append
        add(self.plan.model.register_forward_pre_hook(self._begin))
        for name, layer in self._layers.items():
            self._hook(name, layer)
        for name, module in self.plan.errors.items():
            self._error_handles[name] = module.register_forward_hook(partial(self._leave, name))
        add(self.plan.model.register_forward_hook(self._end, always_call=True))

    def remove(self) -> None:
        """Take the hooks out."""
        super().remove()
        for name in list(self._hooked):
            self._unhook(name)
        for handle in self._error_handles.values():
            handle.remove()
        self._error_handles.clear()
        calls = self._calls()
        calls.inputs.clear()
        calls.current = None
        self._passes.clear()

    def _hook(self, name: str, layer: nn.Module) -> None:
        self._hooked[name] = [
            layer.register_forward_pre_hook(partial(self._cut, name), with_kwargs=True),
            layer.register_forward_hook(partial(self._join, name), prepend=True),
        ]
        if is_computed(layer):
            computes: Any = layer.parametrizations["weight"]  # type: ignore[index]
            self._hooked[name].append(computes.register_forward_hook(partial(self._computed, name)))

    def _unhook(self, name: str) -> None:
        for handle in self._hooked.pop(name):
            handle.remove()

    def _keep_innermost(self) -> None:
        """Move the hooks back next to the layers' forward functions, if other hooks were added since."""
        for name, layer in self._layers.items():
            before, behind = self._hooked[name][0].id, self._hooked[name][1].id
            if next(reversed(layer._forward_pre_hooks)) != before and layer is not self.plan.model:
                layer._forward_pre_hooks.move_to_end(before)  # type: ignore[attr-defined]
            if next(iter(layer._forward_hooks)) != behind:
                layer._forward_hooks.move_to_end(behind, last=False)  # type: ignore[attr-defined]

    def _follow_model(self) -> None:
        """Serve layers that came into the model since the last training pass, and forget layers that went."""
        if not self._tree.has_changed():
            return
        self.plan = plan = followed(self.plan)
        layers = _served(plan.model)
        new, gone = newcomers(self._layers, layers), newcomers(layers, self._layers)
        for name in list(self._hooked):
            if self._layers[name] is not plan.model:  # it is being called
                self._unhook(name)
        for name in gone:
            del self.feedback[name]
        self._services.forget()
        self._layers, self._tree = layers, ModuleTree(plan.model)
        for name, layer in layers.items():
            if name in new:
                self._take_in(name, layer)
            if name not in self._hooked:
                self._hook(name, layer)
        for name, module in plan.errors.items():
            if self._error_handles[name].id not in module._forward_hooks:
                self._error_handles[name].remove()
                self._error_handles[name] = module.register_forward_hook(partial(self._leave, name))
        if new or gone:
            warnings.warn(self._told_of(new, gone), BpfreeWarning, stacklevel=2)

    def _take_in(self, name: str, layer: nn.Module) -> None:
        """Prepare for a layer that has come into the model."""

    def _told_of(self, new: list[str], gone: list[str]) -> str:
        names, lost = ", ".join(map(repr, new)), ", ".join(map(repr, (name for name in gone if name not in new)))
        came = f"layer {names} came into the model after attach: {self.rule} draws backward weights for it now. "
        return (came if new else "") + (f"Layer {lost} is not in the model any more: its B is dropped." if lost else "")

    def _begin(self, module: nn.Module, args: Any) -> None:
        """Called before a pass of the model."""
        raise NotImplementedError

    def _leave(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        """Called behind each module where errors are taken."""
        raise NotImplementedError

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        """Called behind the model, also if it has raised."""
        raise NotImplementedError

    def _cut(self, name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Called before each layer; returns other arguments, or None."""
        raise NotImplementedError

    def _join(self, name: str, layer: nn.Module, args: Any, output: Any) -> Tensor | None:
        """Called behind each layer; returns what it hands on, or None."""
        raise NotImplementedError

    def _computed(self, name: str, module: nn.Module, args: Any, weight: Tensor) -> None:
        """Called behind each parametrization of a layer's weight."""
        raise NotImplementedError


def _served(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if is_linear(module)}
