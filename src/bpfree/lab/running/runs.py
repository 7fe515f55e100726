"""One run: one rule, one seed. It can be killed at any time and asked for again."""

from __future__ import annotations

import errno
import signal
import statistics
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from bpfree.errors import BpfreeError
from bpfree.lab.data.samples import Data
from bpfree.lab.disk.files import make_folder, read_json, write_json
from bpfree.lab.display.terminal import Display
from bpfree.lab.errors import DataError, RunError, WriteError
from bpfree.lab.kept import keep
from bpfree.lab.kept.checkpoints import LAST, TimedCheckpoints, WholeFiles, choose, left_by_run
from bpfree.lab.process import environment, replicas
from bpfree.lab.process.environment import device
from bpfree.lab.process.glibc_heap import keep_freed_memory
from bpfree.lab.process.quiet import quiet
from bpfree.lab.running.loggers import USUAL, make_logger
from bpfree.lab.running.progress import ShowProgress
from bpfree.lab.settings import RunSettings
from bpfree.lab.settings.checks import check_measured_on
from bpfree.lab.settings.model import ModelSettings
from bpfree.lab.settings.plain_values import plain
from bpfree.lab.summary import mean_cosine
from bpfree.lab.tasks import TAKEN, TASKS
from bpfree.lab.tasks.early_stopping import EarlyStopping
from bpfree.lab.tasks.feed import Feed
from bpfree.lab.tasks.learner import Learner
from bpfree.lab.tasks.records import EpochRecords, TrainingSeconds
from bpfree.lab.tasks.visualize import find, visualized
from bpfree.lab.time_and_memory import peak_bytes, stored_bytes

_WARM_STEPS = 3
_PICTURES = dict.fromkeys(("filters", "filters_shape", "embedding"))  # what a record says where none were asked for


@dataclass(frozen=True)
class Places:
    """The places of one run's files.

    Attributes:
        record: The result; it exists when the run has finished, and never before.
        checkpoint: The state after the last evaluation, or a later one within an epoch; the one before is kept beside
            it.
        folder: The run's logs, and its checkpoint.
    """

    record: Path
    checkpoint: Path
    folder: Path

    @classmethod
    def of(cls, settings: RunSettings, splits: Data, directory: Path) -> Places:
        """Return the places of this run in ``directory``. Other settings or other data have other places."""
        name = settings.name(splits.describe())
        folder = directory / name
        return cls(directory / f"{name}.json", folder / LAST, folder)

    def checkpoints(self) -> list[Path]:
        """Return the checkpoints that an interrupted run has left, the latest first."""
        return left_by_run(self.checkpoint)


def run(
    settings: RunSettings,
    splits: Data,
    directory: Path,
    *,
    display: Display | None = None,
    keep_checkpoint: bool = False,
    logger: str = USUAL,
) -> dict[str, Any]:
    """Train one model by one rule, or read the result if this run has finished before.

    Args:
        settings: The run's settings.
        splits: The data.
        directory: Where result, checkpoint and logs lie. A checkpoint of an unfinished run there is continued.
        display: Shows progress.
        keep_checkpoint: Keep the last checkpoint after the end, and of a run on text what its model is built of.
        logger: Another place for the numbers of every epoch, see :mod:`bpfree.lab.running.loggers`.

    Returns:
        The run's record, one element of ``runs`` in ``comparison.json``, and its ``settings`` and ``data``.

    Raises:
        RunError: The rule cannot be trained on the model, the run diverged, or no checkpoint that it left is whole.
        WriteError: The result could not be written.
        DamageError: The result of a run that has finished before is damaged.
    """
    places = Places.of(settings, splits, directory)
    if places.record.is_file():
        return read_json(places.record)
    check_measured_on(settings.rule, splits.measured_on)
    make_folder(places.folder)
    torch.set_num_threads(settings.threads)
    try:
        with quiet():
            record = _train(settings, splits, places, display or Display(None), logger, keep_checkpoint)
    except (DataError, WriteError):  # not this run's fault: the next one would meet the same
        raise
    except BpfreeError as error:
        with suppress(OSError):  # a run that was refused has written nothing; others' logs stay
            places.folder.rmdir()
        raise RunError(f"{settings.label}, seed {settings.seed}: {error}") from error
    if replicas.number():
        return record
    write_json(places.record, record)
    # The record says it all; the weights and optimizer states of many runs would fill the disk.
    for path in places.checkpoints()[1 if keep_checkpoint else 0 :]:
        path.unlink()
    return record


