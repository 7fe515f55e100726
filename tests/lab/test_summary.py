"""One line a rule, against numbers worked out by hand."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console
from rich.table import Table

from bpfree.lab.display.terminal_table import table
from bpfree.lab.summary import deviation, mean_cosine, recovery, summarize
from bpfree.lab.tasks import LANGUAGE


def tap(name: str, cosine: float | None, valid: int = 10) -> dict:
    return {"name": name, "cosine_mean": cosine, "n_valid": valid}


def run(label: str, seed: int, accuracy: float, seconds: float, memory: int, cosines: list[dict]) -> dict:
    return {
        "label": label,
        "seed": seed,
        "accuracy": accuracy,
        "seconds_per_epoch": seconds,
        "peak_memory_bytes": memory,
        "feedback_bytes": 2 * memory,
        "epochs": [{"alignment": [tap("a", 0.9)]}, {"alignment": cosines}],
    }


RUNS = [
    run("BP", 0, 98.0, 10.0, 100, [tap("a", 1.0), tap("b", 1.0)]),
    run("DFA", 0, 95.0, 6.0, 90, [tap("a", 0.2), tap("b", 0.5)]),
    run("Shallow", 0, 90.0, 3.0, 20, [tap("a", None, 0), tap("b", math.nan, 0)]),
    run("BP", 1, 96.0, 20.0, 100, [tap("a", 1.0), tap("b", 1.0)]),
    run("DFA", 1, 97.0, 16.0, 110, [tap("a", 0.4), tap("b", math.nan, 0)]),
    run("Shallow", 1, 92.0, 4.0, 20, [tap("a", None, 0), tap("b", None, 0)]),
]


def test_summary_of_known_runs() -> None:
    bp, dfa, shallow = summarize(RUNS, ["BP", "DFA", "Shallow"])
    # (95 + 97) / 2 = 96 and ((95-96)^2 + (97-96)^2) / (2-1) = 2
    assert dfa["accuracy_mean"] == 96.0
    assert dfa["accuracy_std"] == pytest.approx(math.sqrt(2))
    # (96 - 91) / (97 - 91)
    assert dfa["recovery"] == pytest.approx(5 / 6)
    # Ratios of the same seed, 6/10 and 16/20: their median is 0.7; of the medians it would be 11/15.
    assert dfa["time_relative_to_bp"] == pytest.approx(0.7)
    assert dfa["seconds_per_epoch"] == 11.0
    assert dfa["peak_memory_bytes"] == 100
    assert dfa["feedback_bytes"] == 200
    assert dfa["seeds"] == 2
    assert [entry["name"] for entry in dfa["alignment"]] == ["a", "b"]
    assert [entry["cosine_mean"] for entry in dfa["alignment"]] == pytest.approx([0.3, 0.5])
    assert (bp["recovery"], shallow["recovery"]) == (1.0, 0.0)
    assert bp["time_relative_to_bp"] == 1.0
    assert [entry["cosine_mean"] for entry in shallow["alignment"]] == [None, None]


def test_without_references_there_is_no_ratio() -> None:
    (dfa,) = summarize([entry for entry in RUNS if entry["label"] == "DFA"], ["DFA", "FA"])
    assert dfa["recovery"] is None
    assert dfa["time_relative_to_bp"] is None


def test_the_order_is_that_of_the_labels() -> None:
    assert [entry["label"] for entry in summarize(RUNS, ["Shallow", "BP"])] == ["Shallow", "BP"]


@pytest.mark.parametrize("diverged", [None, math.inf])
def test_a_seed_that_diverged_leaves_no_mean_of_the_others(diverged: float | None) -> None:
    runs = [{**entry, "perplexity": entry["accuracy"]} for entry in RUNS]
    runs[4]["perplexity"] = diverged  # DFA, seed 1
    bp, dfa, shallow = summarize(runs, ["BP", "DFA", "Shallow"], LANGUAGE.metric)
    assert (dfa["perplexity_mean"], dfa["perplexity_std"], dfa["recovery"], dfa["seeds"]) == (None, None, None, 2)
    assert (bp["perplexity_mean"], shallow["perplexity_mean"]) == (97.0, 91.0)


def test_numbers_beside_the_metric_are_means_where_every_run_has_them() -> None:
    runs = [{**entry, "perplexity": entry["accuracy"], "word_perplexity": 10 * entry["accuracy"]} for entry in RUNS]
    del runs[4]["word_perplexity"]  # DFA, seed 1
    bp, dfa, _ = summarize(runs, ["BP", "DFA", "Shallow"], LANGUAGE.metric, LANGUAGE.beside)
    assert (bp["word_perplexity_mean"], bp["word_perplexity_std"]) == (970.0, pytest.approx(math.sqrt(200)))
    assert "word_perplexity_mean" not in dfa
    headings = [column[0] for column in cells([bp, dfa], "language")]
    assert headings[1:4] == ["test\nperplexity", "word\nperplexity", "recovery"]
    assert cells([bp, dfa], "language")[2][1:] == ["970.00 ± 14.14", "-"]
    assert "word\nperplexity" not in [column[0] for column in cells([dfa], "language")]


def shown(summary: list[dict], task: str) -> Table:
    """The table of these rules."""
    rest = {"recovery": None, "time_relative_to_bp": None, "seconds_per_epoch": 1.0}
    rest |= {"peak_memory_bytes": 2**20, "feedback_bytes": 2**20}
    settings = {"epochs": 3, "measured_on": "test"}
    data = {"name": "made up", "n_eval": 10}
    return table({"task": task, "settings": settings, "data": data, "summary": [rest | entry for entry in summary]})


def cells(summary: list[dict], task: str) -> list[list[str]]:
    """The table's cells, column by column, each below its heading."""
    found = shown(summary, task)
    return [[str(column.header), *column.cells] for column in found.columns]


