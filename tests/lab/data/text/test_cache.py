"""What is kept of a text: made once, known by its content, and made anew when it is not what was written."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bpfree.lab.data.text import Text, TextSettings, Vocabulary, load_text, token_file
from bpfree.lab.data.text.token_file import TokenFile, write
from bpfree.lab.errors import DataError, WriteError
from support import tiny_text

HOW = tiny_text.HOW


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bpfree" / "text"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_text.folder(tmp_path / "corpus")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is made, in place of being found."""
    found: list[str] = []
    trained, arrays = Vocabulary.trained.__func__, Vocabulary.arrays

    def train(kind: type[Vocabulary], *arguments: Any) -> Vocabulary:
        found.append("vocabulary")
        return trained(kind, *arguments)

    def encode(self: Vocabulary, lines: Any) -> Iterator[Any]:
        found.append("tokens")
        return arrays(self, lines)

    monkeypatch.setattr(Vocabulary, "trained", classmethod(train))
    monkeypatch.setattr(Vocabulary, "arrays", encode)
    return found


def content(text: Text) -> list[Any]:
    parts = [part.batch(torch.arange(len(part))) for part in (text.train, text.evaluation)]
    return [text.describe(), text.words, *(rows.tolist() for part in parts for rows in part)]


def test_a_text_is_tokenized_once(cache: Path, folder: Path, made: list[str]) -> None:
    first = content(load_text(folder, HOW))
    assert made == ["vocabulary", "tokens", "tokens"]
    assert content(load_text(folder, HOW)) == first
    assert len(made) == 3
    load_text(folder, replace(HOW, context=8, order="streams"))  # another cut of the same tokens
    assert len(made) == 3
    assert sorted(path.name.partition("-")[0] for path in cache.iterdir()) == ["tokens", "tokens", "vocabulary"]


def test_another_content_is_another_text_and_another_place_is_not(folder: Path, made: list[str], cache: Path) -> None:
    load_text(folder, HOW)
    moved = shutil.move(folder, folder.with_name("moved"))
    load_text(moved, HOW)
    assert len(made) == 3
    (moved / "valid.txt").write_text("a dog sees him .\n" * 40)
    load_text(moved, HOW)
    assert made[3:] == ["tokens"]
    load_text(moved, replace(HOW, vocabulary=285))
    assert made[4:] == ["vocabulary", "tokens", "tokens"]
    load_text(moved, replace(HOW, measured_on="test"))
    assert made[7:] == ["tokens"]


def flipped(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "the middle": lambda path: flipped(path, path.stat().st_size * 2 // 3),
    "the last byte": lambda path: flipped(path, -1),
    "the header": lambda path: flipped(path, 30),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0\0"),
    "empty": lambda path: path.write_bytes(b""),
    "no such file": lambda path: path.write_bytes(b"[1, 2]"),
    "another": lambda path: path.write_bytes(sorted(path.parent.glob(f"*{path.suffix}"))[0].read_bytes()),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_or_foreign_file_is_made_anew(how: str, cache: Path, folder: Path, made: list[str]) -> None:
    first = content(load_text(folder, HOW))
    load_text(folder, replace(HOW, vocabulary=285))
    keys = {path: path.read_bytes() for path in cache.iterdir()}
    for path in sorted(keys):
        made.clear()
        DAMAGE[how](path)
        if path.read_bytes() == keys[path]:
            continue  # it was the other one
        assert content(load_text(folder, HOW)) == first
        load_text(folder, replace(HOW, vocabulary=285))
        assert made == [path.name.partition("-")[0]]
        assert path.read_bytes() == keys[path]


def test_interrupted_writing_leaves_nothing_that_is_used(
    cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = Vocabulary.arrays

    def interrupted(self: Vocabulary, lines: Any) -> Iterator[Any]:
        yield from list(arrays(self, lines))[:1]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Vocabulary, "arrays", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load_text(folder, HOW)
    assert [path.name.partition("-")[0] for path in cache.iterdir()] == ["vocabulary"]
    (cache / ".bpfree-killed.part").write_bytes(b"half")  # what a killed process leaves
    load_text(folder, HOW)
    assert sorted(path.name.partition("-")[0] for path in cache.iterdir()) == ["tokens", "tokens", "vocabulary"]


def test_a_text_that_turns_out_to_be_none_leaves_no_tokens(cache: Path, folder: Path, tmp_path: Path) -> None:
    tokenizer = load_text(folder, HOW).vocabulary.save(tmp_path / "saved")
    (folder / "train.txt.gz").unlink()
    (folder / "train.txt").write_bytes(b"some words\n" * 10**4 + b"caf\xe9")
    before = set(cache.iterdir())
    with pytest.raises(DataError, match=r"train\.txt is no UTF-8 .* at byte 110,003"):
        load_text(folder, TextSettings(tokenizer=str(tokenizer), context=16))
    assert set(cache.iterdir()) == before


def test_a_cache_that_cannot_be_written_is_named(cache: Path, folder: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file in the folder's place")
    with pytest.raises(WriteError, match=r"could not be written .*XDG_CACHE_HOME"):
        load_text(folder, HOW)


@pytest.mark.parametrize(("size", "dtype"), [(2**16, "<u2"), (2**16 + 1, "<u4")])
def test_tokens_take_two_bytes_where_they_fit(size: int, dtype: str, tmp_path: Path) -> None:
    vocabulary = Vocabulary.trained(tiny_text.lines(10, 0), 260)
    vocabulary._size = size
    assert vocabulary.dtype == np.dtype(dtype)
    tokens = np.array([0, size - 1, 5])
    write(tmp_path / "a.bin", "key", vocabulary.dtype, [tokens[:2], tokens[2:]])
    found = TokenFile.open(tmp_path / "a.bin", "key")
    assert found is not None
    assert found[:].tolist() == tokens.tolist()
    assert (tmp_path / "a.bin").stat().st_size == 4096 + 3 * vocabulary.dtype.itemsize
    assert json.loads((tmp_path / "a.bin").read_bytes()[:4096])["count"] == 3
    assert TokenFile.open(tmp_path / "a.bin", "other") is None


def test_windows_are_the_tokens_from_each_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_file, "_MAPPED", 2**17)  # what was read is unmapped again and again
    tokens = np.random.default_rng(0).integers(0, 60_000, 200_000)
    write(tmp_path / "a.bin", "key", np.dtype("<u2"), np.array_split(tokens, 7))
    found = TokenFile.open(tmp_path / "a.bin", "key")
    assert found is not None
    assert len(found) == len(tokens)
    starts = np.random.default_rng(1).integers(0, 200_000 - 17, 500)
    for part in np.array_split(starts, 50):
        rows = found.windows(part, 17)
        assert rows.dtype == np.int64
        assert np.array_equal(rows, np.stack([tokens[start : start + 17] for start in part]))
    assert np.array_equal(np.concatenate(list(found.pieces())), tokens)


def test_memory_stays_flat_over_a_large_file(tmp_path: Path) -> None:
    """40 million tokens are 80 MB in the file and 320 MB as int64: training reads them in any order, in 40 MB more."""
    count, piece = 40_000_000, np.arange(10**6) % 50_000
    write(tmp_path / "a.bin", "key", np.dtype("<u2"), (piece for _ in range(count // len(piece))))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tokens = TokenFile.open(tmp_path / "a.bin", "key")
    assert tokens is not None
    starts = np.random.default_rng(0).permutation(count // 128 - 1) * 128
    for part in np.array_split(starts[:30_000], 500):
        tokens.windows(part, 129)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 80 * 1024  # KiB
    assert resident < before * 1024 + 80 * 2**20
