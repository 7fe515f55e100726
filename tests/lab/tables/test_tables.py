"""Tables: what is missing is run, once, whoever is killed on the way."""

from __future__ import annotations

import html
import io
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from rich.console import Console

from bpfree.lab import data
from bpfree.lab.cli import main
from bpfree.lab.data.samples import PUBLISHED
from bpfree.lab.errors import DamageError, DataError, LedgerError, RunError, SettingsError, WriteError
from bpfree.lab.queue import processes, storage
from bpfree.lab.queue.attempts import GIVEN_BACK
from bpfree.lab.queue.ledger import Claim, Ledger
from bpfree.lab.queue.record_attributes import RECORD
from bpfree.lab.recipe.reading import read
from bpfree.lab.tables import markdown, provenance, recipe_page, result, run_data, table_runs, workers
from bpfree.lab.tables.cells import plan, works
from bpfree.lab.tables.command_options import ReportOptions, TableOptions
from bpfree.lab.tables.table import table
from bpfree.lab.tables.work import Training
from support import tiny_lab, tiny_scene, tiny_table, tiny_text
from support.interrupted_runs import Interrupting

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def tiny_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.DATA_SETS, "tiny", lambda folder: tiny_lab.splits())
    monkeypatch.chdir(tmp_path)
    # Children know the tiny data if they are copies of this process.
    monkeypatch.setattr(processes, "METHOD", "fork")
    monkeypatch.setattr(workers, "_POLL", 0.1)
    tiny_table.write(tmp_path)


def options(**changes: Any) -> TableOptions:
    return TableOptions(**({"name": "tiny.yaml"} | changes))


def timeless(document: dict[str, Any]) -> dict[str, str]:
    return {record["key"]: tiny_table.timeless(record) for record in document["records"]}


def attempts(ledger: str = "runs/ledger.db") -> Counter[tuple[str, str]]:
    """How often a run is in a state, by the run's name and the state's."""
    opened = storage.open_storage(ledger)
    trials = [trial for study in opened.get_all_studies() for trial in opened.get_all_trials(study._study_id)]
    return Counter((f"{t.user_attrs['label']} {t.user_attrs['seed']}", t.state.name) for t in trials)


ONCE = {(f"{row} {seed}", "COMPLETE"): 1 for row in ("DFA", "sum", "BP") for seed in (0, 1)}


def test_a_table_from_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    document = table(options(), Console(file=text, width=160))
    assert result.of_format(Path("results/tiny.json"), result.FORMAT) == json.loads(json.dumps(document))
    records = {(record["label"], record["seed"]): record for record in document["records"]}
    assert len(records) == 6
    (dfa, *_), bp = document["tables"]["full"], document["tables"]["full"][8]
    accuracies = [records["DFA", seed]["epochs"][-1]["eval_accuracy"] for seed in (0, 1)]
    assert dfa["mean"] == pytest.approx(sum(accuracies) / 2)
    assert dfa["std"] == pytest.approx(abs(accuracies[0] - accuracies[1]) / 2**0.5)
    assert (dfa["paper"], dfa["paper_std"], dfa["seeds"], dfa["within"]) == (50, 1.5, 2, True)
    cells = {(entry["row"], entry["column"]): entry for entry in document["tables"]["full"]}
    assert cells["DFA", "cosine 1"]["within"] is False
    assert cells["BP", "cosine 1"]["mean"] == pytest.approx(1)
    assert (bp["row"], bp["within"], cells["sum", "accuracy"]["within"]) == ("BP", True, None)
    record = records["DFA", 0]
    assert record["code"]["source"] == provenance.source()
    assert record["data"]["checksums"] == {"made up": "0"}
    assert {"settings", "environment", "duration", "finished"} <= set(record)
    page = Path("results/RESULTS.md").read_text()
    assert "`bpfree table tiny.yaml`" in page
    assert "|  | accuracy<br>± 100 | training | cosine 1<br>± 0 | cosine 2 | seeds |" in page
    assert "accuracy (± 100)" in text.getvalue()
    for shown in (text.getvalue(), html.unescape(page)):
        assert "50.00 ± 1.50" in shown
        assert "The pictures are <made up>." in shown
    # Asked again it costs nothing; at another scale it is another table.
    monkeypatch.setattr(Training, "perform", lambda *_: pytest.fail("it ran again"))
    assert table(options()) == table(options(seeds=1, cell=["DFA/accuracy"])) == document


