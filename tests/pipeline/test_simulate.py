"""The simulator against formulas derived by hand, and against schedules drawn on paper."""

import pytest

from bpfree.errors import OptionError
from bpfree.pipeline import StageTimes, Transfers, simulate, table


def by_name(*args, **kwargs):
    return {outcome.schedule: outcome for outcome in simulate(*args, **kwargs)}


@pytest.mark.parametrize("S", [1, 3, 8])
@pytest.mark.parametrize("M", [1, 8, 13])
@pytest.mark.parametrize("times", [(1, 1, 1), (2, 3, 1), (1, 2, 3)])
def test_equal_stages_take_what_the_formulas_say(S, M, times):
    F, B, W = times
    found = by_name([StageTimes(F, B, W)] * S, M)
    # Filling and draining cost S - 1 passes of everything that travels; the last stage works M times in between.
    assert found["GPipe"].time == (M + S - 1) * (F + B + W)
    # Errors reach all stages at once: only the forward passes travel.
    local = (S - 1) * F + M * (F + W)
    assert found["direct, synchronous"].time >= local
    if S * F <= (S - 1) * (F + W):  # else stage 0 sends less than S micro-batches ahead of the first error's arrival
        assert found["direct, synchronous"].time == local
        if M >= S:  # else stages wait for the update before the last
            assert found["direct, asynchronous"].time == pytest.approx(M * (F + W))
    if M >= S:
        assert found["1F1B"].time == (M + S - 1) * (F + B + W)
    if M >= S and F == B == W:  # Qi et al. 2024, table 1: the bubble of ZB-H1 is (S - 1)(F + B - W)
        assert found["ZB-H1"].time == M * (F + B + W) + (S - 1) * (F + B - W)


def test_eight_stages_and_eight_micro_batches():
    assert [one.time for one in simulate([StageTimes()] * 8, 8)] == [45, 45, 31, 23, 16]


@pytest.mark.parametrize(("S", "M"), [(4, 4), (4, 9), (6, 2)])
def test_stored_activations(S, M):
    found = by_name([StageTimes()] * S, M)
    assert found["GPipe"].stored == M
    for schedule in ("1F1B", "ZB-H1", "direct, synchronous"):
        assert found[schedule].stored == min(S, M)
    # One batch may wait for its update beside the present one.
    assert found["direct, asynchronous"].stored == min(S, 2 * M)


@pytest.mark.parametrize("S", [1, 3, 8])
@pytest.mark.parametrize("M", [8, 13])
@pytest.mark.parametrize(("F", "W", "E"), [(1, 1, 1), (2, 3, 1), (3, 1, 2)])
def test_an_estimating_pass_takes_its_time_and_no_bubble(S, M, F, W, E):
    """Tangents travel in the shadow of the next forward pass: filling still costs S - 1 forward passes alone."""
    found = by_name([StageTimes(F, 1, W, estimate=E)] * S, M)
    plain = by_name([StageTimes(F, 1, W)] * S, M)
    assert found["direct, synchronous"].time == (S - 1) * F + M * (F + E + W)
    assert found["direct, asynchronous"].time == pytest.approx(M * (F + E + W))
    assert found["GPipe"] == plain["GPipe"]


def test_an_estimating_pass_that_takes_longer_fills_the_pipeline_longer():
    """F = 1, E = 3, W = 1: stage 0 has F 0-1, E 1-4; stage 1 F 1-2, E 4-7, W 7-8; stage 0 learns 7-8 beside it."""
    found = by_name([StageTimes(1, 1, 1, estimate=3)] * 2, 1)
    assert found["direct, synchronous"].time == 8
    late = by_name([StageTimes(1, 1, 1, estimate=3)] * 2, 1, Transfers(tangent=0.5, error=0.25))
    assert late["direct, synchronous"].time == 8.75


@pytest.mark.parametrize(
    ("S", "M", "E", "gains"),
    [
        (2, 4, 0, ["1.36", "1.50"]), (2, 4, 0.25, ["1.25", "1.36"]), (2, 4, 1, ["1.00", "1.07"]),
        (8, 8, 0, ["1.67", "2.25"]), (8, 8, 0.25, ["1.55", "2.05"]), (8, 8, 1, ["1.29", "1.61"]),
    ],
)  # fmt: skip
def test_alternating_cuts_on_paper(S, M, E, gains):
    """The table of docs/pipeline.md: with p = 2 half of the input gradients are formed."""
    lines = table(simulate([StageTimes(1, 1, 1, local=1.5, estimate=E)] * S, M))
    assert [line.split()[-1] for line in lines[-2:]] == gains


def test_no_staleness_is_the_synchronous_schedule():
    found = by_name([StageTimes(2, 1, 3)] * 3, 5, staleness=0)
    assert found["direct, asynchronous"].time == pytest.approx(found["direct, synchronous"].time)


def test_transfers_delay_what_travels():
    S, M = 4, 6
    found = by_name([StageTimes()] * S, M, Transfers(activation=0.5, gradient=0.25))
    assert found["GPipe"].time == (M + S - 1) * 3 + (S - 1) * (0.5 + 0.25)
    # The last stage has its own error at once; a late error delays the others' ends alone.
    late = by_name([StageTimes()] * S, M, Transfers(error=10.0))["direct, synchronous"].time
    assert late > by_name([StageTimes()] * S, M)["direct, synchronous"].time


def test_two_unequal_stages_drawn_on_paper():
    """Stage 0 has F=1, B=2, W=1; stage 1 F=2, B=1, W=1; two micro-batches."""
    found = by_name([StageTimes(1, 2, 1), StageTimes(2, 1, 1)], 2)
    # Stage 1: F 1-3, 3-5, B+W 5-7, 7-9; stage 0's last backward pass 10-13.
    assert found["GPipe"].time == 13
    # Stage 1: F 1-3, B+W 3-5, F 5-7, B+W 7-9; stage 0's last backward pass 9-12.
    assert found["1F1B"].time == 12
    # Stage 1: F 1-3, W 3-4, F 4-6, W 6-7; stage 0 learns from the second error 6-7.
    assert found["direct, synchronous"].time == 7
    assert found["direct, synchronous"].bubble == pytest.approx(1 - (2 * 2 + 2 * 3) / 14)


def test_local_time_replaces_the_weight_gradient():
    assert by_name([StageTimes(1, 1, 1, local=2)] * 2, 3)["direct, synchronous"].time == 1 + 3 * 3


def test_a_thousand_stages():
    found = by_name([StageTimes()] * 1024, 16)
    assert found["GPipe"].time == (16 + 1023) * 3
    assert found["direct, synchronous"].time == 1023 + 16 * 2


def test_the_table_compares_with_the_first_row():
    lines = table(simulate([StageTimes()] * 8, 8))
    assert lines[0].split()[-1] == "GPipe"
    assert lines[-1].split()[-1] == "2.81"


@pytest.mark.parametrize(("times", "M", "staleness"), [([], 1, 1), ([StageTimes()], 0, 1), ([StageTimes()], 1, -1)])
def test_what_means_nothing_is_refused(times, M, staleness):
    with pytest.raises(OptionError, match="staleness counts updates from 0"):
        simulate(times, M, staleness=staleness)