def test_numbers_have_the_digits_of_their_metric() -> None:
    summary = [
        {"label": "BP", "auc_mean": 0.9184, "auc_std": 0.0123, "alignment": []},
        {"label": "DFA", "auc_mean": 0.9151, "auc_std": None, "alignment": []},
    ]
    assert cells(summary, "links")[1] == ["test\nauc", "0.918 ± 0.012", "0.915"]
    of_images = [{**entry, "accuracy_mean": 91.84, "accuracy_std": 1.23} for entry in summary]
    assert cells(of_images, "classification")[1] == ["test\n%", "91.84 ± 1.23", "91.84 ± 1.23"]


def test_a_cosine_stands_at_its_tap_whichever_others_a_rule_has() -> None:
    taps = {"DFA": {"a": 0.1, "b": None, "c": 0.3}, "top": {"c": 0.4}, "Shallow": {}, "other": {"d": 0.5}}
    summary = [
        {"label": label, "accuracy_mean": 1.0, "accuracy_std": None}
        | {"alignment": [{"name": name, "cosine_mean": cosine} for name, cosine in found.items()]}
        for label, found in taps.items()
    ]
    assert cells(summary, "classification")[3] == [
        "cosine at a b c d", "0.10 - 0.30 -", "- - 0.40 -", "-", "- - - 0.50",
    ]  # fmt: skip


def test_every_number_is_whole_on_80_columns() -> None:
    summary = [
        {"label": f"{label}, error at the logits", "accuracy_mean": 97.12, "accuracy_std": 10.55, "recovery": -0.25}
        | {"alignment": [{"name": name, "cosine_mean": -0.125} for name in ("block.1", "block.2", "block.3")]}
        | {"seconds_per_epoch": 1234.56, "time_relative_to_bp": 10.25, "peak_memory_bytes": 1500 * 2**20}
        for label in ("BP", "DFA")
    ]
    console = Console(file=io.StringIO(), width=80, markup=False, highlight=False)
    console.print(shown(summary, "classification"))
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    for number in ("97.12 ± 10.55", "-0.25", "-0.12", "1234.56", "10.25", "1500.0", "1.00"):
        assert f" {number} " in text, number
    assert text.count(" -0.12 ") == 6


def test_limits() -> None:
    assert mean_cosine([tap("a", 0.25), tap("b", math.nan, 0), tap("c", 0.75)]) == 0.5
    assert mean_cosine([tap("a", None, 0)]) is None
    assert mean_cosine([]) is None
    assert deviation([3.0]) is None
    assert recovery(1.0, 2.0, 2.0) is None
    assert recovery(50.0, 98.0, 90.0) == -5.0
