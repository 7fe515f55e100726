"""Checkpoints of a run on several processes: each writes its own file; a run resumes from the last step all have."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from bpfree.errors import StateError
from bpfree.ranks import rank, ranks


class Stateful(Protocol):
    """What can be saved: a module, an optimizer, an attachment, a scheduler of learning rates."""

    def state_dict(self) -> dict[str, Any]:
        """Its state."""

    def load_state_dict(self, state_dict: Any) -> Any:
        """Take a state over."""


def save_checkpoint(folder: str | os.PathLike[str], step: int, parts: Mapping[str, Stateful], *, keep: int = 2) -> None:
    """Write this process's part of the checkpoint of ``step``; call it in every process.

    With :class:`ScheduleAsynchronous`, call its ``flush()`` before: what is under way is not saved. Torch's random
    state is saved beside ``parts``. A process that dies while it writes leaves the older file as it was, and no process
    drops an older file before all have the newer one: they wait for each other here.

    Args:
        folder: Where the files are, the same for all processes or one for each.
        step: The number of batches trained.
        parts: The stage's module, its optimizer and its attachment, by names of your choice.
        keep: How many checkpoints to keep, at least 1.
    """
    path = _path(folder, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: part.state_dict() for name, part in parts.items()}
    partial = path.with_suffix(".partial")
    torch.save({"parts": state, "random": _random_state()}, partial)
    os.replace(partial, path)
    if ranks() > 1:
        dist.barrier()
    others = [old for old in _steps(folder) if old != step]
    for old in others[: max(len(others) - keep + 1, 0)]:
        _path(folder, old).unlink()


def load_checkpoint(folder: str | os.PathLike[str], parts: Mapping[str, Stateful]) -> int:
    """Take over the newest checkpoint that every process has, and return its step; 0 if there is none.

    Args:
        folder: As for :func:`save_checkpoint`.
        parts: As for :func:`save_checkpoint`.

    Raises:
        StateError: There are checkpoints, but of no step has every process one; or the file holds other parts.
    """
    step = _newest_of_all(folder)
    if step is None:
        return 0
    saved = torch.load(_path(folder, step), weights_only=True)
    if saved["parts"].keys() != parts.keys():
        raise StateError(f"the checkpoint holds {sorted(saved['parts'])}; {sorted(parts)} was to be loaded.")
    for name, part in parts.items():
        part.load_state_dict(saved["parts"][name])
    _restore_random_state(saved["random"])
    # What was trained behind it is trained again.
    for later in _steps(folder):
        if later > step:
            _path(folder, later).unlink()
    return step


def _path(folder: str | os.PathLike[str], step: int) -> Path:
    return Path(folder) / f"step-{step:09d}.rank-{rank()}-of-{ranks()}.pt"


def _newest_of_all(folder: str | os.PathLike[str]) -> int | None:
    """The last step that every process has; None if nobody has any."""
    own = (_steps(folder), _foreign(folder))
    found: list[Any] = [own]
    if ranks() > 1:
        found = [None] * ranks()
        dist.all_gather_object(found, own)
    common = set[int].intersection(*(set(steps) for steps, _ in found))
    if not common and any(steps or foreign for steps, foreign in found):
        told = [f"process {number}: {_listed(steps, foreign)}" for number, (steps, foreign) in enumerate(found)]
        raise StateError(
            f"there is no step of which all {len(found)} processes have a checkpoint ({'; '.join(told)}). Start as "
            "many processes as have saved it, with the same folders; to begin at step 0 give empty ones."
        )
    return max(common, default=None)


def _listed(steps: list[int], foreign: list[int]) -> str:
    has = f"steps {', '.join(map(str, steps))}" if steps else "none"
    return has + "".join(f", files of a run of {count} processes" for count in foreign)


def _foreign(folder: str | os.PathLike[str]) -> list[int]:
    """Of runs on how many processes, other than this one's number, there are files."""
    found = (re.search(r"-of-(\d+)$", path.stem) for path in Path(folder).glob("step-*.pt"))
    return sorted({int(match[1]) for match in found if match} - {ranks()})


def _steps(folder: str | os.PathLike[str]) -> list[int]:
    """The steps that this process has, in order."""
    pattern = re.compile(rf"step-(\d+)\.rank-{rank()}-of-{ranks()}\.pt")
    found = (pattern.fullmatch(path.name) for path in Path(folder).glob("step-*.pt"))
    return sorted(int(match[1]) for match in found if match)


def _random_state() -> dict[str, Any]:
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": devices}


def _restore_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
