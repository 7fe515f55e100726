"""What is seen of runs on a terminal."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from bpfree.lab.terminal import Display
from support import tiny_lab


def seen(label: str, width: int) -> str:
    """All that was drawn of a run in its third of four parts, after 7 of 468 steps, without control codes."""
    console = Console(
        file=io.StringIO(), force_terminal=True, markup=False, highlight=False, color_system=None, width=width
    )
    display = Display(console, runs=12)
    with display:
        display.begin(replace(tiny_lab.settings(), label=label), 468)
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
