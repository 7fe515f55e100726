"""The state that a forward pass reads and changes: everything that a model, its hooks or its arguments keep."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bpfree.errors import SecondRunError
from bpfree.rerun.find_holders import first_holder, look_into
from bpfree.rerun.holders import Holder, RuleBuffers, Unchanging

_SMALL = 4096
"""Tensors in plain attributes of at most so many numbers are copied for every pass; buffers of any size are."""

_LARGE = 2**22
"""Tensors in plain attributes of more numbers are not copied, unless a pass has written to them before."""

_NEW = 2
"""In the first passes, so many, tensors up to ``_LARGE`` are copied too, to see whether a pass writes to them."""

_MOST = 20_000
"""The largest number of places that are looked at."""

STALE: Any = object()
"""Stands in place of a copy, and says that the place must be looked at again."""


@dataclass(frozen=True)
class Written:
    """A tensor in a place, as it was when a pass began.

    Attributes:
        holder: The place.
        key: The tensor's key in that place.
        tensor: The tensor.
        version: The tensor's version (how often it had been written to).
        copy: A copy, if one was made.
    """

    holder: Holder
    key: Any
    tensor: Tensor
    version: int
    copy: Tensor | None

    @property
    def name(self) -> str:
        """The tensor's name for messages."""
        return self.holder.name(self.key)


@dataclass(frozen=True)
class Moment:
    """The contents of all places at one moment.

    Attributes:
        holders: The places.
        kept: A copy of the contents of each place.
        tensors: The tensors in them.
    """

    holders: Sequence[Holder]
    kept: Sequence[Any]
    tensors: Sequence[Written] = ()

    def with_those_of(self, other: Moment) -> Moment:
        """Return this moment, with the present contents of the places of ``other`` that the model has dropped since."""
        if self.holders is other.holders:
            return self
        known = set(map(id, self.holders))
        dropped = [holder for holder in other.holders if id(holder) not in known]
        for holder in dropped:
            holder.kept = holder.copy()
        return Moment([*self.holders, *dropped], [*self.kept, *(holder.kept for holder in dropped)])

    def put(self) -> None:
        """Make every place hold what it held."""
        for holder, kept in zip(self.holders, self.kept, strict=True):
            if not holder.matches(kept):
                holder.put(kept)
            if holder.kept is not kept:  # it has been looked at in between
                holder.kept = STALE

    def begin(self) -> None:
        """Make every place hold what it held, with copies in place of its tensors.

        Graphs that hold the tensors themselves stay valid: nothing is written to them.

        Raises:
            SecondRunError: A tensor that was too large to be copied was written to since.
        """
        for written in self.tensors:
            if written.copy is None and written.tensor._version != written.version:
                raise written_to(written)
        for holder, kept in zip(self.holders, self.kept, strict=True):
            if holder.kept is not kept:
                holder.put(kept)
        # Copies of the copies: a pass may be run from here again.
        standing_in: dict[int, Tensor] = {}
        for written in self.tensors:
            copy = written.copy
            if copy is not None:
                if id(copy) not in standing_in:
                    standing_in[id(copy)] = _twin(copy)
                written.holder.replace(written.key, standing_in[id(copy)])

    def changed(self) -> list[str]:
        """Return the names of the places that hold something else now."""
        pairs = zip(self.holders, self.kept, strict=True)
        return [holder.label for holder, kept in pairs if not holder.matches(kept)]

    def versions(self) -> list[int]:
        """Return the number of writes to each tensor itself so far."""
        return [written.tensor._version for written in self.tensors]

    def check(self, versions: Sequence[int]) -> None:
        """Raise SecondRunError if one of the tensors was written to since it had its entry of ``versions``."""
        for written, version in zip(self.tensors, versions, strict=True):
            if written.tensor._version != version:
                raise written_to(written)


def written_to(written: Written) -> SecondRunError:
    """Make the error for a large tensor in a plain attribute that was written to."""
    return SecondRunError(
        f"{written.name!r}, a tensor {tuple(written.tensor.shape)} that the model keeps, was written to in place in "
        "its forward pass, and this way of learning runs the model once more from the state before it. Tensors of "
        "this size are copied where they are buffers alone: keep it as one (register_buffer(..., persistent=False)), "
        "or give the attribute a new tensor in place of writing into it."
    )


