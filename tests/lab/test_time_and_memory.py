"""The measures, on subjects whose memory and time are known."""

from __future__ import annotations

import time

import pytest
import torch

from bpfree.lab.errors import SettingsError
from bpfree.lab.time_and_memory import input_share, paired_ratio, peak_bytes, stored_bytes

MIB = 2**20


def block(mib: int) -> torch.Tensor:
    return torch.empty(mib * MIB, dtype=torch.uint8)


def test_peak_of_known_blocks() -> None:
    def step() -> None:
        first, second, third = block(4), block(8), block(2)  # 14 held
        del second  # 6
        fourth = block(6)  # 12
        del first, third, fourth

    assert peak_bytes(step) == 14 * MIB


def test_peak_at_the_end_counts_what_is_returned() -> None:
    def step() -> list[torch.Tensor]:
        kept = [block(4), block(8), block(2)]
        del kept[1]
        kept += [block(5), block(6)]  # 4 + 2 + 5 + 6
        return kept

    assert peak_bytes(step) == 17 * MIB


def test_peak_is_counted_above_what_was_there() -> None:
    before = block(50)
    assert peak_bytes(lambda: block(3)) == 3 * MIB
    assert len(before) == 50 * MIB
    assert peak_bytes(lambda: None) == 0


def test_peak_includes_the_backward_pass() -> None:
    x = torch.ones(MIB // 4, requires_grad=True)  # 1 MiB

    def step() -> None:
        x.grad = None
        # Held together: x*x (1), its exp (1, saved), then the gradients on the way back.
        (x * x).exp().sum().backward()

    assert peak_bytes(step) >= 3 * MIB


def test_what_a_module_stores() -> None:
    module = torch.nn.Linear(3, 2)  # 8 float32
    module.register_buffer("kept", torch.zeros(5, dtype=torch.uint8))
    module.extra = torch.zeros(9)  # neither parameter nor buffer
    assert stored_bytes(module) == 8 * 4 + 5


def test_ratio_of_known_waits() -> None:
    calls: list[str] = []

    def wait(name: str, seconds: float) -> None:
        calls.append(name)
        time.sleep(seconds)

    ratio = paired_ratio(lambda: wait("a", 0.02), lambda: wait("b", 0.01), repeats=5, warmup=1)
    # Sleeping never takes less than asked; on a busy machine it takes more, of both.
    assert ratio.lower <= ratio.median <= ratio.upper
    assert ratio.subject_seconds >= 0.02
    assert ratio.reference_seconds >= 0.01
    assert ratio.pairs == 5
    # One warm-up of each, and then the two take turns in going first.
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab" + "ba" + "ab"


def test_ratio_is_taken_within_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    # The reference takes 1, 2, 4, 8 and the subject twice, thrice, twice, thrice as long: ratios 2, 3, 2, 3.
    times = {"subject": iter([2.0, 6.0, 8.0, 24.0]), "reference": iter([1.0, 2.0, 4.0, 8.0])}
    monkeypatch.setattr("bpfree.lab.time_and_memory.seconds", lambda call, synchronize: next(times[call()]))
    ratio = paired_ratio(lambda: "subject", lambda: "reference", repeats=4, warmup=0)
    assert (ratio.lower, ratio.median, ratio.upper) == (2.0, 2.5, 3.0)
    assert (ratio.subject_seconds, ratio.reference_seconds) == (7.0, 3.0)


def test_one_pair_has_no_spread() -> None:
    with pytest.raises(SettingsError, match="at least 2"):
        paired_ratio(lambda: None, lambda: None, repeats=1)


def test_input_share_of_known_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("bpfree.lab.time_and_memory.time.perf_counter", lambda: clock[0])

    def loader():
        for batch in range(5):
            clock[0] += 1.0
            yield batch

    def step(batch: int) -> None:
        clock[0] += 3.0

    found = input_share(loader(), step, steps=4)
    assert (found.input_seconds, found.step_seconds, found.share) == (1.0, 3.0, 0.25)
    with pytest.raises(SettingsError, match="no batch"):
        input_share([], step)