def test_a_part_of_a_table_and_another_scale() -> None:
    first = table(options(cell=["BP/accuracy"], seeds=1))
    assert [(record["label"], record["seed"]) for record in first["records"]] == [("BP", 0)]
    both = table(options(scale="reduced", cell=["BP", "DFA"]))
    assert set(both["tables"]) == {"full", "reduced"}
    assert {len(record["epochs"]) for record in both["records"]} == {1, 3}
    text = Path("results/RESULTS.md").read_text()
    assert "Scale: reduced (1 of 3 epochs)" in text
    # Shortened runs neither agree nor disagree with the paper's numbers.
    whole, short = ({entry["within"] for entry in both["tables"][name]} for name in ("full", "reduced"))
    assert whole >= {True}
    assert short == {None}
    assert "± 100" not in text.partition("Scale: reduced")[2]


def test_the_same_numbers_again_in_an_empty_ledger() -> None:
    first = table(options(seeds=1))
    again = table(options(seeds=1, ledger="runs/other.db", out="other"))
    assert timeless(again) != {}
    # The checkpoints and files of the first are there no more: it was all computed anew.
    assert timeless(again) == timeless(first)


def test_results_of_another_machine_count(monkeypatch: pytest.MonkeyPatch) -> None:
    document = table(options(seeds=1))
    monkeypatch.setattr(Training, "perform", lambda *_: pytest.fail("it ran again"))
    assert table(options(seeds=1, ledger="runs/elsewhere.db")) == document


def forked(target: Callable[..., Any], *arguments: Any) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


def complete(found: Counter[tuple[str, str]]) -> dict[tuple[str, str], int]:
    return {key: count for key, count in found.items() if key[1] == "COMPLETE"}


def test_two_commands_on_one_ledger_share_the_work() -> None:
    processes = [forked(table, options(out=f"results{number}")) for number in (0, 1)]
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]
    assert complete(attempts()) == ONCE
    # What both asked for at the same moment was withdrawn.
    assert states(attempts()) <= {"COMPLETE", "FAIL"}
    assert timeless(json.loads(Path("results0/tiny.json").read_text())) == timeless(table(options(ledger="b.db")))


def own_group(chosen: TableOptions) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
    table(chosen)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")
def test_a_killed_table_is_finished_by_the_next_command() -> None:
    undisturbed = table(options(ledger="undisturbed.db", out="undisturbed"))
    # Scratch files of the undisturbed table would be found.
    os.rename("runs", "elsewhere")
    command = forked(own_group, options(workers=2))
    until(lambda: Path("runs/ledger.db").is_file() and states(attempts()) >= {"COMPLETE", "RUNNING"})
    os.killpg(command.pid, signal.SIGKILL)
    command.join()
    left = attempts()
    assert states(left) >= {"COMPLETE", "RUNNING"}
    silence(storage.open_storage("runs/ledger.db"))
    resumed = table(options(workers=2))
    found = attempts()
    assert complete(found) == ONCE
    assert {key[0] for key in found if key[1] == "FAIL"} == {key[0] for key in left if key[1] == "RUNNING"}
    assert states(found) == {"COMPLETE", "FAIL"}
    assert timeless(resumed) == timeless(undisturbed)
    assert resumed["tables"] == undisturbed["tables"]


def states(found: Counter[tuple[str, str]]) -> set[str]:
    return {state for _, state in found}


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def silence(opened: RDBStorage) -> None:
    """Let the last signs of life be old, rather than wait for that: a machine that stalls would lose its own too."""
    with opened.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE trial_heartbeats SET heartbeat = '2000-01-01 00:00:00'")


def silent(opened: RDBStorage) -> bool:
    with opened.engine.begin() as connection:
        return "2000" in str(connection.exec_driver_sql("SELECT heartbeat FROM trial_heartbeats").scalar())


def ledger_of() -> tuple[Ledger, list[Any]]:
    recipe = read(Path("tiny.yaml"))
    return Ledger("runs/ledger.db", "tiny"), works(plan(recipe, recipe.scale("full")))[:1]


def test_a_run_that_is_claimed_is_nobody_elses_until_its_worker_dies() -> None:
    ledger, found = ledger_of()
    ledger.ask(found, again=True)
    ledger.ask(found, again=True)
    claim = ledger.claim(found)
    assert claim is not None
    assert ledger_of()[0].claim(found) is None
    silence(ledger._storage)
    assert ledger.claim(found) is not None
    assert attempts() == {("DFA 0", "FAIL"): 1, ("DFA 0", "RUNNING"): 1}
    # What the first worker finds out in spite of all is not a second record.
    with claim:
        claim.finish({"label": "DFA", "seed": 0})
    assert not ledger.state(found).records


def test_a_living_worker_keeps_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, found = ledger_of()
    monkeypatch.setattr(ledger._storage, "heartbeat_interval", 0.02)
    with ledger.claim(found) as claim:
        silence(ledger._storage)
        until(lambda: not silent(ledger._storage))
        assert ledger.claim(found) is None
        claim.finish({"label": "DFA", "seed": 0, "epochs": [{"epoch": 1}, {"epoch": 2}]})
    assert ledger.state(found).records == {
        found[0].key: {"label": "DFA", "seed": 0, "epochs": [{"epoch": 1}, {"epoch": 2}]}
    }
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        ledger._storage.set_trial_user_attr(claim._number, RECORD, {})


