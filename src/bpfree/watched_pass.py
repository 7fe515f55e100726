"""A pass whose taps are watched: their outputs, and the gradients that arrive there. Alignment compares two of them."""

from __future__ import annotations

from collections.abc import Callable, Container, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bpfree.attachment import Attachment
from bpfree.axes.place import module_of_call, name_of_call
from bpfree.axes.sites import Site
from bpfree.errors import OptionError, shape_of
from bpfree.forward_mode.grad_mode import rules_are_silent
from bpfree.forward_mode.own_pass import OwnPass
from bpfree.jacobian import mean_jacobians
from bpfree.mechanisms.base import Mechanism
from bpfree.tap_values import put, take


@dataclass
class WatchedPass:
    """The tensors that one forward and backward pass showed at the taps, and at other layers."""

    names: list[str] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    errors: dict[str, Tensor | None] = field(default_factory=dict)  # by name; None at a place of several tensors
    above: bool = False  # whether the pass has reached the places of all errors
    jacobians: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # by error and tap

    @property
    def error(self) -> Tensor | None:
        """The tensor at which the first error that was reached is taken."""
        return next(iter(self.errors.values()), None)

    def at(self, taps: Container[str]) -> dict[str, Tensor]:
        """Return the outputs of taps alone, by name."""
        found = zip(self.names, self.outputs, strict=True)
        return {name: output for name, output in found if module_of_call(name) in taps}


def sites_of(attachment: Attachment) -> dict[str, Site]:
    """Return the sites of the last pass by name, of rules that have some."""
    return {site.name: site for sender in attachment.mechanism.by_error.values() for site in sender.sites}


def observe(
    attachment: Attachment, closure: Callable[[], Tensor], places: Mapping[str, nn.Module], *, jacobian: bool = False
) -> WatchedPass:
    """Run the closure with every place watched, and send the loss back as far as these places alone."""
    seen = WatchedPass()
    with _watching(attachment, seen, places), torch.enable_grad():
        loss = closure()
    if jacobian:
        for name, sender in attachment.mechanism.by_error.items():
            seen.jacobians[name] = _jacobians(attachment, seen, seen.errors.get(name), sender)
    if seen.outputs:
        pairs = zip(_arriving(attachment, loss, seen.outputs), seen.outputs, strict=True)
        seen.gradients = [torch.zeros_like(tap) if given is None else given for given, tap in pairs]
    return seen


def _jacobians(attachment: Attachment, seen: WatchedPass, error: Tensor | None, sender: Mechanism) -> dict[str, Tensor]:
    """Return the mean Jacobians of an error's place with respect to the taps below it."""
    taps = _comparable(attachment, seen, sender)
    if error is None or not taps:
        return {}
    dims = len(sites_of(attachment)[next(iter(taps))].batch)
    return dict(zip(taps, mean_jacobians(error, list(taps.values()), dims), strict=True))


def _comparable(attachment: Attachment, seen: WatchedPass, sender: Mechanism) -> dict[str, Tensor]:
    """Return the outputs of an error's taps that have all its rows, in the leading axes of both."""
    sites = {site.name: site for site in sender.sites}
    taps = seen.at(attachment.mechanism.plan.taps)

    def leads(site: Site) -> bool:
        return site.pairing is None and site.arrangement.leads and site.error.axes == site.axes

    return {name: tap for name, tap in taps.items() if name in sites and leads(sites[name])}


def _arriving(attachment: Attachment, loss: Tensor, outputs: list[Tensor]) -> Sequence[Tensor | None]:
    """Return the gradients that arrive at the outputs.

    Raises:
        OptionError: The closure has returned no loss.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:  # callers are not type-checked
        graph = " without a graph" if isinstance(loss, Tensor) and not loss.requires_grad else ""
        raise OptionError(
            f"the closure returned {shape_of(loss)}{graph}; alignment() needs the loss, one number that was computed "
            "from the model's output."
        )
    mechanism: Any = attachment.mechanism
    if mechanism.plan.window == 1 or not mechanism.active:
        return torch.autograd.grad(loss, outputs, allow_unused=True)
    # With a window, gradients arrive at parameters, not at the taps' outputs. Modules above the error have neither.
    learners = [parameter for parameter in attachment.model.parameters() if parameter.requires_grad]
    found: Sequence[Tensor | None] = torch.autograd.grad(loss, [*outputs, *learners], allow_unused=True)[: len(outputs)]
    carried = [*mechanism.passes.carried, *[None] * (len(outputs) - len(mechanism.passes.carried))]
    return [signal if signal is not None else given for signal, given in zip(carried, found, strict=True)]


@contextmanager
def _watching(attachment: Attachment, seen: WatchedPass, places: Mapping[str, nn.Module]) -> Generator[None]:
    plan = attachment.mechanism.plan

    def watch(name: str) -> Callable[[nn.Module, Any, Any], Any]:
        key = plan.tensor_keys.get(name)

        def keep(module: nn.Module, args: Any, output: Any) -> Any:
            # Neither in a second run, nor above all errors, where there is nothing to compare.
            if not torch.is_grad_enabled() or Mechanism.recomputing() or rules_are_silent() or seen.above:
                return None
            calls = sum(module_of_call(known) == name for known in seen.names)
            seen.names.append(name_of_call(name, calls + 1))
            tensor = take(output, key, name)
            seen.outputs.append(tensor if tensor.requires_grad else tensor.detach().requires_grad_())
            # A copy goes on, so that an in-place operation behind the tap changes neither h nor its place in the graph.
            return put(output, key, seen.outputs[-1].clone())

        return keep

    def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.above = False
        seen.errors.clear()

    def leave(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            if not Mechanism.recomputing() and not rules_are_silent():
                seen.errors[name] = output if isinstance(output, Tensor) else None
                seen.above = len(seen.errors) == len(plan.errors)

        return note

    with OwnPass(plan.model, plan.state, called=True) as own, ExitStack() as stack:
        # Before the rule's own hooks, which hand on a detached tensor.
        stack.enter_context(own.hooked({module: watch(name) for name, module in places.items()}, prepend=True))
        stack.enter_context(own.hooked({plan.model: begin}, before=True))
        stack.enter_context(own.hooked({module: leave(name) for name, module in plan.errors.items()}, prepend=True))
        yield
