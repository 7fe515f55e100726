"""Alignment by layer and by kind of tap."""

from __future__ import annotations

import pytest

from bpfree.lab.report import alignment
from bpfree.lab.report.alignment_kinds import by_layer, kind_and_layer, over_training, table


@pytest.mark.parametrize(
    ("tap", "kind", "layer"),
    [
        ("blocks.0.tap", "tap", 1),
        ("blocks.11.attention.value_tap", "attention.value_tap", 12),
        ("blocks.2.feed_forward.0", "feed_forward.0", 3),
        ("transformer.h.3", "transformer.h", 4),
        ("embedding_tap", "embedding_tap", None),
        ("conv1", "conv1", None),
        ("3", "layer", 4),
    ],
)
def test_a_name_says_kind_and_layer(tap: str, kind: str, layer: int | None) -> None:
    assert kind_and_layer(tap) == (kind, layer)


def entry(name: str, cosine: float | None) -> dict:
    return {"name": name, "cosine_mean": cosine, "norm_signal": 2.0}


FIRST = [entry("embedding_tap", 0.5), entry("blocks.0.in_tap", 0.2), entry("blocks.0.tap", 0.4),
         entry("blocks.1.in_tap", None), entry("blocks.1.tap", 1.0)]  # fmt: skip
LAST = [one | {"cosine_mean": 0.0} for one in FIRST]
RUN = {"epochs": [{"epoch": 1, "alignment": FIRST}, {"epoch": 2, "alignment": []}, {"epoch": 3, "alignment": LAST}]}


def test_numbers_stand_by_kind_and_layer() -> None:
    """A tap without a valid cosine is left out; forward order stays."""
    assert by_layer(FIRST) == {"embedding_tap": {None: 0.5}, "in_tap": {1: 0.2}, "tap": {1: 0.4, 2: 1.0}}
    assert list(by_layer(FIRST)) == ["embedding_tap", "in_tap", "tap"]
    assert by_layer(FIRST, "norm_signal")["in_tap"] == {1: 2.0, 2: 2.0}
    assert by_layer([entry("blocks.0.tap", float("nan"))]) == {}
    kinds = over_training(RUN)
    assert kinds == {"embedding_tap": {1: 0.5, 3: 0.0}, "in_tap": {1: 0.2, 3: 0.0}, "tap": {1: 0.7, 3: 0.0}}
    assert over_training({}) == {}


def test_the_table_has_a_column_for_each_layer() -> None:
    lines = table(by_layer(FIRST), "layer").splitlines()
    assert lines[0].split("  ")[0] == "tap"
    assert [line.split() for line in lines[2:]] == [
        ["embedding_tap", "0.50"],
        ["in_tap", "0.20", "0.20"],
        ["tap", "0.40", "1.00", "0.70"],
    ]
    assert "evaluation 3" in table(over_training(RUN), "evaluation")


def test_a_layer_that_is_aligned_without_a_tap_is_not_called_one() -> None:
    """Cross layers are aligned at the one number of a row that their weights learn from."""
    titles = [alignment._title(name, [name]) for name in ("embedding_tap", "cross.layers.0.weight")]
    assert titles == ["Tap embedding_tap", "Layer cross.layers.0"]
    assert alignment._title("attention", ["blocks.0.attention", "blocks.1.attention"]) == "attention"
