"""Lines: those of the file, wherever its pieces end, and however long a line is."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from bpfree.lab.data.text import Vocabulary, reading
from bpfree.lab.data.text.reading import lines, lines_of
from bpfree.lab.disk import bounded
from bpfree.lab.errors import DataError
from support import tiny_text


def written(path: Path, content: bytes, packed: bool = False) -> Path:
    place = path / ("a.txt.gz" if packed else "a.txt")
    place.write_bytes(gzip.compress(content) if packed else content)
    return place


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("piece", [1, 2, 3, 7, 2**20])
def test_lines_are_the_same_wherever_pieces_end(
    packed: bool, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "_CHUNK", piece)
    text = "żółć 🙂\r\n\n \na\x0bb\x85c\u2028d\n\ufeffend"
    found = list(lines(written(tmp_path, text.encode(), packed)))
    assert "".join(found) == text + "\n"
    assert found == [line + "\n" for line in text.split("\n")]


@pytest.mark.parametrize("piece", [5, 64, 2**20])
def test_a_long_line_is_cut_at_blanks_between_words_and_has_the_same_tokens(
    piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "_CHUNK", piece)
    monkeypatch.setattr(reading, "_LONG", 20)
    monkeypatch.setattr(reading, "_LONGEST", 100)
    text = "it's  the  cat that sees 123 fish , and     " * 9 + "it'll see .\nshort\n" + "more of the same " * 20
    found = list(lines(written(tmp_path, text.encode())))
    assert "".join(found) == text + "\n"
    assert max(map(len, found)) < 50
    assert len(found) > 15
    vocabulary = Vocabulary.trained([*tiny_text.lines(300, 0), text], 400)
    whole = [token for line in text.split("\n") for token in vocabulary.encode([line]).tolist()]
    assert [token for array in vocabulary.arrays(found) for token in array.tolist()] == whole
    again = Vocabulary.trained([*tiny_text.lines(300, 0), *found], 400)
    assert again.checksum == vocabulary.checksum


@pytest.mark.parametrize("piece", [7, 64, 2**20])
def test_a_line_without_blanks_is_cut_all_the_same(piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "_CHUNK", piece)
    monkeypatch.setattr(reading, "_LONG", 20)
    monkeypatch.setattr(reading, "_LONGEST", 100)
    found = list(lines(written(tmp_path, b"x" * 250 + b"\nb")))
    assert found == ["x" * 100, "x" * 100, "x" * 50 + "\n", "b\n"]


def test_texts_become_lines() -> None:
    rows = [" = A = \n", "", "two\nlines", "\n", "ends\n\n"]
    assert list(lines_of(rows, "rows")) == [" = A = \n", "\n", "two\n", "lines\n", "\n", "ends\n", "\n"]
    for empty in ([], ["", " \n"]):
        with pytest.raises(DataError, match="rows is empty"):
            list(lines_of(empty, "rows"))


@pytest.mark.parametrize("piece", [1, 4, 2**20])
@pytest.mark.parametrize(
    ("content", "said"),
    [(b"abcdef\xe9gh", "invalid continuation byte at byte 6"), (b"abcde\xc3", "unexpected end of data at byte 5")],
)
def test_what_is_no_utf8_is_named_with_its_place(
    content: bytes, said: str, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "_CHUNK", piece)
    with pytest.raises(DataError, match=rf"a\.txt is no UTF-8 text \({said}\)\. Convert it first"):
        list(lines(written(tmp_path, content)))
