"""A disk that is full at any of many moments: what stood before is still there, and the file is named."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from bpfree.lab import files, report, runs
from bpfree.lab.checkpoints import WholeFiles, damage_of, previous
from bpfree.lab.errors import LedgerError, WriteError
from bpfree.lab.queue import storage
from bpfree.lab.queue.ledger import Ledger
from bpfree.lab.runs import run
from bpfree.lab.tables import markdown, result
from lab.damage.kinds import RUNS, records
from support import tiny_lab
from support.fake_comparison import comparison

MOMENTS = 50


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the system refuse every byte of a file behind this one, as it does where the disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def checkpoint(folder: Path, number: int) -> Path:
    WholeFiles().save_checkpoint({"weights": torch.full((400,), float(number))}, folder / "last.ckpt")
    return folder / "last.ckpt"


def table(folder: Path, number: int) -> Path:
    found = [record | {"seed": number} for record in records()]
    said: dict[str, Any] = {"title": "T", "source": {}, "scales": {}, "deviations": [], "remarks": []}
    return result.write(
        {"format": result.FORMAT, "name": "a", "command": "bpfree table a", "tables": {}, "records": found} | said,
        folder,
    )


WRITERS: dict[str, Any] = {
    "checkpoint": checkpoint,
    "table": table,
    "record": lambda folder, number: files.write_json(folder / "a.json", records()[0] | {"seed": number}),
    "page": lambda folder, number: files.write_text(folder / "RESULTS.md", f"{number} " * 2000),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_nothing_that_stood_before_is_lost(kind: str, tmp_path: Path) -> None:
    write = WRITERS[kind]
    path = write(tmp_path, 1)
    before = path.read_bytes()
    for moment in range(MOMENTS):
        with (
            largest_file(len(before) * moment // MOMENTS),
            pytest.raises(WriteError, match=rf"{path.name} could not be"),
        ):
            write(tmp_path, 2)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]
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


def test_the_ledger_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.time, "sleep", lambda _: None)
    path = tmp_path / "ledger.db"
    Ledger(str(path), "made up").adopt({record["key"]: record for record in records()[:2]})
    size = path.stat().st_size
    late = {"c": records()[2] | {"filters": [[0.5] * 20_000] * 3}}
    for moment in range(2):
        with largest_file(size + 4096 * moment), pytest.raises(LedgerError, match=r"ledger"):
            Ledger(str(path), "made up").adopt(late)
        assert set(Ledger(str(path), "made up").state(RUNS).records) == {"a", "b"}
    found = Ledger(str(path), "made up")
    found.adopt(late)
    assert set(found.state(RUNS).records) == {"a", "b", "c"}