def test_an_interrupted_command_gives_its_run_back_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    perform = Training.perform
    monkeypatch.setattr(
        Training, "perform", lambda self, folder, place, *_: perform(self, folder, place, Interrupting(12, interrupted))
    )
    with pytest.raises(SystemExit):  # which Lightning makes of Ctrl-C
        table(options(seeds=1))
    assert attempts()["DFA 0", "FAIL"] == 1


def test_a_run_that_fails_is_named_and_tried_by_the_next_command_alone(capsys: pytest.CaptureFixture[str]) -> None:
    text = tiny_table.RECIPE.replace(
        "  sum: {", "  much: {lr: 1.0e+30, model: {init_args: {activation: relu}}}\n  sum: {"
    )
    tiny_table.write(Path(), text)
    for count in (1, 2):
        shown = io.StringIO()
        with pytest.raises(RunError, match="1 runs failed"):
            table(options(seeds=1), Console(file=shown, width=200))
        assert "failed" in shown.getvalue()
        assert "RunError: much, seed 0: " in shown.getvalue()
        assert attempts() == {
            **{(f"{row} 0", "COMPLETE"): 1 for row in ("DFA", "sum", "BP")},
            ("much 0", "FAIL"): count,
        }
    assert main(["table", "tiny.yaml", "--seeds", "1"]) == 1
    assert "1 runs failed" in capsys.readouterr().err


def found(monkeypatch: pytest.MonkeyPatch, accuracy: Callable[[Training], float | None]) -> list[tuple[str, int]]:
    """Runs that train nothing: their accuracies are made up; returns what was run, as it is run."""
    ran = []

    def perform(self: Training, *_: Any) -> dict[str, Any]:
        ran.append((self.label, self.seed))
        return tiny_table.record(self.label, self.seed, accuracy(self))

    monkeypatch.setattr(Training, "perform", perform)
    return ran


def of_five(seed_that_is_well: float | None, others: Exception | None) -> Callable[[Training], float | None]:
    def accuracy(work: Training) -> float | None:
        if work.seed and others is not None:
            raise others
        return None if work.seed else seed_that_is_well

    return accuracy


@pytest.mark.parametrize("how", [RunError("diverged"), None])
def test_seeds_that_diverged_are_told_and_leave_no_verdict(how: Exception | None, monkeypatch: Any) -> None:
    found(monkeypatch, of_five(49.0, how))
    shown = io.StringIO()
    chosen = options(seeds=5, cell=["DFA/accuracy"])
    if how is None:  # it went to its end, but to no finite number
        table(chosen, Console(file=shown, width=200))
        assert "DFA, seed 1: its accuracy is not finite" in shown.getvalue()
    else:
        with pytest.raises(RunError, match="4 runs failed"):
            table(chosen, Console(file=shown, width=200))
    document = json.loads(Path("results/tiny.json").read_text())
    entry = document["tables"]["full"][0]
    assert (entry["mean"], entry["seeds"], entry["failed"], entry["within"]) == (49.0, 1, 4, None)
    page = Path("results/RESULTS.md").read_text()
    assert "49.00 (4 of 5 seeds failed)" in page
    assert "(4 of 5 seeds failed)" in shown.getvalue()
    for text in (shown.getvalue(), page):
        assert " 49.00 " in text
        assert "49.00 ✓" not in text


def test_what_is_shown_of_seeds_and_code_is_the_same_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe_page, "compared", lambda *_: None)
    found(monkeypatch, lambda work: 60.0 + work.seed)
    table(options(seeds=3, cell=["DFA/accuracy"]))
    change_the_code(monkeypatch)
    table(options(seeds=1, cell=["BP"]))
    shown = io.StringIO()
    table(options(cell=["DFA", "BP"]), Console(file=shown, width=200))
    # 60, 61, 62 have the mean 61 and the deviation 1; the scale has two seeds.
    document = json.loads(Path("results/tiny.json").read_text())
    for entry in document["tables"]["full"]:  # another column of the same row, of which a seed is not known
        if (entry["row"], entry["column"]) == ("DFA", "training"):
            entry["seeds"] = 2
    markdowned = markdown.section(document)
    html = recipe_page.report(ReportOptions(name="tiny.yaml")).read_text()
    for text in (shown.getvalue(), markdowned, html):
        assert "61.00 ± 1.00" in text
    assert "| DFA | 61.00 ± 1.00 ✓<br>50.00 ± 1.50 | 61.00 ± 1.00 (2) |" in markdowned
    assert "Caution:\n\n- The runs were measured with 2 states of bpfree's code." in markdowned
    # The command makes what is shown: one row's three seeds are not asked of all.
    assert '<code id="command">bpfree table tiny.yaml</code>' in html
    for given, words in (({"cell": ["DFA"]}, " --cell DFA --seeds 3"), ({"cell": ["BP"]}, " --cell BP")):
        assert (
            f"bpfree table tiny.yaml{words}</code>"
            in recipe_page.report(ReportOptions(name="tiny.yaml", **given)).read_text()
        )
    table(options(seeds=3))
    assert "bpfree table tiny.yaml --seeds 3</code>" in recipe_page.report(ReportOptions(name="tiny.yaml")).read_text()
    chosen = ReportOptions(name="tiny.yaml", scale="reduced", seeds=1, cell=["BP/cosine 1"])
    html = recipe_page.report(chosen).read_text()
    assert "bpfree table tiny.yaml --scale reduced --cell &#39;BP/cosine 1&#39;</code>" in html


