"""Checkpoints of a run on several processes: each writes its own file; a run resumes from the last step all have."""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Container, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias

import torch

from bpfree.distributed import rank, ranks
from bpfree.errors import BpfreeWarning, CheckpointError, StateError
from bpfree.pipeline.nested import put_together, take_apart
from bpfree.pipeline.tensor_file import read_seal, read_tensors, write_seal, write_tensors
from bpfree.pipeline.together import agreed, gathered

Folder: TypeAlias = "str | os.PathLike[str]"


class Stateful(Protocol):
    """An object that can be saved: a module, an optimizer, an attachment, a scheduler of learning rates."""

    def state_dict(self) -> dict[str, Any]:
        """Return its state."""

    def load_state_dict(self, state_dict: Any) -> Any:
        """Take a state over."""


def save_checkpoint(folder: Folder, step: int, parts: Mapping[str, Stateful], *, keep: int = 2) -> None:
    """Write this process's part of the checkpoint of ``step``; call it in every process.

    With :class:`ScheduleAsynchronous`, call its ``flush()`` before: unfinished work is not saved. Torch's random
    state is saved beside ``parts``. The file is there whole or not at all: a process that dies while it writes, or a
    full disk, leaves the older ones as they were, and no process drops an older one before all have the newer one.

    Args:
        folder: Where the files are, the same for all processes or one for each.
        step: The number of batches trained.
        parts: The stage's module, its optimizer and its attachment, by names of your choice.
        keep: The number of checkpoints to keep, at least 1.

    Raises:
        CheckpointError: A process could not write its file; all of them raise, and no checkpoint of ``step`` is there.
        StateError: A part's state holds something else than tensors and plain values.
    """
    with _Draft(_path(folder, step)) as draft:
        state = {"parts": {name: part.state_dict() for name, part in parts.items()}, "random": _random_state()}
        checksums = agreed(lambda: draft.write(state))
        agreed(lambda: draft.seal(_of_one_save(checksums)))
        agreed(draft.publish)
    others = [old for old in _steps(folder) if old != step]
    for old in others[: max(len(others) - keep + 1, 0)]:
        _path(folder, old).unlink()


def load_checkpoint(folder: Folder, parts: Mapping[str, Stateful]) -> int:
    """Take over the newest checkpoint that every process has, and return its step; 0 if there is none.

    A checksum covers every byte, and nothing is unpickled. Where a file is damaged all processes go back to the
    checkpoint before, and warn; the damaged file is kept with ``.damaged`` behind its name. What a killed process has
    left of an unfinished file is removed.

    Args:
        folder: As for :func:`save_checkpoint`.
        parts: As for :func:`save_checkpoint`.

    Raises:
        StateError: There are checkpoints, but of no step has every process one; or the file holds other parts, or
            parts of another model.
        CheckpointError: Every checkpoint is damaged in some process.
    """
    _sweep(folder)
    damaged: dict[int, str] = {}
    for step in reversed(_steps_of_all(folder)):
        wrong = _compare(_path(folder, step))
        if wrong:
            damaged[step] = wrong
            continue
        agreed(partial(_take_over, _path(folder, step), parts))
        if damaged:
            warnings.warn(
                f"{_listed_damage(damaged)}: all processes went back to step {step}. The files of what could not be "
                "used are kept with '.damaged' behind their names.",
                BpfreeWarning,
                stacklevel=2,
            )
        _drop_behind(folder, step, damaged)
        return step
    if damaged:
        raise CheckpointError(
            f"{_listed_damage(damaged)}, and there is none before. Put the files back from a copy, or move them away "
            "to begin at step 0."
        )
    return 0


# -- one file ----------------------------------------------------------------------------------------------------------


