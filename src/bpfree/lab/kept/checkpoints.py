"""Checkpoints of runs: whole or not there, with a checksum, and the one before is kept.

They are written after each evaluation, and within long epochs every ten minutes.
"""

from __future__ import annotations

import hashlib
import struct
import time
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import Callback, Trainer

from bpfree.errors import BpfreeWarning
from bpfree.lab.data.resumable import ResumableLoader
from bpfree.lab.disk.files import replacing
from bpfree.lab.errors import DamageError
from bpfree.lab.process import replicas

# torch writes zip files. The checksum of all that it wrote is the comment behind, as zip files may have one: whoever
# reads zip files, torch among them, reads on as before.
_COMMENT = b"bpfree sha256 "
_DIGITS = 64
_LENGTH = struct.Struct("<H")  # of the comment: the two bytes before it
_CHUNK = 2**20
_SECONDS = 600.0  # between checkpoints within an epoch
_ASKED = 100  # steps after which several processes agree whether it is time
LAST = "last.ckpt"
"""The name of a run's checkpoint, in its folder."""


class TimedCheckpoints(Callback):
    """Writes checkpoints within an epoch, behind a step, when ten minutes have passed since the last one.

    A run that continues from one begins at the next batch. It stands last among the callbacks, so that the others have
    seen the step. Lightning's own callback does this for automatic optimization alone.

    Args:
        path: The run's checkpoint, which that after an evaluation replaces, and which replaces that one.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._written = path, 0.0

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Start the clock, and leave out the batches of an epoch that were trained on before the checkpoint."""
        self._written = time.monotonic()
        if trainer.fit_loop.restarted_mid_epoch:
            # Lightning does so only where nobody has asked for the number of steps before, as schedules do.
            done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
            cast(ResumableLoader, trainer.train_dataloader).load_state_dict({"batches": done})

    def on_train_epoch_start(self, *_: Any) -> None:
        """Start the clock anew: a checkpoint has been written after the epoch before."""
        self._written = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Write one if it is time. After the last step the evaluation comes first, and one is written behind it."""
        if trainer.is_last_batch or (replicas.count() > 1 and trainer.global_step % _ASKED):
            return
        if not replicas.agreed(time.monotonic() - self._written >= _SECONDS):
            return
        trainer.save_checkpoint(self._path, weights_only=False)  # the optimizer and all else too
        self._written = time.monotonic()


class WholeFiles(TorchCheckpointIO):
    """Checkpoints that are there whole or not at all, whenever the process is killed, and carry a checksum."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write to a file beside ``path``, keep what is there as the one before, and put the new one in its place."""
        path = Path(path)
        with replacing(path) as temporary:
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError as error:  # what torch says of a full disk
                raise OSError("torch could not write all of it") from error
            _seal(temporary)
            if path.is_file():
                path.replace(previous(path))

    def load_checkpoint(self, path: Any, *args: Any, **options: Any) -> Any:
        """Read a checkpoint.

        Raises:
            DamageError: It is not as it was written, or holds what no checkpoint of a run does.
        """
        damage = damage_of(Path(path))
        if damage:
            raise DamageError(f"{path} is damaged ({damage}). {_REMEDY}")
        try:
            return super().load_checkpoint(path, *args, **options)
        except Exception as error:  # a file of somebody who has made a checksum for it may hold anything
            said = str(error).partition("\n")[0]
            raise DamageError(f"{path} cannot be read ({said}). {_REMEDY}") from error


_REMEDY = "Delete it: the run begins at the checkpoint before it, or anew."


def previous(path: Path) -> Path:
    """Return where the checkpoint before the one at ``path`` is kept."""
    return path.with_name(f"{path.stem}-before{path.suffix}")


def left_by_run(path: Path) -> list[Path]:
    """Return the checkpoints that there are of a run whose own is ``path``, the latest first."""
    return [place for place in (path, previous(path)) if place.is_file()]


def choose(paths: Sequence[Path]) -> Path | None:
    """Choose the first of several checkpoints that is whole; say which ones before it are not.

    Raises:
        DamageError: There are some, and none is whole.
    """
    said: list[str] = []
    for path in paths:
        damage = damage_of(path)
        if not damage:
            for line in said:
                warnings.warn(f"{line} The run continues from {path}, which is older.", BpfreeWarning, 2)
            return path
        said.append(f"{path} is damaged ({damage}).")
    if said:
        which = "it" if len(said) == 1 else "them"
        raise DamageError(f"{' '.join(said)} Delete {which} to start this run anew.")
    return None


def damage_of(path: Path) -> str:
    """Say what is wrong with a checkpoint; nothing if it is as it was written."""
    try:
        size = path.stat().st_size
        digits, content = _found(path, size)
        if not zipfile.is_zipfile(path) or not digits:
            return "it is truncated, or no checkpoint of a run"
        if digits != content:
            return "its checksum is not that of what stands in it"
        with zipfile.ZipFile(path) as packed:
            parts = packed.infolist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:  # the third: of a later zip format
        return str(error)
    # torch stores without packing. What unpacks to more than the file's size is no checkpoint of ours.
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or sum(part.file_size for part in parts) > size:
        return "it declares more than it holds"
    return ""


def _seal(path: Path) -> None:
    """Put the checksum of all that is in a zip file behind it."""
    comment = len(_COMMENT) + _DIGITS
    with path.open("r+b") as file:
        file.seek(-_LENGTH.size, 2)
        file.write(_LENGTH.pack(comment))
        file.seek(0)
        digits = _digest(file, path.stat().st_size)
        file.seek(0, 2)
        file.write(_COMMENT + digits.encode())


def _found(path: Path, size: int) -> tuple[str, str]:
    """Return the checksum at a file's end, if there is one, and that of the bytes before it."""
    behind = len(_COMMENT) + _DIGITS
    with path.open("rb") as file:
        content = _digest(file, max(0, size - behind))
        comment = file.read()
    return (comment[-_DIGITS:].decode("ascii") if comment.startswith(_COMMENT) else ""), content


def _digest(file: Any, length: int) -> str:
    found = hashlib.sha256()
    while length > 0 and (piece := file.read(min(_CHUNK, length))):
        found.update(piece)
        length -= len(piece)
    return found.hexdigest()