def test_a_page_of_a_scale_without_runs_says_which_scale_has_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe_page, "compared", lambda *_: None)
    found(monkeypatch, lambda work: 60.0)

    def said() -> str:
        shown = io.StringIO()
        recipe_page.report(ReportOptions(name="tiny.yaml"), Console(file=shown, width=200))
        return shown.getvalue().split("page:")[0].strip()

    nothing = "The page is empty: no run of it has finished at scale full."
    assert said() == nothing
    table(options(scale="reduced"))
    assert said() == f"{nothing} 3 have at --scale reduced."
    table(options(cell=["BP"]))
    assert said() == ""


def test_the_hours_of_a_table_are_those_that_its_runs_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def perform(self: Training, *_: Any) -> dict[str, Any]:
        return tiny_table.record(self.label, self.seed, 60.0, duration=1800.0)

    monkeypatch.setattr(Training, "perform", perform)
    table(options(seeds=1))
    assert "3 runs, 1.50 hours; " in Path("results/RESULTS.md").read_text()


def test_a_table_whose_runs_all_failed_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, of_five(None, None))
    table(options(seeds=1, cell=["DFA/accuracy"]))
    assert "| DFA | – (1 of 1 seeds failed)<br>50.00 ± 1.50 |" in Path("results/RESULTS.md").read_text()


def test_a_number_that_is_not_finite_stops_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, lambda work: None if work.label == "DFA" else 60.0)
    shown = io.StringIO()
    table(options(seeds=1, workers=2), Console(file=shown, width=200))
    assert "DFA, seed 0: accuracy not finite" in shown.getvalue()
    assert "BP, seed 0: accuracy 60.00" in shown.getvalue()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")
def test_workers_that_are_killed_are_named_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, lambda work: 60.0)
    table(options(seeds=1, cell=["DFA", "sum"]))
    Path("results/tiny.json").unlink()
    monkeypatch.setattr(workers, "_worker", lambda order: os.kill(os.getpid(), signal.SIGKILL))
    monkeypatch.setattr(processes, "_REPLACED", 2)
    shown = io.StringIO()
    with pytest.raises(RunError, match=r"all workers have ended, and 1 runs are missing \(exit code -9, SIGKILL\)"):
        table(options(seeds=1, workers=2), Console(file=shown, width=200))
    assert shown.getvalue().count("A worker has died: exit code -9, SIGKILL.") == 3
    # What had been found is written all the same.
    document = json.loads(Path("results/tiny.json").read_text())
    assert sorted(record["label"] for record in document["records"]) == ["DFA", "sum"]


def test_a_worker_that_ends_by_itself_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_worker", lambda order: os._exit(3))
    shown = io.StringIO()
    with pytest.raises(RunError, match=r"3 runs are missing \(exit code 3\)"):
        table(options(seeds=1, workers=2), Console(file=shown, width=200))
    assert shown.getvalue().count("A worker has died: exit code 3.") == 2


def test_a_worker_that_ends_between_two_looks_is_said_at_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ending:
        codes = iter([None])
        exitcode = property(lambda self: next(self.codes, 3))

        def is_alive(self) -> bool:
            return self.exitcode is None

    monkeypatch.setattr(processes.Team, "_started", lambda self: Ending())
    said: list[str] = []
    several = processes.Team(lambda: None, 1, said.append)
    assert [several.alive(), several.alive()] == [True, False]
    assert said == ["A worker has died: exit code 3."]


def another_code() -> None:
    workers.source = lambda: "changed"


def another_recipe() -> None:
    tiny_table.write(Path(), tiny_table.RECIPE.replace("epochs: 3", "epochs: 4"))


