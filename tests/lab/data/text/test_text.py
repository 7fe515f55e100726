"""Text: tokens that come back as text, files that know nothing of each other, and what is said of bad ones."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bpfree.lab.data import load
from bpfree.lab.data.text import Sequences, Text, TextSettings, Vocabulary, load_text
from bpfree.lab.errors import DataError, SettingsError
from support import tiny_text


def rows(part: Sequences) -> tuple[torch.Tensor, torch.Tensor]:
    return part.batch(torch.arange(len(part)))


def stream(part: Sequences) -> torch.Tensor:
    x, y = rows(part)
    return torch.cat([x.flatten(), y[-1, -1:]])


@pytest.mark.parametrize(
    "line",
    ["the cat sees fish .", "  two  blanks ", "żółć 🙂\tтекст", "<eol> [UNK] </s>", "a\x0bb\x85c\u2028d", "\r", ""],
)
def test_any_line_comes_back_as_it_was(line: str) -> None:
    vocabulary = Vocabulary.trained(tiny_text.lines(300, 0), 280)
    for lines in ([line, "x"], ["x", line, line], [line]):
        tokens = vocabulary.encode(lines)
        assert int(tokens.max()) < len(vocabulary) == 280
        assert vocabulary.decode(tokens) == lines
        assert (tokens == vocabulary.end_of_line).sum() == len(lines)


def test_frequent_words_are_one_token() -> None:
    vocabulary = Vocabulary.trained(tiny_text.lines(300, 0), 290)
    assert len(vocabulary.encode(["the cat sees fish ."])) == 5 + 1
    assert len(vocabulary.encode(["qqqq"])) == 4 + 1  # bytes


def test_sequences_are_the_file_cut_and_each_token_is_followed_by_its_target(tmp_path: Path) -> None:
    text = tiny_text.text(tmp_path)
    for part, lines in ((text.train, tiny_text.lines(300, 0)), (text.evaluation, tiny_text.lines(40, 1))):
        x, y = rows(part)
        assert x.shape == y.shape == (len(part), 16)
        assert x.dtype == y.dtype == torch.int64
        assert torch.equal(x[:, 1:], y[:, :-1])
        assert torch.equal(x[1:, 0], y[:-1, -1])
        whole = text.vocabulary.encode(lines)
        assert torch.equal(stream(part), whole[: len(stream(part))])
        assert len(whole) - len(stream(part)) < 16  # less than a sequence is left out
        found = text.vocabulary.decode(stream(part))
        assert found[:-1] == lines[: len(found) - 1]
    assert text.describe() | {"checksums": None} == {
        "name": tmp_path.name,
        "n_train": len(text.train) * 16,
        "n_eval": len(text.evaluation) * 16,
        "measured_on": "validation",
        "vocabulary": 280,
        "context": 16,
        "checksums": None,
    }


def test_training_knows_nothing_of_the_evaluated_files(tmp_path: Path) -> None:
    first = tiny_text.text(tmp_path)
    (tmp_path / "valid.txt").write_text("Other words entirely, and many of them. " * 20, encoding="utf-8")
    (tmp_path / "test.txt").write_text("Still others. " * 20, encoding="utf-8")
    second = load_text(tmp_path, tiny_text.HOW)
    assert torch.equal(stream(first.train), stream(second.train))
    line = "Other words"
    assert torch.equal(first.vocabulary.encode([line]), second.vocabulary.encode([line]))
    assert first.checksums["tokens"] != second.checksums["tokens"]


def test_the_test_file_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    tiny_text.folder(tmp_path)
    text = load("text", tmp_path, text=replace(tiny_text.HOW, measured_on="test"))
    assert isinstance(text, Text)
    assert text.vocabulary.decode(stream(text.evaluation))[0] == tiny_text.lines(30, 2)[0]
    assert text.describe()["measured_on"] == "test"
    assert set(text.checksums) == {"train.txt.gz", "test.txt", "tokens"}
    (tmp_path / "valid.txt").unlink()
    load("text", tmp_path, text=replace(tiny_text.HOW, measured_on="test"))  # nobody asked for the other file


def test_packed_or_not_the_tokens_are_the_same(tmp_path: Path) -> None:
    packed = tiny_text.text(tmp_path)
    path = tmp_path / "train.txt.gz"
    (tmp_path / "train.txt").write_bytes(gzip.decompress(path.read_bytes()))
    path.unlink()
    assert load_text(tmp_path, tiny_text.HOW).checksums["tokens"] == packed.checksums["tokens"]


def test_a_file_that_is_there_packed_and_not_is_ambiguous(tmp_path: Path) -> None:
    tiny_text.folder(tmp_path)  # whose train.txt is packed
    (tmp_path / "train.txt").write_text("other words\n")
    with pytest.raises(DataError, match=r"train\.txt and train\.txt\.gz: which of them"):
        load("text", tmp_path)


# The contents name the tests, and every process has to find the same names: no time of day in a gzip header.
@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("valid.txt", None, r"valid\.txt \(or valid\.txt\.gz\) is missing in .* train, valid and test"),
        ("train.txt.gz", None, r"train\.txt .* is missing"),
        ("valid.txt", b"", r"valid\.txt is empty"),
        ("valid.txt", b"\n \n", r"valid\.txt is empty"),
        ("train.txt.gz", gzip.compress(b"some text", mtime=0)[:-4], r"train\.txt\.gz cannot be unpacked"),
        ("train.txt.gz", b"no gzip", r"train\.txt\.gz cannot be unpacked"),
        ("valid.txt", b"caf\xe9", r"valid\.txt is no UTF-8"),
        ("valid.txt", b"a b c", r"valid\.txt has \d+ tokens: too few .* sequence of 16.*--text\.context"),
        (
            "train.txt.gz",
            gzip.compress(b"a b c", mtime=0),
            r"no more than 2\d\d different tokens.*--text\.vocabulary 2\d\d",
        ),
    ],
)
def test_files_that_do_not_serve_are_named(file: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tiny_text.folder(tmp_path) / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_text(tmp_path, tiny_text.HOW)


def test_what_is_asked_in_vain() -> None:
    with pytest.raises(DataError, match=r"text needs --data-dir DIR.* one sentence or paragraph a line"):
        load("text")
    with pytest.raises(SettingsError, match=r"leave --validation out.*--text\.measured_on test"):
        load("text", Path(), validation=10)
    with pytest.raises(SettingsError, match=r"--text\.vocabulary 256 must be at least 257"):
        TextSettings(vocabulary=256)
    with pytest.raises(SettingsError, match=r"--text\.context 0"):
        TextSettings(context=0)