def _train(
    settings: RunSettings, splits: Data, places: Places, display: Display, logger: str, keep_model: bool
) -> dict[str, Any]:
    keep_freed_memory()
    of_task = TASKS[settings.task]
    feed = of_task.learner_class().feed(settings, splits, of_task)
    display.begin(settings, len(feed.train), splits.measured_on)
    clock = TrainingSeconds()
    records = EpochRecords(feed.aligned, clock, display.epoch, settings.alignment)
    peak = _step_memory(settings, splits, feed)
    task = learner(settings, splits)
    if settings.visualize:
        find(task.model, settings.visualize)  # a wrong name is told now, and not after the training
    if keep_model and not replicas.number():
        keep(settings, splits, places.folder)
    stopping = None
    if settings.patience is not None:
        stopping = EarlyStopping(records, of_task, settings.patience, settings.restored, places.checkpoint)
    trainer = _trainer(settings, places, [clock, records, *([stopping] if stopping else []), ShowProgress(display)])
    trainer.logger = make_logger(logger, places.folder)
    _fit(trainer, task, (feed.train, feed.evaluation), places)
    taken = records.epochs[-1 if stopping is None else stopping.taken]
    return {
        "label": settings.label,
        "seed": settings.seed,
        "epochs": records.epochs,
        of_task.metric.name: taken[f"eval_{of_task.metric.name}"],
        "duration": records.duration,
        "seconds_per_epoch": statistics.median(epoch["seconds"] for epoch in records.epochs),
        "alignment_mean": mean_cosine(records.epochs[-1]["alignment"]),
        "peak_memory_bytes": peak,
        "feedback_bytes": stored_bytes(task.attachment),
        "parameters": sum(weight.numel() for weight in task.model.parameters()),
        **_PICTURES,
        **(task.pictures(splits) if settings.details else {}),
        **(visualized(task.attachment, settings.visualize, splits.shape) if settings.visualize else {}),
        **task.numbers(feed),
        **({} if stopping is None else {TAKEN: taken["epoch"]}),
        "settings": settings.rule.describe()
        | {"model": settings.model, "batch_size": settings.batch_size}
        | settings.describe_step()
        | ({"augmentation": plain(settings.augmentation)} if settings.augmentation else {}),
        "data": splits.describe(),
        "environment": environment.describe(),
    }


def learner(settings: RunSettings, splits: Data) -> Learner:
    """Make the model, with weights drawn from the run's seed alone, and its rule, with a generator of its own."""
    seed_everything(settings.seed, verbose=False)
    model = ModelSettings(**settings.model).build(splits.shape, splits.classes)
    return TASKS[settings.task].learner_class()(model, settings, splits)


def _step_memory(settings: RunSettings, splits: Data, feed: Feed) -> int:
    """Measure the allocator's peak in one training step, on a task made for this. It also warms the machine up."""
    task = learner(settings, splits).to(device())
    step = training_step(task, task.optimizer(), feed.first(settings.batch_size))
    for _ in range(_WARM_STEPS):
        step()
    return peak_bytes(step, device())


def training_step(task: Learner, optimizer: torch.optim.Optimizer, batch: Any) -> Callable[[], None]:
    """Return a training step on a batch, to measure it."""
    batch = move_data_to_device(batch, device())

    def step() -> None:
        task.gradients(batch)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _trainer(settings: RunSettings, places: Places, callbacks: list[Callback]) -> Trainer:
    # One file, replaced after every epoch and within long ones: the state to continue from.
    last = ModelCheckpoint(
        dirpath=places.folder, filename=places.checkpoint.stem, save_on_train_epoch_end=True,
        enable_version_counter=False,
    )  # fmt: skip
    return Trainer(
        accelerator=device(),
        devices=replicas.count(),
        strategy=replicas.strategy() if replicas.count() > 1 else "auto",
        max_epochs=settings.epochs,
        callbacks=[*callbacks, TimedCheckpoints(places.checkpoint), last],
        logger=False,
        plugins=[WholeFiles()],
        enable_model_summary=False,
        num_sanity_val_steps=0,
        # The order of the data is the sampler's business.
        use_distributed_sampler=False,
    )


def _fit(trainer: Trainer, task: Learner, loaders: tuple[Any, Any], places: Places) -> None:
    """Train from the beginning, or from the latest whole checkpoint that an interrupted run has left.

    Raises:
        DamageError: No checkpoint is whole.
        WriteError: The log cannot be written.
    """
    found = choose(places.checkpoints())
    try:
        # A checkpoint comes from a folder that others may write to: only tensors and plain values are read.
        with _same_answer_to_interrupts():
            trainer.fit(task, *loaders, ckpt_path=None if found is None else str(found), weights_only=True)
    except (WriteError, DataError):
        raise
    except OSError as error:
        if error.filename is None and error.errno not in _DISK:
            raise
        place = error.filename or places.folder
        reason = error.strerror or str(error)
        raise WriteError(f"{place} could not be written ({reason}). Free some space or name another --out.") from error


@contextmanager
def _same_answer_to_interrupts() -> Generator[None]:
    """Keep what Ctrl-C does: Lightning switches it off for good if it comes as training begins or ends."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and handler is not None:  # None is not Python's
            signal.signal(signal.SIGINT, handler)


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # what a full or broken disk answers
