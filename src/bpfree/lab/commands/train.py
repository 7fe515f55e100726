"""One rule, one seed, and its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from bpfree.lab.data import load
from bpfree.lab.data.text import Text
from bpfree.lab.disk.leftovers import sweep
from bpfree.lab.display.terminal import Display
from bpfree.lab.errors import RunError
from bpfree.lab.kept import keep
from bpfree.lab.kept.checkpoints import LAST
from bpfree.lab.kept.text import export
from bpfree.lab.options.training import TrainOptions
from bpfree.lab.process import replicas
from bpfree.lab.running.loggers import check_logger
from bpfree.lab.running.runs import Places, run
from bpfree.lab.tasks import CLICKS


def train(options: TrainOptions, console: Console | None = None) -> dict[str, Any]:
    """Train, and write the result as JSON beside the checkpoint and the log.

    Beside the checkpoint of a run on text is also what ``bpfree generate`` needs, and for a model of transformers the
    folder ``model`` in its own format.

    Args:
        options: The run: the network, its rule, the data and the training.
        console: Where progress is shown; None shows nothing.

    Returns:
        The run's record.

    Raises:
        SettingsError: An option means nothing.
        DataError: The data cannot be read.
        RunError: There is nothing to resume, or something that was not asked to be resumed; the rule cannot be
            trained on the model.
    """
    check_logger(options.logger)
    replicas.check(f"bpfree train --data {options.data}", able=options.task() is CLICKS)
    settings = options.run(options.rule, options.seed, details=True)
    replicas.join()
    console = None if replicas.number() else console
    with replicas.first_alone():
        splits = load(options.data, options.data_dir, **options.reading)
    directory = options.directory()
    sweep(directory, below=True)
    places = Places.of(settings, splits, directory)
    known = places.record.is_file()
    if not known:
        _check(places, directory, resume=options.resume)
    elif not replicas.number():
        keep(settings, splits, places.folder)  # anew: the files that its model is built of may have moved
    with Display(console, measured_on=splits.measured_on) as display:
        record = run(settings, splits, directory, display=display, keep_checkpoint=True, logger=options.logger)
        display.finish(settings, record, known=known)
    written = {"result": places.record, "checkpoint": places.checkpoint}
    if isinstance(splits, Text) and places.checkpoints() and (exported := export(places.folder)):
        written["model"] = exported
    if console is not None:
        for name, path in written.items():
            console.print(f"{name}: {path}", soft_wrap=True)
    return record


def _check(places: Places, directory: Path, *, resume: bool) -> None:
    unfinished = bool(places.checkpoints())
    if unfinished and not resume:
        raise RunError(
            f"{places.folder} holds an interrupted run of these settings: add --resume, or name another --out."
        )
    if resume and not unfinished:
        others = sorted(path.parent.name for path in directory.glob(f"*/{LAST}"))
        found = f"There are only others: {', '.join(others)}." if others else "There is none at all."
        raise RunError(
            f"--resume: {directory} holds no checkpoint of a run with these settings on these data. {found} Repeat the "
            "command that began the run, with --resume added; or leave --resume out to begin anew."
        )
