"""Parts of a model that ``torch.utils.checkpoint`` runs a second time: a hook must repeat what it did in the first run.

Autograd saves nothing of a checkpointed part. When its backward pass wants what was saved, the part runs again, and the
second run's tensors take the first run's places by their order alone. A hook that changes the graph must therefore
change the second run in the same way as the first: with one tensor more or fewer, every later tensor would take a
wrong place.

Torch does not tell a hook which part it runs in. This module reads it from the hooks on saved tensors that a checkpoint
sets: each of them holds torch's record of this one call of ``checkpoint()``.
"""

from __future__ import annotations

import inspect
import operator
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.utils.checkpoint

from bpfree.errors import StateError
from bpfree.rerun.own_graphs import with_version

hooks_on_saving: Any = partial(torch._C._autograd._top_saved_tensors_default_hooks, True)
"""Returns the innermost hooks on what autograd saves; None, nearly always, where there are none, and no checkpoint."""

_pop: Any = torch._C._autograd._pop_saved_tensors_default_hooks
_push: Any = torch._C._autograd._push_saved_tensors_default_hooks

Done = TypeVar("Done")


class SecondRun(NamedTuple):
    """The second run of a checkpointed part.

    Attributes:
        part: Torch's record of the call of ``checkpoint()``.
        backward: The backward pass that it runs for.
    """

    part: Any
    backward: Any


class Around(NamedTuple):
    """The checkpoints around a line of a model's code.

    Attributes:
        first: Torch's records of the parts that are in their first run, the innermost first. Parts within a second run
            begin anew there.
        second: The second run around them; None where there is none.
    """

    first: tuple[Any, ...] = ()
    second: SecondRun | None = None

    def second_run_within(self, model: Around) -> SecondRun | None:
        """Return the second run around this line if it is of a part of the model, and not of the whole model.

        Args:
            model: The checkpoints around the call of the model itself.
        """
        return None if self.second == model.second else self.second


NOWHERE = Around()
"""The value if there is no checkpoint around."""


def checkpoints_around() -> Around:
    """Return the checkpoints around the caller; there are none within :func:`bpfree.rerun.own_graphs.own_graphs`."""
    if hooks_on_saving() is None:  # nearly always
        return NOWHERE
    first: list[Any] = []
    second = None
    lifted: list[Any] = []
    try:
        while second is None and (hooks := hooks_on_saving()) is not None and hooks[0] is not with_version:
            _at_once(partial(lifted.append, hooks), _pop)
            found = _read(hooks[0])
            if isinstance(found, SecondRun):
                second = found
            elif found is not None:
                first.append(found)
        _put_back(lifted)
    finally:
        _put_back(lifted)  # Ctrl-C may come before the line above has done anything
    return Around(tuple(first), second)


def _put_back(lifted: list[Any]) -> None:
    """Put hooks on saved tensors back, the last one first, and empty the list of them."""
    _at_once(*(call for hooks in reversed(lifted) for call in (partial(_push, *hooks), lifted.pop)))


def _at_once(*calls: Callable[[], object]) -> None:
    """Make calls of C functions between which Python runs no code, and so no Ctrl-C can come."""
    deque(map(operator.call, calls), maxlen=0)


@contextmanager
def checkpoints_off() -> Generator[None]:
    """Within this context parts that torch checkpoints (without re-entrant autograd) keep their graphs as others do."""
    torchs: Any = torch.utils.checkpoint
    hook = torchs._checkpoint_hook
    torchs._checkpoint_hook = nullcontext
    try:
        yield
    finally:
        torchs._checkpoint_hook = hook


def _read(pack: Any) -> Any:
    """Return what a hook on saved tensors holds: a part's record, or its second run; None if it is no checkpoint's."""
    if getattr(pack, "__module__", None) != torch.utils.checkpoint.__name__:
        return None
    held = inspect.getclosurevars(inspect.unwrap(pack)).nonlocals
    if "frame" in held:
        return held["frame"]
    if "target_frame_ref" in held:
        return SecondRun(held["target_frame_ref"](), held["gid"])
    if "_checkpoint" in pack.__qualname__ or "recomputation" in pack.__qualname__:
        raise StateError(
            f"torch {torch.__version__} marks checkpointed parts in a way that this version of bpfree does not know: "
            "train without torch.utils.checkpoint, or update bpfree."
        )
    return None


@dataclass
class _Sequence(Generic[Done]):
    """The list of what was done in one part, and the number of entries that its second run has repeated."""

    done: list[Done | None] = field(default_factory=list)
    backward: Any = None
    place: int = 0


class Repetition(Generic[Done]):
    """A memory of what a hook did in the first runs of checkpointed parts, to be done again in their second runs.

    It must not hold a pass: a part lives as long as its graph.
    """

    def __init__(self) -> None:
        self._parts: WeakKeyDictionary[Any, _Sequence[Done]] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy has seen no part.
        return Repetition, ()

    def note(self, parts: Sequence[Any], done: Done | None) -> None:
        """Note what was done in the first run of these parts; None if nothing was done."""
        for part in parts:
            self._parts.setdefault(part, _Sequence()).done.append(done)

    def next(self, run: SecondRun) -> Done | None:
        """Return what is to be done next in a second run; None if nothing is to be done."""
        known = self._parts.get(run.part)
        if known is None:
            return None
        if known.backward != run.backward:
            known.backward, known.place = run.backward, 0
        known.place += 1
        return known.done[known.place - 1] if known.place <= len(known.done) else None
