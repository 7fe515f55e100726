"""Taps in checkpointed parts of a model: a part that runs again is cut there as in its first run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from bpfree.mechanisms.direct.forward_pass import Cut
from bpfree.mechanisms.direct.pass_state import PassState
from bpfree.rerun.checkpoints import NOWHERE, Repetition, checkpoints_around
from bpfree.tap_values import put, take

if TYPE_CHECKING:
    from bpfree.mechanisms.direct.mechanism import DirectMechanism


class CheckpointedTaps:
    """Keeps the cuts of checkpointed parts.

    Args:
        mechanism: The mechanism of the taps.
    """

    def __init__(self, mechanism: DirectMechanism) -> None:
        self._mechanism = mechanism
        self._cuts: Repetition[Cut] = Repetition()

    def cut(self, call: PassState | None, name: str, module: nn.Module, args: Any, output: Any) -> Any:
        """Cut in the second run of a checkpointed part as in the first, or autograd would save other tensors there."""
        around, cut = checkpoints_around(), None
        second = around.second_run_within(NOWHERE if call is None else call.around)
        if second is not None:
            cut, key = self._cuts.next(second), self._mechanism.plan.tensor_keys.get(name)
            handed_on = None if cut is None else put(output, key, cut(take(output, key, name)))
        else:  # also if the whole pass is run again: then its error is taken again too
            tapped = None if call is None else call.tapped
            before = 0 if tapped is None else len(tapped.names)
            handed_on = self._mechanism.cut_at_tap(name, module, args, output, alone=True)
            if tapped is not None and len(tapped.names) > before:
                cut = tapped.last_cut()
        self._cuts.note(around.first, cut)
        return handed_on