@pytest.mark.parametrize(
    ("change", "message"), [(another_code, "bpfree's code has changed"), (another_recipe, "the recipe, its data")]
)
def test_a_worker_that_finds_other_files_than_its_command_ends(
    change: Callable[[], None], message: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    found(monkeypatch, lambda work: 60.0)
    worker = workers._worker
    monkeypatch.setattr(workers, "_worker", lambda order: [change(), worker(order)])
    with pytest.raises(RunError, match=r"3 runs are missing \(exit code 1\)"):
        table(options(seeds=1, workers=2))
    assert f"bpfree table, worker: {message}" in capfd.readouterr().err
    assert states(attempts()) == {"WAITING"}


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="the system has no groups of processes")
def test_workers_give_their_runs_back_when_their_command_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    end = Claim._end

    def slow_end(self: Claim, *told: Any) -> None:
        time.sleep(0.3)
        end(self, *told)

    monkeypatch.setattr(Claim, "_end", slow_end)
    monkeypatch.setattr(Training, "perform", lambda *_: time.sleep(600))
    command = forked(own_group, options(workers=2))
    until(lambda: Path("runs/ledger.db").is_file() and sum(running(attempts())) == 2)
    os.killpg(command.pid, signal.SIGINT)
    command.join(300)
    if command.exitcode is None:
        os.killpg(command.pid, signal.SIGKILL)
    assert command.exitcode == 1
    opened = storage.open_storage("runs/ledger.db")
    trials = [trial for study in opened.get_all_studies() for trial in opened.get_all_trials(study._study_id)]
    assert [GIVEN_BACK in trial.user_attrs for trial in trials if trial.state.name != "WAITING"] == [True, True]


def running(found: Counter[tuple[str, str]]) -> list[int]:
    return [count for (_, state), count in found.items() if state == "RUNNING"]


def change_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "source", lambda: "changed")
    for module in (workers, table_runs):
        monkeypatch.setattr(module, "source", lambda: "changed")


def test_other_code_is_said_and_measured_anew_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    table(options(seeds=1, cell=["BP"]))
    change_the_code(monkeypatch)
    shown = io.StringIO()
    table(options(seeds=1, cell=["BP"]), Console(file=shown, width=200))
    assert "1 of 1 runs were measured with another state" in " ".join(shown.getvalue().split())
    assert attempts() == {("BP 0", "COMPLETE"): 1}
    document = table(options(seeds=1, cell=["BP"], again=True))
    assert attempts() == {("BP 0", "COMPLETE"): 2}
    assert [record["code"]["source"] for record in document["records"]] == ["changed"]
    table(options(seeds=1, cell=["BP"], again=True))
    assert attempts() == {("BP 0", "COMPLETE"): 2}


def test_what_is_not_measured_again_keeps_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    table(options(seeds=1, cell=["BP", "DFA"]))
    change_the_code(monkeypatch)
    document = table(options(seeds=1, cell=["BP"], again=True))
    found = {record["label"].partition(" /")[0]: record["code"]["source"] for record in document["records"]}
    assert (found.pop("BP"), len(found), "changed" in found.values()) == ("changed", 1, False)


def test_files_of_others_are_left_alone() -> None:
    Path("results").mkdir()
    Path("results/list.json").write_text("[1]")
    Path("results/broken.json").write_text("{")
    document = table(options(seeds=1, cell=["BP"]))
    assert len(document["records"]) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('<<<<<<< HEAD\n{"format": "bpfree-table/1"}', "is a result of bpfree and not readable as JSON .*Mend it"),
        ('{"format": "mine"}', "is no table of bpfree's, and that of tiny.yaml has its name"),
        ("[1]", "is no table of bpfree's, and that of tiny.yaml has its name"),
    ],
)
def test_a_damaged_file_of_the_tables_own_name_is_left_as_it_is(content: str, message: str) -> None:
    Path("results").mkdir()
    path = Path("results/tiny.json")
    path.write_text(content)
    for command, chosen in ((table, options(seeds=1)), (recipe_page.report, ReportOptions(name="tiny.yaml"))):
        with pytest.raises((DamageError, WriteError), match=f"results/tiny.json .*{message}"):
            command(chosen)
    assert path.read_text() == content
    assert not Path("runs").exists()


def test_two_recipes_of_one_name_do_not_overwrite_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, lambda work: 60.0)
    Path("mine").mkdir()
    tiny_table.write(Path("mine"))
    for first, second in (("tiny.yaml", "mine/tiny.yaml"), ("mine/tiny.yaml", "tiny.yaml")):
        table(options(name=first, seeds=1))
        kept = Path("results/tiny.json").read_text()
        with pytest.raises(WriteError, match=f"`bpfree table {first}`, and that of {second} has its name"):
            table(options(name=second, seeds=1))
        assert Path("results/tiny.json").read_text() == kept
        Path("results/tiny.json").unlink()
    table(options(name="mine/tiny.yaml", seeds=1))
    monkeypatch.chdir("mine")
    table(options(seeds=1, out="../results"))  # the same file from another folder


