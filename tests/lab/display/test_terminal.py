"""What is seen of runs on a terminal."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from bpfree.lab.display.pace import Pace
from bpfree.lab.display.terminal import Display
from bpfree.lab.running.runs import run
from support import tiny_lab, tiny_text


def seen(label: str, width: int) -> str:
    """All that was drawn of a run in its third of four parts, after 7 of 468 steps, without control codes."""
    console = Console(
        file=io.StringIO(), force_terminal=True, markup=False, highlight=False, color_system=None, width=width
    )
    display = Display(console, runs=12)
    with display:
        display.begin(replace(tiny_lab.settings(), label=label), 468, "test")
        display.epoch_begins(2, resumed=False)
        for _ in range(7):
            display.step()
    return console.file.getvalue()


@pytest.mark.parametrize("name", ["DFA [w=2]", "DFA [/w2]", "[bold]", "[/]"])
def test_a_label_may_have_brackets(name: str) -> None:
    assert f"{name}, seed 0, epoch 3/4, step" in seen(name, 120)


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", ["DFA", "DFA, all layers, spread 2, without bias"])
def test_counters_are_whole_however_narrow_the_terminal(name: str, width: int) -> None:
    text = seen(name, width)
    assert "7/468 " in text
    assert "0/12 " in text
    assert "0:00:00" in text


def drawn(steps: list[int], clock: list[float], task: str = "language") -> str:
    """What is drawn in the second of three parts of 100 steps, after steps on so many samples at these times."""
    times = iter(clock)
    display = Display(None)
    settings = tiny_lab.settings(task=task, epochs=3, steps=300)
    display.begin(settings, 100, "test")
    display._pace = Pace(lambda: next(times))
    display.epoch_begins(1, resumed=True, steps=40)
    for samples in steps:
        display.step(samples)
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(display._picture())
    return console.file.getvalue()


def test_speed_and_the_time_that_is_left_are_those_of_the_last_steps() -> None:
    # Two steps of 4,096 tokens in half a second each; 58 + 100 are left.
    assert "8,192 tokens/s, 0:01:19 left" in drawn([4096, 4096], [7.0, 7.5, 8.0])
    # Without a step there is none, nor where samples are not counted.
    assert "/s" not in drawn([], [7.0])
    graph = drawn([0], [7.0, 9.0], "graphs")
    assert "nodes/s" not in graph
    assert "0:05:18 left" in graph


def test_only_the_last_steps_count_and_evaluations_are_added() -> None:
    now = [0.0]
    pace = Pace(lambda: now[0])
    pace.begin_part()
    assert pace.samples_per_second is None
    assert pace.left(10, 1) is None
    for taken in [100.0] * 10 + [2.0] * 60:
        now[0] += taken
        pace.step(10)
    assert pace.samples_per_second == pytest.approx(5)
    assert pace.left(30, 1) == pytest.approx(60)
    now[0] += 25  # an evaluation
    pace.begin_part()
    assert pace.left(30, 1) is None
    now[0] += 3
    pace.step(10)
    assert pace.left(30, 2) == pytest.approx(30 * 3 + 2 * 25)


def test_nothing_of_it_is_written_where_there_is_no_terminal(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=160)
    with Display(console) as display:
        run(tiny_lab.settings(epochs=1), tiny_lab.splits(), tmp_path, display=display)
    (line,) = console.file.getvalue().splitlines()
    assert line.startswith("DFA, seed 0, epoch 1/1: test accuracy")
    assert "left" not in line


def test_a_run_says_what_it_is_evaluated_on(tmp_path: Path) -> None:
    """A table's runs have displays that do not know their data."""
    console = Console(file=io.StringIO(), width=160)
    with Display(console) as display:
        run(tiny_text.settings(epochs=1, steps=2), tiny_text.text(tmp_path / "text"), tmp_path, display=display)
    assert "step 2/2: validation perplexity" in console.file.getvalue()


def test_images_and_tokens_are_counted(tmp_path: Path) -> None:
    class Counting(Display):
        seen = 0

        def step(self, samples: int = 0) -> None:
            self.seen += samples

    display = Counting(None)
    run(tiny_lab.settings(epochs=1), tiny_lab.splits(), tmp_path, display=display)
    assert display.seen == 240
    display = Counting(None)
    run(tiny_text.settings(epochs=1, steps=2), tiny_text.text(tmp_path / "text"), tmp_path, display=display)
    assert display.seen == 2 * 8 * 16
