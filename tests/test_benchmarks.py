"""The benchmarks run, on networks of no size, and write what benchmarks/README.md says. No time is looked at."""

import importlib
import json
import os
import re
import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
TINY = {
    "step": ["--nets", "2x8@4", "--only", "DFA", "streaming *", "BP, checkpointed", "--pairs", "2"],
    "memory": [
        "--depths",
        "2",
        "3",
        "--width",
        "8",
        "--batch",
        "4",
        "--time-depth",
        "2",
        "--pairs",
        "2",
        "--only",
        "BP",
        "streaming DFA*",
    ],
    "scaling": [
        "--base",
        "2x8@4",
        "--axes",
        "depth",
        "classes",
        "--sizes",
        "2",
        "3",
        "--seconds",
        "0.01",
        "--only",
        "DFA",
        "FDFA*",
    ],
    "transformer": [
        *("--blocks", "2", "--width", "8", "--heads", "2", "--hidden", "8", "--vocabulary", "20"),
        *("--tokens", "6", "--sequences", "2", "--pairs", "2", "--only", "DFA, m*", "DFA, local, fixed"),
    ],
    "rendering": ["--rays", "64", "--pairs", "2", "--only", "DFA", "memory", "plain*"],
}
KEPT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "MALLOC_MMAP_THRESHOLD_": "68719476736",
    "MALLOC_TRIM_THRESHOLD_": "68719476736",
    "MALLOC_TOP_PAD_": "1073741824",
}
IDENTITY = ("axis", "net", "subject", "reference")
TIME = {"median", "lower", "upper", "subject_seconds", "reference_seconds", "pairs"}


def run(script, *options):
    """Run a script in this process: torch is loaded here already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{script}.py", *map(str, options)])
        patch.syspath_prepend(FOLDER)
        for name, value in KEPT.items():  # without them it would start itself again
            patch.setenv(name, value)
        runpy.run_path(str(FOLDER / f"{script}.py"), run_name="__main__")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the scripts write."""
    found = tmp_path_factory.mktemp("results")
    for name, options in TINY.items():
        run(name, *options, "--threads", 1, "--out", found / f"{name}.json")
    return found


@pytest.fixture
def rows(folder, request):
    """The rows of one file; of which run they are is checked."""
    content = json.loads((folder / f"{request.param}.json").read_text())
    for run in content["runs"]:
        assert run["command"].startswith(f"python benchmarks/{request.param}.py")
        assert {"date", "commit", "environment"} <= set(run)
        assert {name: run["environment"][name] for name in KEPT} == KEPT
    assert {row["run"] for row in content["rows"]} == set(range(len(content["runs"])))
    identities = [tuple(row.get(key) for key in IDENTITY) for row in content["rows"]]
    assert len(set(identities)) == len(identities)
    return content["rows"]


@pytest.mark.parametrize("rows", ["step"], indirect=True)
def test_step(rows):
    assert [row["subject"] for row in rows] == ["DFA", "streaming DFA", "streaming DRTP", "BP, checkpointed"]
    for row in rows:
        assert (row["net"], row["reference"]) == ("2 x 8, batch 4", "BP")
        assert set(row["time"]) == TIME
        assert row["time"]["pairs"] == 2
        assert min(row["flops_ratio"], row["peak_bytes"], row["peak_bytes_reference"]) > 0
        assert row["python_calls"] > row["python_calls_reference"] > 0
    assert rows[-1]["segments"] == 2


@pytest.mark.parametrize("rows", ["transformer"], indirect=True)
def test_transformer(rows):
    assert [row["subject"] for row in rows] == ["DFA, macro, standard", "DFA, micro, standard", "DFA, local, fixed"]
    for row in rows:
        assert row["net"] == "2 blocks of 8, 2 x 6 of 20 tokens"
        assert row["reference"] == f"BP, {row['subject'].rpartition(', ')[2]}"
        assert set(row["time"]) == TIME
        assert row["tokens"] == 12
    work = {row["subject"]: row["flops_ratio"] for row in rows}
    # Signals that pass no weight save their products: more of them, the smaller the segments.
    assert 1 > work["DFA, macro, standard"] > work["DFA, micro, standard"] > work["DFA, local, fixed"]