def test_a_recipe_elsewhere_is_told_from_one_of_its_name_here(monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, lambda work: 60.0)
    for folder in ("far", "here"):
        Path(folder).mkdir()
        tiny_table.write(Path(folder))
    monkeypatch.chdir("here")
    for _ in range(2):  # the repeated command is that of the same table
        assert table(options(name="../far/tiny.yaml", seeds=1))["command"] == "bpfree table ../far/tiny.yaml"
    with pytest.raises(WriteError, match=r"is the table of `bpfree table \.\./far/tiny\.yaml`, and that of tiny"):
        table(options(seeds=1))


def test_the_file_of_a_table_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, lambda work: 60.0)
    table(options(seeds=1))
    Path("results/tiny.json").rename("results/other.json")
    table(options(seeds=1))
    read_as_anothers = []
    monkeypatch.setattr(result, "records", lambda path: read_as_anothers.append(path.name) or {})
    table(options(seeds=1))
    assert read_as_anothers == ["other.json"]


def test_records_of_a_gpu_are_told_from_others() -> None:
    record = {"code": {"source": "a"}, "environment": {"torch": "1"}, "data": {"name": "d", "checksums": {}}}
    other = replace_in(record, "environment", {"torch": "1", "gpu": "a card"})
    assert result.cautions([record, other], "a") == [
        "The runs were made on different kinds of machines: a card, the CPU."
    ]


MEASURED = """
title: Memory
columns:
  bytes: {metric: bytes, tolerance: 0, function: support.tiny_table.memory, arguments: {layers: 3}}
rows: {narrow: {arguments: {width: 2}}, wide: {arguments: {width: 8}}}
expected: {narrow: {bytes: 24}}
scales: {full: {seeds: 2}}
"""


def test_cells_can_be_computed() -> None:
    tiny_table.write(Path(), MEASURED)
    document = table(options())
    assert [(e["row"], e["mean"], e["within"], e["seeds"]) for e in document["tables"]["full"]] == [
        ("narrow", 24.0, True, 2), ("wide", 96.0, None, 2),
    ]  # fmt: skip
    assert [record["values"]["seed"] for record in document["records"]].count(1.0) == 2
    page = Path("results/RESULTS.md").read_text()
    assert "| narrow | 24.000 ± 0.000 ✓<br>24.000 | 2 |" in page
    assert "| wide | 96.000 ± 0.000 | 2 |" in page
    assert "\n4 runs, " in page
    # One that takes no seed is computed once, however many seeds there are.
    tiny_table.write(Path(), MEASURED.replace("support.tiny_table.memory", "support.tiny_table.weight"), "once")
    assert [entry["seeds"] for entry in table(options(name="once.yaml"))["tables"]["full"]] == [1, 1]


def test_a_tap_that_does_not_exist_costs_its_cells_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, lambda work: 60.0)
    tiny_table.write(Path(), tiny_table.RECIPE.replace("{alignment: 1}", "{alignment: 9}"))
    with pytest.raises(SettingsError, match=r"cosine 1: there is no tap 9, only 2, 5\. .*mend the recipe"):
        table(options(seeds=1))
    entries = json.loads(Path("results/tiny.json").read_text())["tables"]["full"]
    assert {entry["column"]: entry["mean"] for entry in entries} == {
        "accuracy": 60.0, "training": 60.0, "cosine 1": None, "cosine 2": 0.5,
    }  # fmt: skip


def test_what_goes_wrong_in_a_function_stops_no_other_cell() -> None:
    text = MEASURED.replace("support.tiny_table.memory, arguments: {layers: 3}", "support.tiny_table.broken")
    tiny_table.write(Path(), text.replace("{arguments: {width: 2}}", "{}").replace("{arguments: {width: 8}}", "{}"))
    shown = io.StringIO()
    with pytest.raises(RunError, match="1 runs failed"):
        table(options(), Console(file=shown, width=160))
    assert "RuntimeError: out of paper" in shown.getvalue()


COUNTED = """
title: Counted
columns: {bytes: {metric: bytes, function: support.tiny_table.counted}}
rows:
  torch: {arguments: {kind: torch}}
  numpy: {arguments: {kind: numpy}}
  whole: {arguments: {kind: whole, much: 3}}
"""


def test_a_function_may_return_any_numbers() -> None:
    tiny_table.write(Path(), COUNTED)
    document = table(options())
    assert table(options()) == document
    assert [entry["mean"] for entry in document["tables"]["full"]] == [1.5, 1.5, 3.0]


