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
    state is saved beside ``parts``. A process that dies while it writes leaves the older file as it was.

    Args:
        folder: Where the files are, the same for all processes or one for each.
        step: The number of batches trained.
        parts: The stage's module, its optimizer and its attachment, by names of your choice.
        keep: How many checkpoints to keep; at least 2, because others may not have the newest one yet.
    """
    path = _path(folder, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: part.state_dict() for name, part in parts.items()}
    partial = path.with_suffix(".partial")
    torch.save({"parts": state, "random": _random_state()}, partial)
    os.replace(partial, path)
    for old in _steps(folder)[: -max(keep, 2)]:
        _path(folder, old).unlink()


def load_checkpoint(folder: str | os.PathLike[str], parts: Mapping[str, Stateful]) -> int:
    """Take over the newest checkpoint that every process has, and return its step; 0 if there is none.

    Args:
        folder: As for :func:`save_checkpoint`.
        parts: As for :func:`save_checkpoint`.

    Raises:
        StateError: The file holds other parts.
    """
    found: list[Any] = [_steps(folder)]
    if ranks() > 1:
        own, found = found[0], [None] * ranks()
        dist.all_gather_object(found, own)
    common = set[int].intersection(*map(set, found))
    if not common:
        return 0
    step = max(common)
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