class _Draft:
    """A file under a temporary name, which is gone at the end unless it was published."""

    def __init__(self, path: Path) -> None:
        self._path, self._partial = path, path.with_name(f"{path.name}.partial")
        self._file: BinaryIO | None = None
        self._checksum = b""

    def __enter__(self) -> _Draft:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with suppress(OSError):  # of a full disk, which was told already
                self._file.close()
        self._partial.unlink(missing_ok=True)

    def write(self, state: Any) -> bytes:
        """Write ``state``; return the checksum."""
        structure, tensors = take_apart(state)
        with _named(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._partial.open("wb")
            self._checksum = write_tensors(self._file, tensors, json.dumps(structure, separators=(",", ":")))
        return self._checksum

    def seal(self, save: bytes) -> None:
        """Write what the files of one checkpoint have in common, and have everything on the disk."""
        assert self._file is not None
        with _named(self._path):
            write_seal(self._file, self._checksum, save)
            self._file.close()

    def publish(self) -> None:
        """Put the file in its place."""
        with _named(self._path):
            os.replace(self._partial, self._path)
            if os.name == "posix":  # elsewhere a folder cannot be opened
                _sync_folder(self._path.parent)


@contextmanager
def _named(path: Path) -> Generator[None]:
    """Within this context what the system refuses is told with the file's name."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{path} could not be written ({error.strerror or error}). Free some space, or name another folder; the "
            "checkpoints before it are as they were."
        ) from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _take_over(path: Path, parts: Mapping[str, Stateful]) -> None:
    tensors, structure = read_tensors(path)
    try:
        saved = put_together(json.loads(structure), tensors)
        held = saved["parts"].keys()
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, RecursionError) as strange:
        raise CheckpointError(f"{path} was not written by save_checkpoint ({strange}).") from strange
    if held != parts.keys():
        raise StateError(f"{path} holds {sorted(map(str, held))}; {sorted(parts)} was to be loaded.")
    for name, part in parts.items():
        with _fitting(path, repr(name)):
            part.load_state_dict(saved["parts"][name])
    with _fitting(path, "torch's random state"):
        _restore_random_state(saved["random"])


@contextmanager
def _fitting(path: Path, what: str) -> Generator[None]:
    """Within this context a state that is not that of its part is told with the file's name."""
    try:
        yield
    except Exception as misfit:  # whatever a part raises at what it does not know
        raise StateError(
            f"{path}: what it holds of {what} does not fit. {misfit} Load it into what it was saved from, or begin in "
            "another folder."
        ) from misfit


# -- the files of all processes ----------------------------------------------------------------------------------------


def _of_one_save(checksums: Sequence[bytes]) -> bytes:
    """Return the common mark of one checkpoint's files, made of their checksums by rank."""
    return hashlib.sha256(b"".join(checksums)).digest()


def _compare(path: Path) -> str:
    """Return the fault of one checkpoint's files, "" for none; ``path`` is the file of this process."""
    own: Any
    try:
        own = (str(path), *read_seal(path))
    except CheckpointError as damage:
        own = str(damage)
    except OSError as error:
        own = f"{path} cannot be read: {error.strerror or error}"
    told = gathered(own)
    wrong = [f"process {number}: {found}" for number, found in enumerate(told) if isinstance(found, str)]
    if wrong:
        return "; ".join(wrong)
    save = _of_one_save([checksum for _, checksum, _ in told])
    return "; ".join(
        f"process {number}: {path} has another end than those that were saved together"
        for number, (path, _, of) in enumerate(told)
        if of != save
    )


def _listed_damage(damaged: Mapping[int, str]) -> str:
    return ", ".join(f"the checkpoint of step {step} is damaged ({wrong})" for step, wrong in damaged.items())


def _path(folder: Folder, step: int) -> Path:
    return Path(folder) / f"step-{step:09d}.rank-{rank()}-of-{ranks()}.safetensors"


def _drop_behind(folder: Folder, step: int, damaged: Container[int]) -> None:
    """Let go of later files, for what was trained behind ``step`` is trained again; rename those ``damaged``."""
    for later in _steps(folder):
        path = _path(folder, later)
        if later in damaged:
            path.replace(path.with_name(f"{path.name}.damaged"))
        elif later > step:
            path.unlink()


def _sweep(folder: Folder) -> None:
    """Remove what processes of a run that was killed have begun to write; each of those of its own rank."""
    for path in Path(folder).glob("step-*.partial"):
        found = re.search(r"\.rank-(\d+)-of-\d+\.", path.name)
        if found and int(found[1]) % ranks() == rank():
            path.unlink(missing_ok=True)


def _steps_of_all(folder: Folder) -> list[int]:
    """Return the steps that every process has, in order."""
    found = gathered((_steps(folder), _foreign(folder)))
    common = set[int].intersection(*(set(steps) for steps, _ in found))
    if not common and any(steps or foreign for steps, foreign in found):
        told = [f"process {number}: {_listed(steps, foreign)}" for number, (steps, foreign) in enumerate(found)]
        raise StateError(
            f"there is no step of which all {len(found)} processes have a checkpoint ({'; '.join(told)}). Start as "
            "many processes as have saved it, with the same folders; to begin at step 0 give empty ones."
        )
    return sorted(common)


def _listed(steps: list[int], foreign: list[int]) -> str:
    has = f"steps {', '.join(map(str, steps))}" if steps else "none"
    return has + "".join(f", files of a run of {count} processes" for count in foreign)


def _foreign(folder: Folder) -> list[int]:
    """Return the numbers of processes, except this run's, for which there are files."""
    found = (re.search(r"-of-(\d+)$", path.stem) for path in Path(folder).glob("step-*.safetensors"))
    return sorted({int(match[1]) for match in found if match} - {ranks()})


def _steps(folder: Folder) -> list[int]:
    """Return the steps that this process has, in order."""
    pattern = re.compile(rf"step-(\d+)\.rank-{rank()}-of-{ranks()}\.safetensors")
    found = (pattern.fullmatch(path.name) for path in Path(folder).glob("step-*.safetensors"))
    return sorted(int(match[1]) for match in found if match)


def _random_state() -> dict[str, Any]:
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": devices}


def _restore_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
