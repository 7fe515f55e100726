"""The lab's main job: one model, several rules, several seeds, one report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from bpfree.lab.data import Data, load
from bpfree.lab.disk.files import write_json
from bpfree.lab.disk.leftovers import sweep, temporary_folder
from bpfree.lab.display.terminal import Display
from bpfree.lab.display.terminal_table import table
from bpfree.lab.errors import DataError, RunError, WriteError
from bpfree.lab.options.command_line import command_line
from bpfree.lab.options.training import CompareOptions
from bpfree.lab.process import environment
from bpfree.lab.running.loggers import check_logger
from bpfree.lab.running.runs import Places, run
from bpfree.lab.settings import RunSettings
from bpfree.lab.settings.model import ModelSettings
from bpfree.lab.settings.plain_values import plain
from bpfree.lab.summary import FORMAT, summarize
from bpfree.lab.tasks import TAKEN
from bpfree.lab.tasks.task import Task

_WARM_STEPS = 20
_OF_A_RUN = (
    "label", "seed", "epochs", "alignment_mean", "seconds_per_epoch", "peak_memory_bytes", "feedback_bytes",
    "parameters", "filters", "filters_shape", "embedding",
)  # fmt: skip


def compare(options: CompareOptions, console: Console | None = None) -> dict[str, Any]:
    """Train, measure, and write ``comparison.json`` and ``report.html``.

    Runs that have finished before, with the same settings and data, are not repeated. One that fails stops no other.

    Args:
        options: The rules, the data and the training.
        console: Where progress and the table are shown; None shows nothing.

    Returns:
        The content of ``comparison.json``.

    Raises:
        SettingsError: An option means nothing.
        DataError: The data cannot be read.
        RunError: Some runs failed; what the others found is written and shown. Or all did, and nothing is written.
        WriteError: A result could not be written.
    """
    # Everything that can be wrong with the request is found before the first hour of training.
    check_logger(options.logger)
    plan = plan_runs(options)
    splits = load(options.data, options.data_dir, **options.reading)
    ModelSettings(**plan[0].model).build(splits.shape, splits.classes)  # its mistakes would be every run's
    directory = options.directory()
    sweep(directory / "runs", below=True)
    records, failed = _run_all(plan, splits, directory / "runs", console, options.logger)
    if not records:
        raise _failure(plan, failed)
    comparison = assemble(options, plan, records, failed, splits)
    written = [write_json(directory / "comparison.json", comparison), _report(comparison, directory)]
    if console is not None:
        console.print(table(comparison))
        for path in written:
            console.print(f"{path.name}: {path}", soft_wrap=True)
    if failed:
        raise _failure(plan, failed)
    return comparison


def plan_runs(options: CompareOptions) -> list[RunSettings]:
    """Return all runs, seed by seed: so, if the machine is slow for a while, it is slow for every rule."""
    seeds = options.seed_list()
    return [
        options.run(label, seed, details=seed == seeds[0]) for seed in seeds for label in options.labels()
    ]  # fmt: skip


def _run_all(
    plan: Sequence[RunSettings], splits: Data, directory: Path, console: Console | None, logger: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the records of the runs in the plan's order, and why those without one failed."""
    records, failed = list[dict[str, Any]](), list[str]()
    with Display(console, runs=len(plan), measured_on=splits.measured_on) as display:
        cold = True
        for settings in plan:
            known = Places.of(settings, splits, directory).record.is_file()
            if cold and not known:
                with suppress(Exception):  # of what cannot even be warmed up with, the run itself says why
                    warm_up(settings, splits)
                    cold = False
            try:
                record = run(settings, splits, directory, display=display, logger=logger)
            except (DataError, WriteError):
                raise
            except Exception as error:  # diverging, out of memory: the other runs of a night are still wanted
                failed.append(_reason(settings, error))
            else:
                # One that was known may have been found under a label whose letters are the same.
                records.append(record | {"label": settings.label})
                display.finish(settings, records[-1], known=known)
    return records, failed


def _reason(settings: RunSettings, error: Exception) -> str:
    if isinstance(error, RunError):  # names its run
        return str(error)
    return f"{settings.label}, seed {settings.seed}: {type(error).__name__}: {error}"


def _failure(plan: Sequence[RunSettings], failed: Sequence[str]) -> RunError:
    reasons = "\n".join(failed)
    return RunError(f"{len(failed)} of {len(plan)} runs failed; the same command tries them again.\n{reasons}")


def warm_up(settings: RunSettings, splits: Data) -> None:
    """Train a few steps and forget them: what a process does for the first time must not count against one rule."""
    few = splits.first(_WARM_STEPS * settings.batch_size)
    with temporary_folder() as folder:
        run(replace(settings, epochs=1, steps=None, details=False), few, folder)


def assemble(
    options: CompareOptions,
    plan: Sequence[RunSettings],
    records: Sequence[Mapping[str, Any]],
    failed: Sequence[str],
    splits: Data,
) -> dict[str, Any]:
    """Return the comparison in the form ``bpfree-comparison/1``."""
    data = splits.describe()
    first, task = plan[0], options.task()
    return {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line("compare", options),
        "task": task.name,
        "settings": {
            "data": _data_settings(options, data),
            "model": first.model,
            "taps": first.taps,
            "error_at": first.error_at,
            **first.length.describe(),
            "batch_size": first.batch_size,
            **first.describe_step(),
            "seeds": options.seed_list(),
            "measured_on": splits.measured_on,
            "rules": {settings.label: settings.rule.describe() for settings in plan},
        },
        "environment": environment.describe(),
        "data": {key: value for key, value in data.items() if key not in ("measured_on", "normalization")},
        "runs": [_shown(record, task) for record in records],
        "failed": list(failed),
        "summary": summarize(records, options.labels(), task.metric, task.beside),
    }  # fmt: skip


def _shown(record: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """Return what a comparison keeps of a run's record."""
    beside = (TAKEN, "calibration_curve", "roc", "views", *(number.name for number in task.beside))
    kept = {key: record[key] for key in (*_OF_A_RUN, task.metric.name)}
    return kept | {key: record[key] for key in beside if key in record}


def _data_settings(options: CompareOptions, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return how images were prepared; for other data, their facts say how they were read."""
    if "normalization" not in data:
        return {"name": options.data}
    shown = {"name": options.data, "validation": options.validation, "normalization": data["normalization"]}
    return shown | ({"augmentation": plain(options.augmentation)} if options.augmentation else {})


def _report(comparison: dict[str, Any], directory: Path) -> Path:
    # Imported here: drawing needs libraries that training does not.
    from bpfree.lab import report

    return report.write(comparison, directory / "report.html")
