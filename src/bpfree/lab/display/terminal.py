"""The display in the terminal while runs go on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from bpfree.lab.display.pace import Pace
from bpfree.lab.settings import RunSettings
from bpfree.lab.settings.length import Length
from bpfree.lab.tasks import CLASSIFICATION, TASKS

_REFRESHES = 4  # a second; drawing takes time from the runs that are being timed


class Display:
    """Progress of one or several runs; a context manager.

    On a terminal: a bar for all runs, one for the current part of a run (an epoch, or the steps until the next
    evaluation), the run's speed and the time that is left of it, and the last value of every rule. Elsewhere: one line
    a part.

    Args:
        console: Where to; None shows nothing.
        runs: The number of runs to come.
        measured_on: The data that models are evaluated on, ``"test"`` or ``"validation"``, until a run says which.
    """

    def __init__(self, console: Console | None, runs: int = 1, measured_on: str = "test") -> None:
        self._console, self._runs, self._measured_on = console, runs, measured_on
        self._metric, self._length = CLASSIFICATION.metric, Length(1)
        self._finished, self._last, self._title = 0, dict[str, float](), ""
        self._label, self._steps = "", 0
        self._samples, self._pace = CLASSIFICATION.samples, Pace()
        self._done, self._steps_done = 0, 0
        # It is drawn as a part of the picture below, never by itself.
        self._bars = Progress(
            # A label is no markup, be there brackets in it. On a narrow terminal it folds, so that numbers stay.
            TextColumn("{task.description}", markup=False, table_column=Column(overflow="fold")),
            BarColumn(),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            console=console,
        )
        self._all = self._bars.add_task("runs", total=runs)
        self._current = self._bars.add_task("", total=None, visible=False)
        self._live: AbstractContextManager[object] = nullcontext()
        if console is not None and console.is_terminal:
            self._live = Live(
                get_renderable=self._picture, console=console, refresh_per_second=_REFRESHES, transient=True
            )

    def __enter__(self) -> Display:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def begin(self, settings: RunSettings, steps: int, measured_on: str) -> None:
        """Show that a run begins; each of its parts has this many steps, and it is evaluated on this data."""
        self._measured_on = measured_on
        self._label, self._title = settings.label, f"{settings.label}, seed {settings.seed}"
        task = TASKS[settings.task]
        self._metric, self._length, self._steps = task.metric, settings.length, steps
        self._samples, self._pace = task.samples, Pace()

    def epoch_begins(self, done: int, *, resumed: bool, steps: int = 0) -> None:
        """Show that a part begins, after ``done`` others; ``resumed`` if an earlier process has done those.

        Args:
            done: The number of parts before it.
            resumed: True if an earlier process has done those, and the first steps of this one.
            steps: The number of those steps.
        """
        length = self._length
        if resumed:
            self._say(f"{self._title}: continued after {length.place(done, steps)}")
        title = f"{self._title}, {length.unit} {length.after(done + 1)}/{length.total}, step"
        self._bars.reset(self._current, total=self._steps, completed=steps, description=title, visible=True)
        self._done, self._steps_done = done, steps
        self._pace.begin_part()

    def step(self, samples: int = 0) -> None:
        """Show that a step is done, on so many samples; 0 if they are not counted."""
        self._steps_done += 1
        self._pace.step(samples)
        self._bars.advance(self._current)

    def epoch(self, record: dict[str, Any]) -> None:
        """Show that a part is done, with the results in ``record``."""
        metric, length = self._metric, self._length
        self._last[self._label] = value = record[f"eval_{metric.name}"]
        if self._console is not None and not self._console.is_terminal:
            self._say(
                f"{self._title}, {length.unit} {length.after(record['epoch'])}/{length.total}: "
                f"{self._measured_on} {metric.noun} {metric.show(value)}, training loss {record['train_loss']:.4f}, "
                f"{record['seconds']:.2f} s"
            )

    def finish(self, settings: RunSettings, record: dict[str, Any], *, known: bool) -> None:
        """Show that a run is done, or ``known`` from an earlier process."""
        metric = TASKS[settings.task].metric
        self._finished += 1
        self._last[record["label"]] = value = record[metric.name]
        self._bars.update(self._all, completed=self._finished)
        how = "finished before" if known else f"{record['seconds_per_epoch']:.2f} s for {settings.length.part}"
        self._say(
            f"[{self._finished}/{self._runs}] {record['label']}, seed {record['seed']}: "
            f"{self._measured_on} {metric.noun} {metric.show(value)} ({how})"
        )

    def _say(self, line: str) -> None:
        if self._console is not None:
            self._console.print(line)

    def _speed(self) -> str:
        """Return samples a second and the time that is left of the run, as far as they are known."""
        parts = self._length.parts - self._done
        speed, left = self._pace.samples_per_second, self._pace.left(parts * self._steps - self._steps_done, parts)
        shown = [] if speed is None else [f"{speed:,.0f} {self._samples}/s"]
        return ", ".join(shown + ([] if left is None else [f"{timedelta(seconds=round(left))} left"]))

    def _picture(self) -> Group:
        last = "   ".join(f"{label} {self._metric.show(value)}" for label, value in self._last.items())
        return Group(
            self._bars,
            Text(self._speed()),
            Text(f"last {self._measured_on} {self._metric.noun}:  {last}" if last else ""),
        )