class State:
    """The contents of every place that can be reached from one object.

    Args:
        root: A module, or the objects among the arguments of a pass by number or name.

    Attributes:
        is_moved_by_gradients: True if hooks on gradients, or a function's own backward pass, have changed any of it.
    """

    def __init__(self, root: nn.Module | Mapping[Any, Any]) -> None:
        self._root = root
        self.is_moved_by_gradients = False
        self._passes = 0
        # The number of hooks registered anywhere: if it grows, the model may have new ones.
        self._hooks = -1
        # The names of the tensors that a pass has written to.
        self._written: set[str] = set()
        self._places: Sequence[Holder] = ()
        self._watched: Sequence[Holder] = ()
        self._with_tensors: Sequence[Holder] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of the model has places of its own.
        return State, (self._root,)

    @property
    def holders(self) -> Sequence[Holder]:
        """The places, as they are now."""
        self._look()
        return self._places

    def now(self, *, copies: bool = False) -> Moment:
        """Copy the contents of every place.

        Args:
            copies: Also copy the tensors that a pass may write to, for a second run that begins from this moment.
        """
        self._look()
        kept = [holder.kept for holder in self._watched]
        if not copies:
            return Moment(self._watched, kept)
        self._passes += 1
        return Moment(self._watched, kept, self._copied() if self._with_tensors else ())

    def _look(self) -> None:
        """Look at what has changed since the last time, and find the places in it."""
        if not self._places:
            self._places = self._found()
            return
        changed = False
        new_hooks = RemovableHandle.next_id != self._hooks
        self._hooks = RemovableHandle.next_id
        for holder in self._watched:
            kept = holder.kept
            if kept is STALE or not holder.matches(kept) or (new_hooks and not holder.is_known()):
                before = holder.children, holder.tensors
                look_into(holder, {id(child.held): child for child in holder.children})
                changed = changed or bool(before[0] or before[1] or holder.children or holder.tensors)
        if changed:
            self._places = self._found()

    def _found(self) -> Sequence[Holder]:
        """Return all places, each once. Places that are known already are not looked into again."""
        known = {id(holder.held): holder for holder in self._places}
        found: dict[int, Holder] = {}
        open_places = [self._places[0] if self._places else first_holder(self._root)]
        while open_places and len(found) < _MOST:
            holder = open_places.pop()
            if id(holder.held) in found:
                continue
            found[id(holder.held)] = holder
            if known.get(id(holder.held)) is not holder:
                look_into(holder, known)
            open_places += reversed(holder.children)
        places = list(found.values())
        self._watched = [holder for holder in places if not isinstance(holder, Unchanging)]
        self._with_tensors = [holder for holder in places if holder.tensors]
        return places

    def _copied(self) -> list[Written]:
        """Return the tensors, with copies of those that a pass may write to: one copy per tensor, not per place."""
        copies: dict[int, Tensor | None] = {}
        found: list[Written] = []
        for holder in self._with_tensors:
            held: Any = holder.held
            buffers = held._buffers if isinstance(held, nn.Module) else held if isinstance(holder, RuleBuffers) else ()
            for key, tensor in holder.tensors:
                if id(tensor) not in copies:
                    copied = key in buffers or self._is_copied(holder, key, tensor)
                    copies[id(tensor)] = _twin(tensor) if copied else None
                found.append(Written(holder, key, tensor, tensor._version, copies[id(tensor)]))
        return found

    def _is_copied(self, holder: Holder, key: Any, tensor: Tensor) -> bool:
        size = tensor.numel()
        new = self._passes <= _NEW and size <= _LARGE
        return size <= _SMALL or new or (bool(self._written) and holder.name(key) in self._written)

    def graphs(self) -> dict[str, Tensor]:
        """Return the kept tensors that have a graph, by name.

        Weights that hooks of torch.nn.utils compute anew in every pass are left out.
        """
        found = [(holder, key, tensor) for holder in self.holders for key, tensor in holder.tensors]
        return {holder.name(key): tensor for holder, key, tensor in found if tensor.grad_fn and not _made(holder, key)}

    @contextmanager
    def expecting_hooks(self) -> Generator[None]:
        """Within this context the registered hooks keep nothing: no place is looked into because of them."""
        are_known = self._hooks == RemovableHandle.next_id
        yield
        if are_known:
            self._hooks = RemovableHandle.next_id

    def note(self, moment: Moment) -> None:
        """Note which tensors have been written to since ``moment``: from now on, every pass copies them."""
        large = (written for written in moment.tensors if written.tensor.numel() > _SMALL)
        self._written.update(written.name for written in large if written.tensor._version != written.version)


def _twin(tensor: Tensor) -> Tensor:
    """Return a copy with the tensor's own attributes, which ``clone()`` leaves out."""
    twin = tensor.clone()
    for name, value in vars(tensor).items():
        vars(twin).setdefault(name, value)
    return twin


def _made(holder: Holder, key: Any) -> bool:
    """Return whether a hook of torch.nn.utils makes this attribute in every pass (weight norm, pruning)."""
    hooks = holder.held._forward_pre_hooks.values() if isinstance(holder.held, nn.Module) else ()
    made_here = (hook for hook in hooks if type(hook).__module__.startswith("torch.nn.utils."))
    return any(key in (getattr(hook, "name", None), getattr(hook, "_tensor_name", None)) for hook in made_here)
