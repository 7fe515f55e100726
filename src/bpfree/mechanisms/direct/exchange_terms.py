"""The end of a pass: side terms get a graph that sends their gradients to the segments below, or are refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from bpfree.containers import tensors_in
from bpfree.mechanisms.direct.forward_pass import TrainingPass
from bpfree.mechanisms.direct.pass_state import PassState
from bpfree.mechanisms.direct.side_terms import has_nodes_in, joined_to_taps, refused
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
        exits = {exit_.grad_fn for exit_ in call.exits.values()}
        return partial(joined_to_taps, tapped.soft_taps, exits, tapped.fetching)
    if plan.window > 1 and call.survey is not None and call.survey.sides:
        exits = {exit_.grad_fn for exit_ in call.exits.values()}
        inner = Reach.of(*tapped.outputs, *call.errors.values()).inner
        return lambda term: refused(term) if has_nodes_in(term, inner, exits) else None
    return None