@pytest.mark.parametrize("rows", ["rendering"], indirect=True)
def test_rendering(rows):
    named = {(row["net"], row["subject"], row["reference"]): row for row in rows}
    assert len(named) == 8
    for net in ("8 x 256", "4 x 128"):
        # No gradient passes through the 256 or 128 columns of a layer's weights.
        assert 2 / 3 < named[net, "DFA", "BP"]["flops_ratio"] < 0.85
    large = "XL: 8 x 256 and 8 x 512"
    streamed, kept = (named[large, f"memory, {way}", "BP"] for way in ("streaming DFA", "DFA"))
    assert streamed["activation_bytes"] < 0.5 * streamed["activation_bytes_reference"] < kept["activation_bytes"]
    for lab in ("lab by BP", "lab by BP, in 16 parts", "lab by DFA", "lab by DFA, in 16 parts"):
        assert set(named["two of 4 x 128", "plain loop by BP", lab]["time"]) == TIME


@pytest.mark.parametrize("rows", ["memory"], indirect=True)
def test_memory(rows):
    counted, timed = ([row for row in rows if bool(row.get("time")) == is_time] for is_time in (False, True))
    gradients = {(row["depth"], row["subject"]): row["gradient_bytes"] for row in counted}
    layer, output = 4 * (8 * 8 + 8), 4 * (8 * 10 + 10)
    for depth in (2, 3):  # all gradients of 32 bit numbers, or the largest of one parameter
        assert gradients[depth, "BP"] == gradients[depth, "streaming DFA"] == depth * layer + output
        assert gradients[depth, "streaming DFA, optimizer in backward"] < layer + output
    assert all(row["activation_bytes"] <= row["peak_bytes"] for row in counted)
    assert {row["reference"] for row in timed} == {"BP", "BP, checkpointed", "BP, optimizer in backward"}
    assert all(set(row["time"]) == TIME for row in timed)


@pytest.mark.parametrize("rows", ["scaling"], indirect=True)
def test_scaling(rows):
    assert {(row["axis"], row[row["axis"]]) for row in rows} == {(a, n) for a in ("depth", "classes") for n in (2, 3)}
    assert {row["subject"] for row in rows} == {"DFA", "FDFA, every=4"}
    for row in rows:
        assert set(row["time"]) == TIME
        assert min(row["peak_bytes"], row["peak_bytes_reference"]) > 0


def test_a_script_starts_itself_again_with_memory_kept(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    from common import script

    asked = []
    monkeypatch.setattr(os, "execve", lambda *arguments: asked.append(arguments))
    monkeypatch.setattr(sys, "argv", ["step.py", "--pairs", "2"])
    for name in KEPT:
        monkeypatch.delenv(name, raising=False)
    script.keep_memory()
    ((program, arguments, environment),) = asked
    assert (program, arguments) == (sys.executable, [sys.executable, "step.py", "--pairs", "2"])
    assert KEPT.items() <= environment.items()
    for name, value in KEPT.items():
        monkeypatch.setenv(name, value)
    script.keep_memory()
    assert len(asked) == 1


def test_a_part_measured_again_takes_its_place(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    from common import results

    path = tmp_path / "some.json"
    first, second = {"command": "first"}, {"command": "second"}
    for number, (run, subject) in enumerate([(first, "DFA"), (first, "FA"), (second, "DFA"), (second, "DRTP")]):
        results.write(path, run, [{"net": "small", "subject": subject, "number": number}])
    content = json.loads(path.read_text())
    assert content["runs"] == [first, second]
    assert [(row["subject"], row["number"], row["run"]) for row in content["rows"]] == [
        ("DFA", 2, 1),
        ("FA", 1, 0),
        ("DRTP", 3, 1),
    ]
    results.write(path, second, [{"net": "small", "subject": "FA", "number": 4}])
    assert json.loads(path.read_text())["runs"] == [second]


def test_the_page_holds_everything(folder):
    pytest.importorskip("vl_convert")
    run("page", "--results", folder)
    page = (folder / "index.html").read_text()
    assert page.count("<svg") > page.count("<figure>") >= 1 + 3 + 4
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert "streaming DFA" in page
    assert "depth 3 ÷ depth 2" in page


def test_the_committed_results_are_whole_and_the_docs_name_their_count(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    measured, targets = (importlib.import_module(f"plots.{name}") for name in ("measured", "targets"))
    found = [target.met for target in targets.targets(measured.Measured.of(FOLDER / "results"))]
    assert None not in found
    kept, known = sum(found), len(found)
    assert f"{kept} of {known} targets are met" in (FOLDER.parent / "docs" / "speed.md").read_text()
    assert f"Of {known} targets {kept} are kept." in (FOLDER / "README.md").read_text()
