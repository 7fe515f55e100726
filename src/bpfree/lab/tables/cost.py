"""``bpfree table --cost``: what a table takes, on this machine and on a GPU, from one measured step of each row."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from bpfree.lab.data.samples import Data, Sampled
from bpfree.lab.disk.files import write_json
from bpfree.lab.errors import SettingsError, WriteError
from bpfree.lab.process import environment
from bpfree.lab.process.environment import device
from bpfree.lab.process.glibc_heap import keep_freed_memory
from bpfree.lab.queue.work_protocol import Work
from bpfree.lab.recipe.schema import Recipe, Scale
from bpfree.lab.running.runs import learner
from bpfree.lab.settings import RunSettings
from bpfree.lab.settings.length import Length
from bpfree.lab.tables.measured_step import evaluation_of, measured_samples, step_lines
from bpfree.lab.tables.result import COST_FORMAT, of_format
from bpfree.lab.tables.work import Training
from bpfree.lab.tasks import TASKS
from bpfree.lab.tasks.feed import Feed
from bpfree.lab.tasks.source import One
from bpfree.lab.time_and_memory import stored_bytes

GPU_FLOPS = {"float32": 10e12, "bf16": 100e12}
"""Operations a second that a GPU is assumed to sustain: half of what an A100 has at most, a third in bfloat16."""
GPU_LAUNCH = 10e-6
"""Seconds that PyTorch is assumed to take to start an operation on a GPU: small networks wait for these."""


@dataclass(frozen=True)
class RowCost:
    """The cost of the runs of one label.

    Attributes:
        label: Row, or row and column.
        runs: The number of runs, one per seed.
        steps: Training steps of one run.
        measured_samples: The larger of the two numbers of samples that a step was measured with.
        step_flops: Operations of one step in matrix products and convolutions, at the recipe's batch size.
        step_operations: The number of operations (kernels) that a step starts.
        evaluation_flops: Operations of all evaluations of a run.
        bytes: Memory of weights, optimizer, feedback and one step.
        hours: The hours of all runs on this machine, one after the other: the seconds of a step times the number of
            steps, and evaluations.
        gpu_hours: The hours of all runs on the assumed GPU; on a machine with a GPU, the measured hours.
    """

    label: str
    runs: int
    steps: int
    measured_samples: int
    step_flops: float
    step_operations: float
    evaluation_flops: float
    bytes: float
    hours: float
    gpu_hours: float


def cost(recipe: Recipe, scale: Scale, works: Sequence[Work], data_dir: str | None) -> dict[str, Any]:
    """Measure a step of every row of a table.

    Args:
        recipe: The table.
        scale: The scale that is run.
        works: Its runs.
        data_dir: The folder of the data.

    Returns:
        The scale's cost, as ``NAME-cost.json`` holds it.

    Raises:
        SettingsError: The table trains nothing.
    """
    by_label: dict[str, list[Training]] = {}
    for work in works:
        if isinstance(work, Training):
            by_label.setdefault(work.label, []).append(work)
    if not by_label:
        raise SettingsError(f"--cost: {recipe.name} trains nothing; it takes seconds or minutes, and no GPU.")
    rows = [row_cost(runs, runs[0].data(data_dir)) for runs in by_label.values()]
    precisions = {run.settings.precision for runs in by_label.values() for run in runs}
    return {
        "scale": scale.name,
        "cut": scale.cut,
        "runs": sum(row.runs for row in rows),
        "hours": sum(row.hours for row in rows),
        "gpu_hours": sum(row.gpu_hours for row in rows),
        "bytes": max(row.bytes for row in rows),
        "assumed": None if device() == "cuda" else _assumed(precisions),
        "environment": environment.describe(),
        "rows": [asdict(row) for row in rows],
    }


def _assumed(precisions: Collection[str]) -> dict[str, Any]:
    """Return what is assumed of a GPU; operations a second by precision where that is not float32 alone."""
    flops: Any = {name: value for name, value in GPU_FLOPS.items() if name in precisions}
    return {"flops": flops["float32"] if list(flops) == ["float32"] else flops, "launch": GPU_LAUNCH}


def row_cost(runs: Sequence[Training], splits: Data) -> RowCost:
    """Measure the cost of runs that differ only in their seeds."""
    settings = runs[0].settings
    keep_freed_memory()
    torch.set_num_threads(settings.threads)
    task, of_task = learner(settings, splits).to(device()), TASKS[settings.task]
    optimizer, feed = task.optimizer(), task.feed(settings, splits, of_task)
    largest = measured_samples(settings, splits, task, feed)
    lines = step_lines(task, optimizer, feed, largest, settings)
    step = {name: line.at(settings.batch_size) for name, line in lines.items()}
    steps, parts = _steps(settings.length, feed), settings.length.parts
    if isinstance(feed.train, One):  # a graph, which is evaluated as a whole
        evaluation = evaluation_of(task, feed.aligned()[0], 1)
        evaluated = steps if feed.train.source.every_step else parts
        started = evaluation["operations"]
    else:
        evaluation = evaluation_of(task, feed.first(largest)[0], largest)
        evaluated = len(cast(Sampled, splits).evaluation) * parts
        started = 0  # hundreds of samples are evaluated at once: what they start is little beside the steps
    here = steps * step["seconds"] + evaluated * evaluation["seconds"]
    speed = GPU_FLOPS[settings.precision]
    assumed = steps * max(step["flops"] / speed, step["operations"] * GPU_LAUNCH)
    assumed += evaluated * max(evaluation["flops"] / speed, started * GPU_LAUNCH)
    kept = stored_bytes(task) + sum(map(_bytes, optimizer.state.values()))
    return RowCost(
        label=runs[0].label,
        runs=len(runs),
        steps=steps,
        measured_samples=largest,
        step_flops=step["flops"],
        step_operations=step["operations"],
        evaluation_flops=evaluated * evaluation["flops"],
        bytes=kept + lines["bytes"].at(_widest(settings, splits, feed)),
        hours=len(runs) * here / 3600,
        gpu_hours=len(runs) * (here if device() == "cuda" else assumed) / 3600,
    )


def _widest(settings: RunSettings, splits: Data, feed: Feed) -> int:
    """Return the largest number of samples in one pass with a graph: a micro-batch, or the samples for alignment.

    It is given as the samples of a whole batch that has such micro-batches.
    """
    if settings.alignment == "never" or feed.evaluation is None:
        return settings.batch_size
    aligned = min(TASKS[settings.task].alignment_samples, len(cast(Sampled, splits).evaluation))
    return max(settings.batch_size, settings.accumulate * aligned)


def _steps(length: Length, feed: Feed) -> int:
    return length.total if length.steps else length.parts * len(feed.train)


def _bytes(state: dict[str, Any]) -> int:
    return sum(value.numel() * value.element_size() for value in state.values() if isinstance(value, Tensor))


def known(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Return the costs in ``NAME-cost.json``, by the scale's name; none if there is no such file.

    Raises:
        WriteError: The file is damaged, or somebody else's.
    """
    path = place(recipe, folder)
    if not path.is_file():
        return {}
    content = of_format(path, COST_FORMAT, own=True)
    if content is None:
        raise WriteError(
            f"{path} is no cost of bpfree's, and that of {recipe.path} has its name. Move it, or name another --out."
        )
    return content["scales"]


def write(recipe: Recipe, found: dict[str, Any], folder: Path) -> Path:
    """Write a scale's cost to ``NAME-cost.json``, beside those of other scales.

    Raises:
        WriteError: The file is damaged, or somebody else's.
    """
    scales = known(recipe, folder) | {found["scale"]: found}
    return write_json(
        place(recipe, folder),
        {"format": COST_FORMAT, "name": recipe.name, "title": recipe.title, "scales": scales},
    )


def place(recipe: Recipe, folder: Path) -> Path:
    """Return the path of a recipe's cost."""
    return folder / f"{recipe.name}-cost.json"
