"""A small form of the long trials in ``tests/disturbances``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator

import pytest
import torch

from disturbances import interrupts, threads
from disturbances.nets import NETS, VARIANTS

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _threads_take_turns() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("variant", ["DFA, streaming", "GrAPE", "LMS", "PEPITA", "ForwardGradient, weights"])
def test_an_evaluation_beside_training_changes_nothing_and_is_not_changed(variant: str) -> None:
    found = threads.disturbed(VARIANTS[variant], NETS["headed"], 20)
    assert found["training as alone"] == 2
    assert found["evaluation as alone"] >= 20
    assert set(found) == set(threads.GOOD)


@pytest.mark.parametrize("names", [("GrAPE", "LMS"), ("FDFA", "ForwardGradient, weights")])
def test_two_models_with_estimating_rules_train_in_two_threads(names: tuple[str, str]) -> None:
    assert threads.pair(names, (NETS["plain"], NETS["recurrent"]), 20) == {"training as alone": 2}


@pytest.mark.parametrize("variant", ["DFA, streaming", "GrAPE", "KolenPollack", "DRTP", "ForwardGradient, weights"])
def test_training_goes_on_as_in_a_fresh_process_behind_an_interrupt(variant: str) -> None:
    name = ("plain", variant)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        found = interrupts.interrupt(name, 4, interrupts.alone([name])[0])
    finally:
        signal.signal(signal.SIGINT, before)
    assert found["interrupted"] == 4
    assert set(found) <= set(interrupts.GOOD)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_pass_enters_autocast_by_itself(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt in it could leave its count too high, and every later autocast would train with old weights."""
    entered: list[object] = []
    enter = torch.autocast.__enter__
    monkeypatch.setattr(torch.autocast, "__enter__", lambda context: entered.append(context) or enter(context))
    interrupts.Training("plain", variant).run()
    assert not entered
