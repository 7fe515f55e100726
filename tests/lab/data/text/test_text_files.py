"""The files of a text: WikiText's names, what is ambiguous, and words as published counts have them."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from bpfree.lab.data.text import checksums, load_text
from bpfree.lab.data.text.files import find
from bpfree.lab.data.text.loading import _count
from bpfree.lab.data.text.parts import FilePart
from bpfree.lab.errors import DataError
from support import tiny_text
from support.sheets import DATA

RESULTS = Path(__file__).parents[4] / "results"
# As WikiText has it: lines begin and end with a blank, and an empty one holds a blank.
WIKITEXT = " \n = The <unk> cat = \n \n The cat @-@ like dog sees 1 @,@ 000 trees . \n \n"
WORDS = 0 + 5 + 0 + 11 + 0


@pytest.fixture(params=["wiki.{}.tokens", "wiki.{}.raw", "{}.txt", "wiki.{}.tokens.gz"])
def wikitext(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder of WikiText's shape."""
    for part, times in (("train", 60), ("valid", 20), ("test", 10)):
        content = (WIKITEXT * times).encode()
        name = request.param.format(part)
        (tmp_path / name).write_bytes(gzip.compress(content, mtime=0) if name.endswith(".gz") else content)
    return tmp_path


def test_wikitext_is_read_as_it_is_and_its_words_are_counted_with_the_ends_of_lines(wikitext: Path) -> None:
    for part, times in (("validation", 20), ("test", 10)):
        how = replace(tiny_text.HOW, measured_on=part)
        text = load_text(wikitext, how)
        assert text.words == times * (WORDS + 5)
        tokens = text.evaluation.tokens
        assert text.vocabulary.decode_text(tokens[:]) == WIKITEXT * times
        names = {find(wikitext, "train").name, find(wikitext, part).name}
        assert set(checksums(wikitext, how)) == names


@pytest.mark.skipif(not (DATA / "wikitext-2").is_dir(), reason="needs ../shared/data/wikitext-2")
@pytest.mark.parametrize(("part", "words"), [("valid", 217_646), ("test", 245_569)])
def test_words_are_those_that_wikitext_is_published_with(part: str, words: int) -> None:
    assert sum(_count(FilePart(DATA / "wikitext-2" / f"{part}.txt"))) == words


@pytest.mark.skipif(not (DATA / "brown").is_dir(), reason="needs ../shared/data/brown")
def test_the_text_of_committed_results_is_what_it_was() -> None:
    """Its facts are part of the identity of their runs: sizes, files, and every token."""
    text = load_text(DATA / "brown")
    for name in ("brown-pre", "brown-post", "brown-12"):
        recorded = json.loads((RESULTS / name / "comparison.json").read_text())["data"]
        assert text.describe() == recorded | {"measured_on": "validation"}
    assert text.words == 60_812


@pytest.mark.parametrize("name", ["validation.txt", "wiki.validation.tokens", "wiki.validation.raw.gz", "valid.txt.gz"])
def test_mirrors_call_the_validation_file_otherwise(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    assert find(tmp_path, "validation") == tmp_path / name


@pytest.mark.parametrize(
    "names",
    [("train.txt", "train.txt.gz"), ("train.txt", "wiki.train.tokens"), ("wiki.train.tokens", "wiki.train.raw")],
)
def test_a_part_that_is_there_twice_is_ambiguous(names: tuple[str, str], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=rf"{names[0]} and {names[1]}: which of them is meant\? Remove the other"):
        find(tmp_path, "train")


def test_a_folder_with_something_else_says_what_is_meant(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.txt .*is missing in .*wiki\.train\.tokens \(or \.raw\)"):
        find(tmp_path, "train")
    below = tmp_path / "wikitext-103"
    below.mkdir()
    (below / "wiki.train.tokens").touch()
    with pytest.raises(DataError, match=r"Is .*/wikitext-103 meant\?"):
        find(tmp_path, "train")
    (tmp_path / "train-00000-of-00001.parquet").touch()
    with pytest.raises(DataError, match=rf"give --text\.dataset {tmp_path} in place of --data-dir"):
        find(tmp_path, "train")
