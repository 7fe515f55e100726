"""A disk that is full at any of many moments: what stood before is still there, and the file is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bpfree.lab import report
from bpfree.lab.errors import WriteError
from bpfree.lab.kept.checkpoints import damage_of, previous
from bpfree.lab.queue import storage
from bpfree.lab.running import runs
from bpfree.lab.running.runs import run
from bpfree.lab.tables import markdown
from lab.damage.full_disk import GOOD, WRITERS, checkpoint, files_cut_off, largest_file, ledger_cut_off
from support import tiny_lab
from support.fake_comparison import comparison


@pytest.mark.parametrize("kind", WRITERS)
def test_nothing_that_stood_before_is_lost(kind: str, tmp_path: Path) -> None:
    assert files_cut_off(kind, 50) == {GOOD[0]: 50}
    write = WRITERS[kind]
    before = write(tmp_path, 1).read_bytes()
    assert write(tmp_path, 2).read_bytes() != before


@pytest.mark.parametrize("call", ["mkstemp", "fsync", "chmod", "replace"])
def test_whatever_call_is_refused(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint(tmp_path, 1)
    before = path.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    place = {"mkstemp": "tempfile.mkstemp", "fsync": "os.fsync", "chmod": "pathlib.Path.chmod"}
    monkeypatch.setattr(place.get(call, "pathlib.Path.replace"), full)
    with pytest.raises(WriteError, match=r"last\.ckpt could not be written \(No space left on device\)\. Free some"):
        checkpoint(tmp_path, 2)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [before]


def test_a_disk_that_fills_between_the_two_moves_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint(tmp_path, 1)
    before, replace = path.read_bytes(), Path.replace

    def once(self: Path, target: Path) -> Path:
        if self.suffix == ".part":
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", once)
    with pytest.raises(WriteError, match=r"last\.ckpt could not be written"):
        checkpoint(tmp_path, 2)
    assert previous(path).read_bytes() == before
    assert damage_of(previous(path)) == ""


def test_the_pages_of_a_comparison_are_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("the good one")
    found = comparison(seeds=1, epochs=2)
    report.write(found, tmp_path / "first.html")  # what all pages share is made and kept with the first one
    with largest_file(1000), pytest.raises(WriteError, match=r"report\.html could not be written"):
        report.write(found, path)
    assert path.read_text() == "the good one"
    (tmp_path / "RESULTS.md").write_text("the good one")
    with largest_file(100), pytest.raises(WriteError, match=r"RESULTS\.md could not be written"):
        markdown.write(tmp_path)
    assert (tmp_path / "RESULTS.md").read_text() == "the good one"


def test_a_run_names_the_file_that_could_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_step_memory", lambda *_: 0)  # which writes a file too
    with largest_file(2000), pytest.raises(WriteError, match=r"(last\.ckpt|metrics\.csv).* could not be written"):
        run(tiny_lab.settings(epochs=1), tiny_lab.splits(), tmp_path)
    assert run(tiny_lab.settings(epochs=1), tiny_lab.splits(), tmp_path)["epochs"]


def test_the_ledger_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_PAUSES", (0.0,))
    assert ledger_cut_off(2) == {GOOD[0]: 2}
