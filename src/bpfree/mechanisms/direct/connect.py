"""Connect the model's output to the taps: its gradient, the error, then sends each tap a signal."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bpfree.error_values import replace_errors
from bpfree.errors import ErrorPlacementError, OptionError
from bpfree.mechanisms.base import not_a_tensor, reached_twice
from bpfree.mechanisms.direct.alternation import EVERY_TAP
from bpfree.mechanisms.direct.delivery import GivenSignals, NoSignals
from bpfree.mechanisms.direct.final_activation import final_activation
from bpfree.mechanisms.direct.forward_pass import StoredGraphPass, TrainingPass
from bpfree.mechanisms.direct.pass_state import PassState
from bpfree.mechanisms.direct.survey import Survey, error_key, errors_of
from bpfree.module_tree import has_frozen_behind
from bpfree.plan import Plan
from bpfree.tabulate import name_some

if TYPE_CHECKING:
    from bpfree.mechanisms.direct.mechanism import DirectMechanism


def take_errors(mechanism: DirectMechanism, call: PassState, tapped: TrainingPass, place: str, output: Any) -> Any:
    """Return ``output`` with every error in it connected to the taps below it.

    Args:
        mechanism: The rule on its model.
        call: The model's present call.
        tapped: The pass of this call.
        place: The name of the module whose output it is.
        output: A tensor, or what holds several.

    Raises:
        ErrorPlacementError: There is no error in it, or the module was reached before in this pass.
        OptionError: It holds several errors, and an option allows one alone.
    """
    if place in tapped.reached:
        raise reached_twice(place)
    tapped.reached.add(place)
    if len(tapped.reached) == len(mechanism.plan.errors):
        tapped.close()
    found = errors_of(output, partial(_is_error, call, tapped, place))
    if not found:
        raise not_a_tensor(mechanism.plan, output)
    alone = len(mechanism.plan.errors) == len(found) == 1
    if alone:
        tapped.error_path = next(iter(found))
    else:
        _require_plain_pass(mechanism.plan, [error_key(place, path) for path in found])
        tapped.several = True
    connected: dict[str, Tensor] = {}
    for path, tensor in found.items():
        name, first = error_key(place, path), not connected and place == mechanism.plan.error_name
        exit_ = mechanism.connect(call, tapped, name, tensor, first=first, alone=alone)
        call.exits[name] = exit_
        # Also a stage where nothing learns must send the error to the other stages.
        stands_in = mechanism.plan.is_stage and not exit_.requires_grad
        connected[path] = exit_.detach().requires_grad_() if stands_in else exit_
    return connected[""] if isinstance(output, Tensor) else replace_errors(output, connected)


def _is_error(call: PassState, tapped: TrainingPass, place: str, path: str, tensor: Tensor) -> bool:
    """Return whether a tensor in a container is an error although the pass has left it without a graph."""
    if call.survey is None:
        return not tapped.has_graph or tapped.ends_in_tap(tensor) is not None
    return bool(call.survey.below.get(error_key(place, path)))


def connect_error(
    mechanism: DirectMechanism,
    call: PassState,
    tapped: TrainingPass,
    name: str,
    output: Tensor,
    *,
    first: bool,
    alone: bool,
) -> Tensor:
    """Return ``output`` with a graph: its gradient gives the taps below it their signals.

    Args:
        mechanism: The rule on its model.
        call: The model's present call.
        tapped: The pass of this call.
        name: The error's name.
        output: The tensor at which the error is taken.
        first: True if this is the first error.
        alone: True if there is no other error.

    Raises:
        ErrorPlacementError: No tap lies below it, or nothing that learns lies between the last tap and it.
    """
    tap = tapped.ends_in_tap(output)
    at_error = None if tap is None else tapped.names[tap]
    if alone and tap is not None and tap == len(tapped.names) - 1:
        # The model ends in a tap (a final sigmoid, say): the error itself is that tap's exact gradient.
        output, tap = tapped.uncut(), None
    elif tap is not None and call.signals is None:
        output = tapped.outputs[tap]
    else:  # signals that are given already hold what this error sends to the tap that it lies at
        tap = None
    below = [number for number in _below(call, tapped, name, alone=alone) if number != tap]
    call.errors[name] = output
    if not below:
        if mechanism.plan.is_stage:
            final_activation(mechanism, name, output)  # stages below have taps
            return output
        if not alone:
            return output
        raise _no_tap_below(mechanism, call.survey, at_error)
    if alone:
        _require_learning_behind(mechanism.plan, tapped, output)
    sender = mechanism.of_error(name, first=first)
    layout = sender.layouts.of_pass(tapped, name, output, below, call.survey)
    # Only what has changed: to set an attribute of a module takes as long as a small layer.
    if first and mechanism.first_error != name:
        mechanism.first_error = name
    if torch.compiler.is_compiling() or sender.sites is not layout.sites:
        sender.sites = layout.sites
    cut = below if tapped.phase is EVERY_TAP else [number for number in below if tapped.is_cut(number)]
    if call.signals is not None:
        given = GivenSignals([call.signals.pop(tapped.places[number], None) for number in cut])
        return tapped.connect(output, given, cut, just_in_time=False)
    final = final_activation(mechanism, name, output)
    kept = tapped.outputs
    outputs = [kept[i] for i in below] if kept else ()
    behind = None if final is None else (final, output.detach())
    served = None if len(cut) == len(below) else [i for i, number in enumerate(below) if tapped.is_cut(number)]
    handler = sender.make_handler(layout, outputs, call, behind, served)
    call.memories[name] = (handler.memory, layout.c)
    if not mechanism.rule.sends_signals and isinstance(tapped, StoredGraphPass) and mechanism.plan.window == 1:
        # A gradient of nothing would still call the hooks of everything below.
        return tapped.connect(output, NoSignals(handler), (), just_in_time=False)
    return tapped.connect(output, handler, cut, just_in_time=layout.just_in_time)


def _require_plain_pass(plan: Plan, errors: Sequence[str]) -> None:
    """Raise OptionError if an option that allows one error alone is used with several errors."""
    if not plan.streaming and plan.window == 1:
        return
    option, needs = (
        ("streaming=True", "stores no graph") if plan.streaming else (f"window={plan.window}", "carries signals")
    )
    names = ", ".join(map(repr, list(plan.errors) if len(plan.errors) > 1 else errors))
    what = "error_at names" if len(plan.errors) > 1 else f"{plan.where} holds several tensors,"
    raise OptionError(
        f"{what} {names}: these are several errors, and a pass {needs} for one error alone. Leave {option} out, or "
        "take one error: error_at= with one module whose output is one tensor."
    )


def _below(call: PassState, tapped: TrainingPass, name: str, *, alone: bool) -> Sequence[int]:
    """Return the numbers of the taps below an error, by the survey, and of the taps that the survey did not see."""
    survey = call.survey
    if alone or survey is None or name not in survey.below:
        return range(len(tapped.places))
    others = survey.places - survey.below[name]
    return [number for number, place in enumerate(tapped.places) if place not in others]


def _no_tap_below(mechanism: DirectMechanism, survey: Survey | None, at_error: str | None) -> ErrorPlacementError:
    plan = mechanism.plan
    if at_error is not None:
        return ErrorPlacementError(
            f"the only tap that was reached, {at_error!r}, stands where the error is taken, {plan.where}: nothing "
            "below it would learn from feedback. Tap other modules (taps=...), or train it by bpfree.BP()."
        )
    if survey is not None and survey.places and not survey.places - survey.unreached:
        return ErrorPlacementError(
            f"{name_some(survey.places)} were reached, and {plan.where} does not depend on what they hand on: "
            "the model takes it out of the graph, or differentiates within its own forward pass, as for forces. Tap "
            "other modules (taps=...), or train it by bpfree.BP()."
        )
    if mechanism.sites:
        return ErrorPlacementError(
            f"this pass reached no tap before {plan.where}, and earlier passes did: the model may leave out layers at "
            "random (layerdrop). Also tap modules that every pass runs through (taps=...), set the model's layerdrop "
            "to 0, or skip this step: catch bpfree.errors.ErrorPlacementError around the model, and go on."
        )
    return ErrorPlacementError(
        f"no tap was reached before {plan.where}. Name taps that the forward pass runs through below it."
    )


def _require_learning_behind(plan: Plan, tapped: TrainingPass, output: Tensor) -> None:
    if not tapped.learns(output) and not has_frozen_behind(plan.model, tapped.names[-1]):
        raise ErrorPlacementError(
            f"nothing that learns lies between the last tap, {tapped.names[-1]!r}, and {plan.where}: the tap "
            "would cut the output layer off from its exact gradient. Leave that tap out."
        )


def tap_above_error(plan: Plan, name: str) -> ErrorPlacementError:
    """Make the error for a tap above the error that the user named; default taps there are left alone."""
    return ErrorPlacementError(
        f"tap {name!r} was reached after error_at={plan.error_name!r}. What lies above error_at is "
        "trained exactly and cannot hold a tap: leave that tap out, or take the error further up."
    )
