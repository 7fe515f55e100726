"""The end of a pass: side terms get a graph that sends their gradients to the segments below, or are refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from bpfree.containers import tensors_in
from bpfree.errors import OptionError, StreamingError
from bpfree.mechanisms.direct.forward_pass import TrainingPass
from bpfree.mechanisms.direct.pass_state import PassState
from bpfree.mechanisms.direct.side_terms import has_nodes_in, joined_to_taps, refused
from bpfree.mechanisms.no_gradient_warnings import warn_of_results
from bpfree.plan import Plan
from bpfree.rerun.arguments import holders_in
from bpfree.segments import Reach
from bpfree.tap_values import put


def exchange_terms(plan: Plan, call: PassState, tapped: TrainingPass, output: Any, given: Any) -> Any:
    """Exchange, when a pass has ended, the side terms that the model returns or keeps on itself or in its arguments.

    Args:
        plan: The model.
        call: The model's present call.
        tapped: The pass of this call.
        output: The model's output.
        given: The model's arguments, (args, kwargs).

    Returns:
        The output, with other tensors for its side terms.
    """
    if not tapped.stores_graph and plan.error_name:
        return _without_graphs(plan, call, output, given)
    exchanged = _exchanged(plan, call, tapped)
    if exchanged is None:
        return output
    for path, term in list(tensors_in(output)):
        found = exchanged(term) if term.requires_grad else None
        output = output if found is None else put(output, path, found)
    for holder in (*plan.state.holders, *holders_in(*given)):
        for key, term in list(holder.tensors):
            # The user reads the gradient of a term that retains it: another tensor in its place would have none.
            found = exchanged(term) if term.requires_grad and not term.retains_grad else None
            if found is not None:
                holder.replace(key, found)
    return output


def _exchanged(plan: Plan, call: PassState, tapped: TrainingPass) -> Callable[[Tensor], Tensor | None] | None:
    """Return the function that makes the replacement of a side term; None if all of them may stay."""
    if tapped.soft_taps:
        return partial(joined_to_taps, tapped.soft_taps, call.exit_nodes, tapped.fetching)
    if plan.window > 1 and call.survey is not None and call.survey.sides:
        exits = call.exit_nodes
        inner = Reach.of(*tapped.outputs, *call.errors.values()).inner
        return lambda term: refused(term, _no_window) if has_nodes_in(term, inner, exits) else None
    return None


def _no_window() -> OptionError:
    return OptionError(
        "a loss was made of a tensor that the model returns, or keeps on itself, besides its output, and window= "
        "has no gradient for it. Leave the window out: the plain rule teaches the layers below it exactly."
    )


def _without_graphs(plan: Plan, call: PassState, output: Any, given: Any) -> Any:
    """Return the output of a pass that stores no graph: a loss of its side terms raises StreamingError."""
    survey, returned = call.survey, list(tensors_in(output))
    if survey is None or not survey.returned.issuperset(path for path, _ in returned):
        warn_of_results(output, given, plan.error_name, "streaming=True")
    for path, term in returned:
        if survey is not None and path in survey.graphless_terms:
            output = put(output, path, refused(term, partial(_no_graph, plan, path)))
    return output


def _no_graph(plan: Plan, path: tuple[Any, ...]) -> StreamingError:
    place = f" at {path if path[1:] else path[0]!r}" if path else ""
    elsewhere = "" if path else ", or take the error at the output itself (error_at='')"
    return StreamingError(
        f"a loss was made of the model's output{place}, which does not come of {plan.where} alone: streaming=True has "
        "no graph of what else it was made of, and the loss would teach those layers nothing. Attach without "
        f"streaming{elsewhere}; if the output is only looked at, detach() it."
    )
