"""Names of all kinds: none leads out of its folder, breaks a page, or ends in a raw error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from bpfree.lab.data import ImageSettings, load
from bpfree.lab.data.text import TextSettings, load_text
from bpfree.lab.disk import files
from bpfree.lab.errors import DamageError, DataError, SettingsError
from bpfree.lab.options.training import TrainOptions
from bpfree.lab.recipe.locate import find
from bpfree.lab.settings import RuleOverrides
from bpfree.lab.tables import markdown, result
from support import tiny_lab
from support.recipe_text import RECIPE

NO_TEXT = os.fsdecode(b"caf\xe9")


@pytest.mark.parametrize("label", ["../../out", "/etc/mine", "a/b", "..", "nul\0", "line\nbreak", NO_TEXT])
def test_a_label_stays_in_its_folder(label: str) -> None:
    options = TrainOptions(rule=label, settings={label: RuleOverrides(rule=tiny_lab.settings().rule.rule)})
    name = options.default_name()
    assert (Path("runs") / name).parent == Path("runs")
    assert name.isprintable()
    place = tiny_lab.settings(label="DFA").name({})
    assert Path(place).name == place
    assert Path(files.file_name(label) + "-seed0").name == files.file_name(label) + "-seed0"


def test_labels_of_before_keep_their_folders() -> None:
    assert TrainOptions(rule="ternary DFA").default_name() == "train-digits-ternary-DFA-seed0"
    assert TrainOptions(rule="FG-A", seed=3).default_name() == "train-digits-FG-A-seed3"


def document(title: str) -> dict:
    cell = {"row": title, "column": title, "scale": "full", "paper": 1.0, "paper_std": None, "tolerance": 1.0}
    cell |= {"mean": 1.0, "std": None, "seeds": 1, "failed": 0, "within": True, "wrong": None, "keys": ["a"]}
    return {
        "format": result.FORMAT, "name": "a", "command": f"bpfree table '{title}'", "title": title,
        "source": {"paper": title}, "deviations": [title], "remarks": [title], "records": [],
        "scales": {"full": {"seeds": 1, "cut": title}}, "tables": {"full": [cell]},
    }  # fmt: skip


@pytest.mark.parametrize(
    "words",
    ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "&lt;b", "[here](javascript:alert(1))",
     "a\n\n# A heading\n", "`</code><b>", "a | b"],
)  # fmt: skip
def test_words_of_a_recipe_are_words_on_the_page(words: str) -> None:
    page = markdown.section(document(words))
    command, *rest = (line for line in page.splitlines()[2:])
    assert command.startswith("`bpfree table ")
    assert command.count("`") == 2 + words.count("`")
    for line in [page.splitlines()[0], command.rpartition("`")[2], *rest]:
        assert "<" not in line.replace("<br>", "")
        assert "](" not in line
        assert not line.startswith("# ")
        assert "&lt;b" not in line or "&amp;lt;b" in line or "<b>" in words
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {4}


def test_a_link_to_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DamageError, match=r"gone\.json cannot be read \(No such file.*Mend or delete it"):
        markdown.write(tmp_path)
    for part in ("train", "val"):
        (tmp_path / part / "only").mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / part / "only" / "a.png")
    (tmp_path / "val" / "only" / "b.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"b\.png cannot be read \(No such file.*mend the link"):
        load("folder", tmp_path)
    (tmp_path / "train.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"train\.txt .*is missing"):
        load_text(tmp_path, TextSettings())
    (tmp_path / "r.yaml").symlink_to(tmp_path / "nowhere")
    with pytest.raises(SettingsError, match="there is no such file"):
        find(str(tmp_path / "r.yaml"))


def test_pictures_whose_names_are_no_text_are_read(tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / part / NO_TEXT).mkdir(parents=True)
        Image.new("L", (8, 8), 51).save(tmp_path / part / NO_TEXT / f"{NO_TEXT}.png")
    splits = load("folder", tmp_path, images=ImageSettings(size=8, mean=[0, 0, 0], std=[1, 1, 1]))
    assert splits.train.x[:].mean().item() == pytest.approx(0.2)
    assert files.read_json(files.write_json(tmp_path / "a.json", splits.describe()))["n_train"] == 1


def test_a_text_in_a_folder_whose_name_is_no_text_is_read_and_recorded(tmp_path: Path) -> None:
    place = tmp_path / NO_TEXT
    place.mkdir()
    for part in ("train", "valid"):
        (place / f"{part}.txt").write_text("some words and some others\n" * 20)
    found = load_text(place, TextSettings(vocabulary=260, context=4)).describe()
    assert found["name"] == "caf?"
    assert files.read_json(files.write_json(tmp_path / "a.json", found))["name"] == "caf?"


def test_a_recipe_whose_name_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / f"{NO_TEXT}.yaml"
    path.write_text(RECIPE.format(base="rule: DFA"))
    with pytest.raises(SettingsError, match=r"caf\?\.yaml: its name is no UTF-8; rename the file"):
        find(str(path))


def test_what_json_does_not_have_is_written_as_something_that_it_has(tmp_path: Path) -> None:
    path = files.write_json(
        tmp_path / "a.json", {"a": float("inf"), NO_TEXT: [NO_TEXT, (1, float("nan"))], "b": {1: "é"}}
    )
    assert files.read_json(path) == {"a": None, "caf?": ["caf?", [1, None]], "b": {"1": "é"}}
