"""Files that declare more than they hold: refused before it is made, whatever the kind."""

from __future__ import annotations

import gzip
import json
import pickle
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from bpfree.lab.data.pickled import NUMBERS, parse_pickle, unpickled
from bpfree.lab.data.planetoid import _part
from bpfree.lab.data.text import TextSettings, Vocabulary, load_text
from bpfree.lab.data.text import vocabulary as vocabularies
from bpfree.lab.disk import bounded
from bpfree.lab.errors import DataError, SettingsError
from bpfree.lab.recipe.reading import read
from lab.damage.kinds import KINDS
from support.png_files import GREY, png

ROOM = 2**24  # bytes that reading a small file may take here; what the files below ask for is far more


@contextmanager
def little_memory() -> Iterator[None]:
    """Fail if Python or numpy take more than ROOM at once."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < ROOM
    finally:
        tracemalloc.stop()


PICKLES: dict[str, tuple[bytes, str]] = {
    # One bit of a place in the memo is another: the unpickler would make a list as long as that.
    "memo": (b"\x80\x02}r\x00\x00\x00\x40.", "asks for a list of"),
    "memo of a number in letters": (b"\x80\x02}p4000000000\n.", "asks for a list of"),
    "bytes": (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"ab.", "truncated or altered"),
    "bytearray": (b"\x80\x05\x96" + struct.pack("<Q", 2**33) + b"ab.", "truncated or altered"),
    "text": (b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"ab.", "truncated or altered"),
    "number": (b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"ab.", "truncated or altered"),
    "frame": (b"\x80\x04\x95" + struct.pack("<Q", 2**50) + b"}.", "truncated or altered|in place of|holds"),
    "list of bytes": (b"\x80\x03c__builtin__\nlist\nC\x04abcd\x85R.", "calls list"),
    "many values": (b"\x80\x02(" + b"]" * 60_000 + b"l.", "more values than a data set of its size"),
}


@pytest.mark.parametrize("kind", PICKLES)
def test_a_pickle_that_asks_for_much_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "FIXED", ROOM // 2)
    content, said = PICKLES[kind]
    with little_memory(), pytest.raises(DataError, match=rf"^batch.* ({said}).*Fetch the original file again"):
        parse_pickle(content, "batch:")


def test_one_array_under_many_names_is_refused() -> None:
    array = np.zeros(1000, np.float32)
    content = pickle.dumps(dict.fromkeys(range(100), array), 3)
    with pytest.raises(DataError, match="names an array twice"):
        unpickled(content, "x", NUMBERS)
    found = unpickled(pickle.dumps({number: array.copy() for number in range(100)}, 3), "x", NUMBERS)
    assert len(found) == 100


def test_one_list_for_many_nodes_is_no_graph(tmp_path: Path) -> None:
    every = list(range(3000))
    content = pickle.dumps(dict.fromkeys(every, every), 2)
    with little_memory(), pytest.raises(DataError, match="no dictionary of lists of node numbers"):
        _part(tmp_path / "ind.cora.graph", content, "dictionary of lists of node numbers")


@pytest.mark.parametrize("node", [2**63, -1, 2**31])
def test_nodes_that_no_graph_has_are_refused(node: int, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no dictionary of lists of node numbers"):
        _part(tmp_path / "ind.cora.graph", pickle.dumps({0: [node]}, 2), "dictionary of lists of node numbers")


@pytest.mark.parametrize("line", [str(2**63), "9" * 5000, "1_0 x"])
def test_an_index_of_no_node_is_refused(line: str, tmp_path: Path) -> None:
    path = tmp_path / "ind.cora.test.index"
    path.write_text(line)
    with pytest.raises(DataError, match=r"test\.index is no list of node numbers"):
        KINDS["Planetoid's test.index"].read(path)


def test_a_packed_file_is_looked_through_before_anything_of_it_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(bytes(2**24)))
    seen: list[int] = []
    with little_memory(), pytest.raises(DataError, match=r"a\.gz becomes more than 4,194,304 bytes"):
        bounded.unpacked(path, lambda piece: seen.append(len(piece)), limit=2**22)
    assert sum(seen) == 2**22
    content = bytearray(gzip.compress(bytes(2**24)))
    content[-6] ^= 1  # of its own checksum
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.gz cannot be unpacked \(CRC check failed"):
        bounded.unpacked(path)


def test_packed_files_in_several_parts_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"first ") + gzip.compress(b"second") + bytes(64))
    assert bounded.unpacked(path) == b"first second"
    path.write_bytes(gzip.compress(b""))
    assert bounded.unpacked(path) == b""


def test_json_of_many_values_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "FIXED", 2**18)
    for text in ("[" + "[]," * 9000 + "[]]", "[" + "{}," * 9000 + "{}]", "[" + "1," * 19000 + "1]"):
        with little_memory(), pytest.raises(ValueError, match="more values than any result of its size"):
            bounded.parse_json(text.encode())
    epochs = [{"epoch": 1, "train_loss": 0.123456789012345, "eval_accuracy": 97.1234567890123}] * 500
    assert bounded.parse_json(json.dumps(epochs).encode()) == epochs


NINE = ", ".join(["*{}"] * 9)
ALIASES = "a: &a0 [x, x]\n" + "".join(f"b{n}: &a{n + 1} [{NINE.format(*[f'a{n}'] * 9)}]\n" for n in range(9))
MERGES = "a: &a0 {x: 1}\n" + "".join(f"b{n}: &a{n + 1} {{<<: [{NINE.format(*[f'a{n}'] * 9)}]}}\n" for n in range(9))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ALIASES, "its aliases .* make more of it than a file of its size holds"),
        (MERGES, "its aliases .* make more of it than a file of its size holds"),
        ("a: &a [*a]", "its aliases"),
        ("[" * 5000, "cannot be read as YAML"),
        ("# " + "x" * 2**18, "larger than 262,144 bytes"),
        ('title: "\\ud800"', "holds half a letter"),
    ],
)
def test_a_recipe_that_becomes_much_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with little_memory(), pytest.raises(SettingsError, match=rf"r\.yaml cannot be read as YAML|{said}") as refused:
        read(tmp_path / "r.yaml")
    assert "cannot be read as YAML" in str(refused.value)


def test_a_picture_of_much_from_little_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(8, GREY, bytes(100), size=(6000, 6000), rows=1))
    with little_memory(), pytest.raises(DataError, match="declares 6000 x 6000 pixels, and has"):
        KINDS["png"].read(path)


def test_text_is_made_tokens_of_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"some words of line {number}" for number in range(2500)]
    vocabulary = Vocabulary.trained(lines, 300)
    monkeypatch.setattr(vocabularies, "_LETTERS", 1000)
    assert len(list(vocabulary.arrays(lines))) > 50
    together: Callable[[list[str]], list] = vocabulary.tokenizer.encode_batch
    expected = [token for line in together(lines) for token in (*line.ids, vocabulary.end_of_line)]
    assert vocabulary.encode(lines).tolist() == expected


def test_a_text_that_becomes_much_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "FIXED", 2**10)
    for part in ("train", "valid"):
        (tmp_path / f"{part}.txt.gz").write_bytes(gzip.compress(b"again and " * 10**5))
    with pytest.raises(DataError, match=r"valid\.txt\.gz becomes more than .*can be read unpacked"):
        load_text(tmp_path, TextSettings(vocabulary=257))
