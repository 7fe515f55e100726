"""What killed processes leave: it is swept, and what is in use is not."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest

from bpfree.lab.disk import files, leftovers
from bpfree.lab.errors import WriteError
from bpfree.lab.tables.command_options import TableOptions
from bpfree.lab.tables.table import table
from support import tiny_table
from support.copies import copies


def write_half_and_be_killed(place: Path, temporary_files: str) -> None:
    tempfile.tempdir = temporary_files
    with files.replacing(place / "big.ckpt") as temporary, leftovers.temporary_folder() as folder:
        temporary.write_bytes(b"half of a checkpoint")
        (folder / "log").write_text("of a short run")
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which a process was killed that wrote a file, with another for what it throws away."""
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "tmp").mkdir()
    place = tmp_path / "runs" / "one"
    # Not a copy of this process, which may have taken more address space than the system lets a second one have.
    process = copies().Process(target=write_half_and_be_killed, args=(place, str(tmp_path / "tmp")))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return tmp_path


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*")]


def test_what_a_killed_process_leaves_is_swept(killed: Path) -> None:
    assert len(names(killed / "runs" / "one")) == len(list((killed / "tmp").iterdir())) == 1
    leftovers.sweep(killed / "runs")  # not what lies below
    assert len(names(killed / "runs" / "one")) == 1
    leftovers.sweep(killed / "runs", below=True)
    assert names(killed / "runs") == ["one"]
    with leftovers.temporary_folder() as folder:
        assert names(killed / "tmp") == [folder.name]
    assert names(killed / "tmp") == []


def test_the_next_file_in_a_folder_sweeps_it(killed: Path) -> None:
    files.write_text(killed / "runs" / "one" / "other.json", "{}")
    assert names(killed / "runs" / "one") == ["other.json"]


def test_what_another_process_writes_is_left_to_it(tmp_path: Path) -> None:
    with files.replacing(tmp_path / "a") as first:
        first.write_text("first")
        # In another process the lock is another's; in this one a second handle of the file is as good.
        leftovers.sweep(tmp_path)
        with files.replacing(tmp_path / "b") as second:
            second.write_text("second")
        assert first.read_text() == "first"
    assert sorted(names(tmp_path)) == ["a", "b"]


def test_nothing_else_is_swept(tmp_path: Path) -> None:
    others = [".bpfree-notes", "mine.part", ".a.part", "last.ckpt"]
    for name in others:
        (tmp_path / name).write_text("mine")
    leftovers.sweep(tmp_path, below=True)
    assert sorted(names(tmp_path)) == sorted(others)


def test_a_file_that_a_sweep_has_taken_before_its_lock_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, taken = leftovers.fcntl.flock, []

    def late(handle: int, how: int) -> None:
        if not taken:
            taken.extend(tmp_path.iterdir())
            taken[0].unlink()
        lock(handle, how)

    monkeypatch.setattr(leftovers.fcntl, "flock", late)
    with leftovers.temporary_file(tmp_path) as path:
        assert path.exists()
        assert path not in taken
    assert names(tmp_path) == []


def test_a_folder_that_a_sweep_has_taken_before_it_is_open_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, made = tempfile.mkdtemp, []

    def late(**options: str) -> str:
        made.append(make(**options))
        if len(made) == 1:
            leftovers.sweep(tmp_path)
        return made[-1]

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(tempfile, "mkdtemp", late)
    with leftovers.temporary_folder() as folder:
        assert names(tmp_path) == [folder.name]
    assert len(made) == 2
    assert names(tmp_path) == []


def test_a_name_as_long_as_names_may_be_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    assert files.write_text(path, "whole").read_text() == "whole"
    with pytest.raises(WriteError, match=r"could not be written \(File name too long\)"):
        files.write_text(tmp_path / ("n" * 256), "")
    assert names(tmp_path) == [path.name]


def test_a_table_sweeps_what_is_left_of_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "title: T\nbase: {function: support.tiny_table.weight}\nrows: {a: {arguments: {width: 2, layers: 1}}}\n"
    tiny_table.write(tmp_path, text + "columns: {bytes: {metric: bytes}}\n", "computed")
    left = tmp_path / "runs" / "tables" / "0123456789abcdef" / "DFA-seed0" / ".bpfree-half.part"
    left.parent.mkdir(parents=True)
    left.write_text("half of a checkpoint")
    table(TableOptions(name="computed.yaml"))
    assert not left.exists()