@pytest.mark.parametrize(
    ("kind", "message"),
    [("several", "'bytes' no number"), ("text", "'bytes' no number, but 'much'"), ("bare", "let it return numbers by")],
)
def test_what_a_function_returns_beside_numbers_is_a_failed_run(kind: str, message: str) -> None:
    tiny_table.write(Path(), COUNTED.replace("kind: numpy", f"kind: {kind}"))
    for _ in range(2):
        shown = io.StringIO()
        with pytest.raises(RunError, match="1 runs failed"):
            table(options(), Console(file=shown, width=200))
        assert message in shown.getvalue()
    means = [entry["mean"] for entry in json.loads(Path("results/tiny.json").read_text())["tables"]["full"]]
    assert means == [1.5, None, 3.0]


def test_a_misspelt_number_of_a_function_costs_its_cells_alone() -> None:
    column = "  bits: {metric: bites, function: support.tiny_table.memory, arguments: {layers: 3}}"
    text = MEASURED.replace("rows:", f"{column}\nrows:")
    tiny_table.write(Path(), text)
    shown = io.StringIO()
    with pytest.raises(SettingsError, match=r"columns: bits: the record has no 'bites'. Did you mean 'bytes'"):
        table(options(), Console(file=shown, width=200))
    document = json.loads(Path("results/tiny.json").read_text())
    means = {(e["row"], e["column"]): (e["mean"], e["within"], e["failed"]) for e in document["tables"]["full"]}
    assert means["narrow", "bytes"] == (24.0, True, 0)
    assert means["narrow", "bits"] == (None, None, 0)
    assert "the record has no 'bites'" in shown.getvalue()
    # What was computed stays; the recipe alone is mended.
    tiny_table.write(Path(), text.replace("bites", "bytes"))
    before = attempts()
    assert table(options())["tables"]["full"][1]["mean"] == 24.0
    assert attempts() == before


def test_a_ledger_that_cannot_be_opened() -> None:
    with pytest.raises(LedgerError, match="--ledger nosuch://x cannot be opened"):
        Ledger("nosuch://x", "tiny")


def test_runs_of_different_data_are_said() -> None:
    record = {"code": {"source": "a"}, "environment": {"torch": "1"}, "data": {"name": "d", "checksums": {"f": "0"}}}
    other = replace_in(record, "data", {"name": "d", "checksums": {"f": "1"}})
    assert result.cautions([record, record], "a") == []
    assert result.cautions([record, other], "a") == ["The files of d were not the same in all runs."]
    newer = replace_in(record, "environment", {"torch": "2"})
    assert "different versions of torch: 1, 2" in result.cautions([record, newer], "a")[0]


def test_files_that_are_not_the_published_ones_are_said() -> None:
    record = {"code": {"source": "a"}, "environment": {"torch": "1"}, "data": {"name": "d", "checksums": {}}}
    ours = replace_in(record, "data", {"name": "d", "checksums": {}, "origin": "none is as published"})
    theirs = replace_in(record, "data", {"name": "d", "checksums": {}, "origin": PUBLISHED})
    assert result.cautions([record, theirs], "a") == []
    assert result.cautions([ours, ours], "a") == ["The files of d: none is as published."]


def replace_in(record: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    return {**record, name: value}


TEXT = """
title: Words
base: {data: text, text: {vocabulary: 280, context: 16}, model: {class_path: CausalTransformer, init_args: {blocks: 1}}}
rows: {BP: {rule: BP}}
columns: {perplexity: {}}
scales: {full: {seeds: 1}}
"""


def test_numbers_of_another_folder_are_not_taken_for_this_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_data, "_KNOWN", {})
    tiny_table.write(Path(), TEXT, "a")
    tiny_table.write(Path(), TEXT, "b")
    for name in ("one", "other"):
        tiny_text.folder(Path(name))
    Path("other/valid.txt").write_text("a dog sees him .\n" * 40)
    ran = []

    def perform(self: Training, folder: Path, data_dir: str, *_: Any) -> dict[str, Any]:
        ran.append(data_dir)
        return tiny_table.record(self.label, self.seed, 50.0, perplexity=7.0)

    monkeypatch.setattr(Training, "perform", perform)
    # The files tell: what a tokenizer makes of them takes seconds, and may be other with its next version.
    monkeypatch.setattr(data.text.loading, "token_file", lambda *_: pytest.fail("tokens were made"))
    for name, folder in (("a", "one"), ("a", "one"), ("b", "one"), ("b", "other"), ("a", "other")):
        table(options(name=f"{name}.yaml", data_dir=folder))
    assert ran == ["one", "other"]
    # Nor those of a text that has been changed since, which another process finds.
    Path("one/valid.txt").write_text("the cat hears trees .\n" * 40)
    run_data._KNOWN.clear()
    table(options(name="a.yaml", data_dir="one"))
    assert ran == ["one", "other", "one"]
    with pytest.raises(DataError, match="a: BP: pass --data-dir DIR, even to show what is finished"):
        table(options(name="a.yaml"))


