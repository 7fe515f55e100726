"""Text of the package datasets: local data sets here, for no test has a network."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bpfree.lab.commands import main
from bpfree.lab.data import load
from bpfree.lab.data.text import TextSettings, checksums, load_text
from bpfree.lab.errors import DataError, SettingsError
from bpfree.lab.tables import run_data
from support import tiny_text

HOW = tiny_text.HOW


def test_without_the_package_it_is_said_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SettingsError, match=r"--text\.dataset x: .*pip install 'bpfree\[datasets\]'"):
        load("text", text=TextSettings(dataset="x"))


def test_a_folder_and_a_data_set_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--data-dir .*: the text is that of --text\.dataset; leave one"):
        load("text", tmp_path, text=TextSettings(dataset="x"))


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    found = pytest.importorskip("datasets", reason="needs datasets: pip install 'bpfree[datasets]'")
    monkeypatch.setattr(found.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(found.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    return found


def rows(n: int, seed: int) -> dict[str, list[str | None]]:
    """Lines in every form that rows have: with and without their ends, several in one, empty, and missing."""
    lines = tiny_text.lines(n, seed)
    return {"line": [lines[0] + "\n", "", lines[1], None, "\n".join(lines[2:5]) + "\n", *lines[5:]]}


def made(datasets: Any, **splits: dict[str, list[str | None]]) -> Any:
    return datasets.DatasetDict({name: datasets.Dataset.from_dict(rows) for name, rows in splits.items()})


@pytest.fixture(params=["saved", "parquet"])
def place(request: pytest.FixtureRequest, datasets: Any, tmp_path: Path) -> Path:
    found = made(datasets, train=rows(300, 0), validation=rows(40, 1), test=rows(30, 2))
    folder = tmp_path / "small"
    if request.param == "saved":
        found.save_to_disk(str(folder))
    else:
        folder.mkdir()
        for name, split in found.items():
            split.to_parquet(str(folder / f"{name}-00000-of-00001.parquet"))
    return folder


def test_a_local_data_set_is_the_text_of_its_rows(place: Path, tmp_path: Path) -> None:
    how = replace(HOW, dataset=str(place), column="line")
    text = load("text", text=how)
    for part, n, seed in (("train", 300, 0), ("valid", 40, 1), ("test", 30, 2)):
        lines = tiny_text.lines(n, seed)
        lines.insert(1, "")
        (tmp_path / f"{part}.txt").write_text("\n".join(lines), encoding="utf-8")
    same = load_text(tmp_path, HOW)
    assert text.checksums["tokens"] == same.checksums["tokens"]
    assert text.words == same.words
    assert text.name == "small"
    assert set(text.checksums) == {"train", "validation", "tokens"}
    other = load("text", text=replace(how, measured_on="test"))
    assert other.measured_on == "test"
    assert set(other.checksums) == {"train", "test", "tokens"}


def test_how_it_is_stored_does_not_count(datasets: Any, tmp_path: Path) -> None:
    found = made(datasets, train=rows(300, 0), validation=rows(40, 1))
    found.save_to_disk(str(tmp_path / "one"))
    found.save_to_disk(str(tmp_path / "two"), num_shards={"train": 3, "validation": 2})
    first, second = (
        checksums(None, replace(HOW, dataset=str(tmp_path / name), column="line")) for name in ("one", "two")
    )
    assert first == second


def test_a_table_knows_a_local_data_set_by_its_content(datasets: Any, tmp_path: Path) -> None:
    made(datasets, train=rows(300, 0), validation=rows(40, 1)).save_to_disk(str(tmp_path / "one"))
    how = {"text": replace(HOW, dataset=str(tmp_path / "one"), column="line")}
    assert run_data.of_folder("text", None, how) == checksums(None, how["text"])
    assert run_data.of_folder("text", None, {"text": replace(HOW, dataset="wikitext:wikitext-2-v1")}) is None


def test_what_a_data_set_lacks_is_named(datasets: Any, tmp_path: Path) -> None:
    found = made(datasets, train=rows(300, 0), test=rows(40, 1))
    found["train"] = found["train"].add_column("number", list(range(len(found["train"]))))
    found.save_to_disk(str(tmp_path))

    def refused(said: str, **changes: Any) -> None:
        with pytest.raises(DataError, match=said):
            load("text", text=replace(HOW, **({"dataset": str(tmp_path), "column": "line"} | changes)))

    refused(r"has no split 'validation', only 'train', 'test'\. .*--text\.measured_on")
    refused(r"--text\.column lines: .* has no such column\..*line", measured_on="test", column="lines")
    refused(r"--text\.column number: .* holds no texts there, but int64", measured_on="test", column="number")
    refused(r"--text\.dataset nobody/none:x cannot be loaded \(.*what has not been downloaded", dataset="nobody/none:x")
    found["train"].save_to_disk(str(tmp_path / "single"))
    refused(r"has no split 'validation', only 'train'", dataset=str(tmp_path / "single"))
    made(datasets, train={"line": [None, " "]}, test=rows(9, 0)).save_to_disk(str(tmp_path / "empty"))
    refused(r"empty, split train is empty", dataset=str(tmp_path / "empty"), measured_on="test")


def test_a_folder_of_files_is_read_unless_one_of_them_is_in_two_splits(datasets: Any, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for name, n, seed in (("train", 300, 0), ("dev", 40, 1), ("test", 30, 2)):
        (folder / f"{name}.txt").write_text("\n".join(tiny_text.lines(n, seed)), encoding="utf-8")
    found = load("text", text=replace(HOW, dataset=str(folder)))
    assert found.vocabulary.decode(found.evaluation.tokens[:]) == tiny_text.lines(40, 1)
    (folder / "train_dev.txt").write_text("more of the training text\n")
    with pytest.raises(DataError, match=r"train_dev\.txt into the splits train and validation, .*Rename the file"):
        load("text", text=replace(HOW, dataset=str(folder)))


def test_the_command_line_names_one(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--data", "text", "--text.dataset", str(place), "--text.column", "line"]
    words += [
        "--text.order",
        "streams",
        "--text.vocabulary",
        "280",
        "--text.context",
        "16",
        "--steps",
        "4",
        "--evaluations",
        "1",
    ]
    words += ["--batch-size", "4", "--threads", "1", "--out", str(tmp_path / "out")]
    words += ["--model.blocks", "2", "--model.width", "8", "--model.heads", "2", "--model.hidden", "8"]
    assert main(words) == 0
    assert "perplexity" in capsys.readouterr().out
