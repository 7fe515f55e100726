"""``bpfree table --cost``: what a table takes, on this machine and on a GPU, from one measured step of each row."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bpfree.lab import environment
from bpfree.lab.data.samples import Data, Sampled
from bpfree.lab.environment import device
from bpfree.lab.errors import SettingsError, WriteError
from bpfree.lab.files import write_json
from bpfree.lab.glibc_heap import keep_freed_memory
from bpfree.lab.queue.work_protocol import Work
from bpfree.lab.recipe.schema import Recipe, Scale
from bpfree.lab.run_length import Length
from bpfree.lab.runs import learner, training_step
from bpfree.lab.settings import RunSettings
from bpfree.lab.tables import flops
from bpfree.lab.tables.result import COST_FORMAT, of_format
from bpfree.lab.tables.work import Training
from bpfree.lab.tasks import TASKS
from bpfree.lab.tasks.feed import Feed
from bpfree.lab.tasks.learner import Learner
from bpfree.lab.tasks.source import One
from bpfree.lab.time_and_memory import peak_bytes, seconds, stored_bytes

GPU_FLOPS = 10e12
"""Operations a second that a GPU is assumed to sustain in single precision: half of what an A100 has at most."""
GPU_LAUNCH = 10e-6
"""Seconds that PyTorch is assumed to take to start an operation on a GPU: small networks wait for these."""
_MEASURED_NUMBERS = 700_000  # in the inputs of a measured batch: 227 images of 3 x 32 x 32, 4 of 3 x 224 x 224
_REPEATS = 3


@dataclass(frozen=True)
class Linear:
    """A quantity of a step as a function of its samples: measured at two numbers of samples, a straight line between.

    Matrix products, operations and activations are exactly such; times nearly so.
    """

    fixed: float
    each: float

    @classmethod
    def through(cls, first: tuple[int, float], second: tuple[int, float]) -> Linear:
        """Return the line through two measured points; with one number of samples only, proportional to it."""
        (n, low), (m, high) = first, second
        each = (high - low) / (m - n) if m > n else high / m
        return cls(high - each * m, each)

    def at(self, samples: int) -> float:
        """Return the quantity for so many samples."""
        return max(0.0, self.fixed + self.each * samples)


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
    return {
        "scale": scale.name,
        "cut": scale.cut,
        "runs": sum(row.runs for row in rows),
        "hours": sum(row.hours for row in rows),
        "gpu_hours": sum(row.gpu_hours for row in rows),
        "bytes": max(row.bytes for row in rows),
        "assumed": None if device() == "cuda" else {"flops": GPU_FLOPS, "launch": GPU_LAUNCH},
        "environment": environment.describe(),
        "rows": [asdict(row) for row in rows],
    }


def row_cost(runs: Sequence[Training], splits: Data) -> RowCost:
    """Measure the cost of runs that differ only in their seeds."""
    settings = runs[0].settings
    keep_freed_memory()
    torch.set_num_threads(settings.threads)
    task, of_task = learner(settings, splits).to(device()), TASKS[settings.task]
    optimizer, feed = task.optimizer(), task.feed(settings, splits, of_task)
    largest = _measured_samples(settings, splits)
    lines = _lines(task, optimizer, feed, largest)
    step = {name: line.at(settings.batch_size) for name, line in lines.items()}
    steps, parts = _steps(settings.length, feed), settings.length.parts
    if isinstance(feed.train, One):  # a graph, which is evaluated as a whole
        evaluation = _evaluation(task, feed.aligned()[0], 1)
        evaluated = steps if feed.train.source.every_step else parts
        started = evaluation["operations"]
    else:
        evaluation = _evaluation(task, feed.first(largest)[0], largest)
        evaluated = len(cast(Sampled, splits).evaluation) * parts
        started = 0  # hundreds of samples are evaluated at once: what they start is little beside the steps
    here = steps * step["seconds"] + evaluated * evaluation["seconds"]
    assumed = steps * max(step["flops"] / GPU_FLOPS, step["operations"] * GPU_LAUNCH)
    assumed += evaluated * max(evaluation["flops"] / GPU_FLOPS, started * GPU_LAUNCH)
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


def _measured_samples(settings: RunSettings, splits: Data) -> int:
    """Return the number of samples to measure a step with: on a GPU its whole batch, on a CPU fewer, to be fast."""
    if device() == "cuda":
        return settings.batch_size
    return max(1, min(settings.batch_size, _MEASURED_NUMBERS // math.prod(splits.shape)))


def _widest(settings: RunSettings, splits: Data, feed: Feed) -> int:
    """Return the largest number of samples in one pass with a graph: a batch, or the samples for alignment."""
    if settings.alignment == "never" or feed.evaluation is None:
        return settings.batch_size
    return max(settings.batch_size, min(TASKS[settings.task].alignment_samples, len(cast(Sampled, splits).evaluation)))


def _lines(task: Learner, optimizer: torch.optim.Optimizer, feed: Feed, largest: int) -> dict[str, Linear]:
    """Return the cost of a step as linear functions of the number of samples."""
    every = getattr(task.settings.rule, "every", 1)  # a rule whose steps differ has them in turns
    sizes = [max(1, largest // 4), largest]
    found = [_measured(task, training_step(task, optimizer, feed.first(size)), every) for size in sizes]
    return {name: Linear.through(*((n, one[name]) for n, one in zip(sizes, found, strict=True))) for name in found[0]}


def _steps(length: Length, feed: Feed) -> int:
    return length.total if length.steps else length.parts * len(feed.train)


def _bytes(state: dict[str, Any]) -> int:
    return sum(value.numel() * value.element_size() for value in state.values() if isinstance(value, Tensor))


def _measured(task: Learner, step: Callable[[], None], every: int) -> dict[str, float]:
    """Measure the mean cost of one step over ``every`` steps."""
    task.train()
    for _ in range(every):
        step()  # allocations and choices that happen only once
    with flops.counter() as counted, _Operations() as operations:
        for _ in range(every):
            step()
    times = [_taken(lambda: _repeat(step, every)) for _ in range(_REPEATS)]
    return {
        "flops": counted.get_total_flops() / every,
        "operations": operations.count / every,
        "seconds": statistics.median(times) / every,
        "bytes": max(peak_bytes(step, device()) for _ in range(every)),
    }


def _evaluation(task: Learner, inputs: Any, samples: int) -> dict[str, float]:
    """Measure the cost of one sample's evaluation on ``inputs`` of ``samples`` samples; operations are for all."""
    x = move_data_to_device(inputs, device())
    task.eval()
    with torch.no_grad():
        with flops.counter() as counted, _Operations() as operations:
            task(x)
        taken = statistics.median(_taken(lambda: task(x)) for _ in range(_REPEATS))
    return {"flops": counted.get_total_flops() / samples, "seconds": taken / samples, "operations": operations.count}


def _repeat(call: Callable[[], None], times: int) -> None:
    for _ in range(times):
        call()


def _taken(call: Callable[[], object]) -> float:
    """Measure the seconds of a call; on a CPU, the time that its threads computed, so other programs do not count."""
    if device() == "cuda":
        return seconds(call, torch.cuda.synchronize)
    start = time.process_time()
    call()
    return (time.process_time() - start) / torch.get_num_threads()


class _Operations(TorchDispatchMode):
    """Counts the operations that are started, views left out: those start nothing on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


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