def of_data(work: Training, data_dir: str) -> dict[str, Any]:
    """A record of a run that says which data it had."""
    found = tiny_table.record(work.label, work.seed, None, data=work.data(data_dir).describe())
    return found | {str(work.metric): 1.0, "epochs": [found["epochs"][0] | {"eval_loss": 1.0}]}


def test_a_scale_needs_its_own_data_alone_and_nothing_of_others_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file has every scale. One whose data are missing keeps the numbers that it has."""
    words = "{seeds: 2, data: text, text: {vocabulary: 280, context: 16}, model: CausalTransformer}"
    views = "{seeds: 1, data: blender, model: NeRFTiny, cut: other data}"
    rows = "rows: {BP: {rule: BP}, DFA: {rule: DFA}}\ncolumns: {eval_loss: {}}"
    tiny_table.write(Path(), f"title: Two\n{rows}\nscales: {{full: {words}, small: {views}}}\n", "a")
    tiny_text.folder(Path("both/text"))
    tiny_scene.blender(Path("both/blender"))

    def perform(self: Training, _: Path, data_dir: str, *__: Any) -> dict[str, Any]:
        return of_data(self, data_dir)

    monkeypatch.setattr(Training, "perform", perform)
    for scale in ("full", "small"):
        table(options(name="a.yaml", data_dir="both", scale=scale))
    whole = json.loads(Path("results/a.json").read_text())
    assert [len(whole["tables"][scale]) for scale in ("full", "small")] == [2, 2]
    assert len(whole["records"]) == 6
    for ledger, missing, asked in (("x.db", "text", "small"), ("y.db", "blender", "full")):
        monkeypatch.setattr(run_data, "_KNOWN", {})
        monkeypatch.setattr(run_data, "_KEPT", {})
        shutil.move(f"both/{missing}", "away")
        table(options(name="a.yaml", data_dir="both", scale=asked, ledger=ledger))
        assert json.loads(Path("results/a.json").read_text()) == whole
        with pytest.raises(DataError, match="both"):
            table(options(name="a.yaml", data_dir="both", scale={"small": "full", "full": "small"}[asked]))
        shutil.move("away", f"both/{missing}")


def test_a_cell_needs_its_own_data_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = "columns: {one: &one {metric: eval_loss, scene: {folder: one}}, two: {<<: *one, scene: {folder: two}}}"
    base = "base: {data: blender, model: NeRFTiny}\nscales: {full: {seeds: 1}}"
    tiny_table.write(Path(), f"title: Two\n{base}\n{columns}\nrows: {{BP: {{rule: BP}}}}\n", "a")
    tiny_scene.blender(Path("scenes/one"))
    ran = []

    def perform(self: Training, _: Path, data_dir: str, *__: Any) -> dict[str, Any]:
        ran.append(self.label)
        return of_data(self, data_dir)

    monkeypatch.setattr(Training, "perform", perform)
    with pytest.raises(DataError, match="two"):
        table(options(name="a.yaml", data_dir="scenes"))
    assert ran == []
    table(options(name="a.yaml", data_dir="scenes", cell=["one"]))
    assert ran == ["BP / one"]


def test_other_files_of_a_data_set_than_are_read_now_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_data, "_KEPT", {})
    loaded = []

    def load(folder: Path) -> Any:
        loaded.append(folder)
        return replace(tiny_lab.splits(), checksums={"made up": folder.name})

    def perform(self: Training, _: Path, data_dir: str, *__: Any) -> dict[str, Any]:
        return tiny_table.record(self.label, self.seed, 60.0, data=self.data(data_dir).describe())

    monkeypatch.setitem(data.DATA_SETS, "tiny", load)
    monkeypatch.setattr(Training, "perform", perform)
    # In the middle: what is finished is shown without any data.
    for folder, cells, times in (("one", ["BP"], 1), ("other", ["BP"], 1), ("other", None, 2)):
        Path(folder).mkdir(exist_ok=True)
        shown = io.StringIO()
        table(options(seeds=1, cell=cells, data_dir=folder), Console(file=shown, width=200))
        assert len(loaded) == times
        assert ("had other files" in shown.getvalue()) == (times == 2)
    assert "1 of 3 runs on tiny had other files of it than are read now." in shown.getvalue()


def test_the_list_of_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "--list"]) == 0
    assert "launay2019-table2" in capsys.readouterr().out
    assert main(["table"]) == 1
    assert "Name a recipe" in capsys.readouterr().err


def test_a_scale_of_which_more_seeds_were_run_is_shown_once() -> None:
    document = table(options(), Console(file=io.StringIO()))
    entries = document["tables"]["full"]
    document["scales"]["less"] = {"cut": "1 of 2 seeds"}
    document["tables"]["less"] = [entry | {"scale": "less"} for entry in entries]
    assert markdown.section(document).count("Scale: ") == 1
    document["tables"]["less"][0]["mean"] += 1
    assert markdown.section(document).count("Scale: ") == 2
