"""From lines to tokens and back, by a tokenizer that was trained here or comes from a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bpfree.lab.disk.bounded import contents, parse_json
from bpfree.lab.disk.files import write_text
from bpfree.lab.errors import DataError

FILE = "tokenizer.json"
"""The name of Hugging Face's file of a tokenizer."""
_LETTERS = 2**20  # of the lines that are encoded at once: the tokenizer keeps far more of a line than its tokens
_SPARSE = 4  # numbers a token: a model has a row for each, also for those that are left out
_OLDER_FILES = ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model")


class Vocabulary:
    """A tokenizer of the package ``tokenizers``. Every line is encoded with its end, and by itself.

    Args:
        tokenizer: The tokenizer. What it does to sentences for other tasks is switched off: special tokens around them,
            truncation, padding, and dropout of merges, by which a text would have other tokens each time.

    Attributes:
        end_of_line: The token of a line's end; None where the tokenizer has no single one, or drops it.
        has_line_ends: Whether the ends of lines are among the tokens at all.

    Raises:
        ValueError: Nearly all numbers up to its largest one are left out, or it cannot encode the end of a line.
    """

    def __init__(self, tokenizer: Any) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if getattr(tokenizer.model, "dropout", None) is not None:
            tokenizer.model.dropout = None
        self.tokenizer = tokenizer
        # Not the number of its tokens: some files leave numbers out.
        self._size = 1 + max(tokenizer.get_vocab().values(), default=-1)
        if self._size > _SPARSE * (tokenizer.get_vocab_size() + 1000):
            raise ValueError(f"its {tokenizer.get_vocab_size():,} tokens have numbers up to {self._size - 1:,}")
        ends = self._ids("\n")
        self.end_of_line: int | None = ends[0] if len(ends) == 1 else None
        self.has_line_ends = bool(ends)

    @classmethod
    def trained(cls, lines: Iterable[str], size: int) -> Vocabulary:
        r"""Learn byte pairs (Sennrich et al. 2016; on bytes, Radford et al. 2019), and add the end of a line.

        Any text becomes tokens and comes back as it was.

        Args:
            lines: The text, with or without the lines' ``"\n"``.
            size: The number of tokens wanted; there are fewer if the lines hold no more.
        """
        # Imported here: who compares rules on pictures needs none of it.
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

        pairs = Tokenizer(models.BPE())
        pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        pairs.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(vocab_size=size - 1, initial_alphabet=alphabet, show_progress=False)
        pairs.train_from_iterator((line.removesuffix("\n") for line in lines), trainer)
        # No special token, which text that spells its name would become, and which decoding leaves out.
        pairs.add_tokens([AddedToken("\n", normalized=False, special=False)])
        return cls(pairs)

    @classmethod
    def parsed(cls, content: str) -> Vocabulary:
        """Make one of the content of a ``tokenizer.json``.

        Raises:
            ValueError: It is none.
        """
        from tokenizers import Tokenizer

        if not isinstance(parse_json(content.encode()), dict):
            raise ValueError("it is no tokenizer")
        try:
            return cls(Tokenizer.from_str(content))
        except Exception as error:  # the package raises nothing more special
            raise ValueError(str(error)) from error

    @classmethod
    def loaded(cls, path: Path) -> Vocabulary:
        """Read a ``tokenizer.json``, or that of a folder.

        Raises:
            DataError: There is none, or it is no such file, or holds no tokens.
        """
        file = tokenizer_file(path)
        try:
            found = cls.parsed(contents(file).decode("utf-8"))
        except ValueError as error:  # UnicodeDecodeError is one
            raise DataError(f"{file} is no {FILE} of Hugging Face ({error}). Save the tokenizer again.") from error
        if not len(found):
            raise DataError(f"{file} holds no tokens. Save the tokenizer after training it.")
        return found

    def __len__(self) -> int:
        return self._size

    @property
    def numbers(self) -> dict[str, int]:
        """The number of each token, as the tokenizer spells tokens."""
        found: dict[str, int] = self.tokenizer.get_vocab()
        return found

    @property
    def checksum(self) -> str:
        """The SHA-256 of the tokenizer."""
        return hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest()

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest kind of number that holds every token, little-endian: 2 bytes or 4."""
        return np.dtype("<u2" if len(self) <= 2**16 else "<u4")

    def arrays(self, lines: Iterable[str]) -> Iterator[NDArray[Any]]:
        """Yield the tokens of a stream of lines, piece by piece, of :attr:`dtype`."""
        for batch in _batches(lines):
            yield np.concatenate([np.array(line.ids, dtype=self.dtype) for line in self._encoded(batch)])

    def encode(self, lines: Iterable[str]) -> Tensor:
        r"""Return the tokens of lines, int64 ``(n,)``; each gets its ``"\n"`` if it has none."""
        ended = (line if line.endswith("\n") else f"{line}\n" for line in lines)
        found = [array.astype(np.int64) for array in self.arrays(ended)]
        return torch.from_numpy(np.concatenate(found)) if found else torch.empty(0, dtype=torch.int64)

    def encode_text(self, text: str) -> Tensor:
        """Return the tokens of a text that goes on, such as a prompt, int64 ``(n,)``: no end is put behind it."""
        return torch.tensor(self._ids(text), dtype=torch.int64)

    def unknown(self, text: str) -> list[str]:
        """Return the parts of a text for which there are no tokens: they would be dropped, or become one for all."""
        # Behind a letter that is dropped the places of tokens are shifted, so these are looked for one by one.
        blank, letters = set(self._ids(" ")), dict.fromkeys("".join(text.split()))
        if dropped := [letter for letter in letters if blank.issuperset(self._ids(letter))]:
            return dropped
        model = json.loads(self.tokenizer.to_str())["model"]
        marks = {model.get("unk_id"), self.tokenizer.token_to_id(model.get("unk_token") or "")} - {None}
        found = self.tokenizer.encode(text, add_special_tokens=False)
        spans = zip(found.ids, found.offsets, strict=True)
        known = {place for token, (first, end) in spans if token not in marks for place in range(first, end)}
        missing = "".join(" " if place in known else letter for place, letter in enumerate(text))
        return list(dict.fromkeys(missing.split()))

    def decode_text(self, stream: Tensor) -> str:
        """Return the text of tokens, special ones included."""
        return self.tokenizer.decode(stream.tolist(), skip_special_tokens=False)

    def decode(self, stream: Tensor) -> list[str]:
        """Return the lines of a stream of tokens, without their ends; the last one need not have had one."""
        return self.decode_text(stream).removesuffix("\n").split("\n")

    def save(self, folder: Path) -> Path:
        """Write ``tokenizer.json`` and what transformers' ``AutoTokenizer`` needs beside it; return the first's path.

        Raises:
            WriteError: A file could not be written.
        """
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        write_text(folder / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")
        return write_text(folder / FILE, self.tokenizer.to_str(pretty=True))

    def _ids(self, text: str) -> list[int]:
        return self._encoded([text])[0].ids

    def _encoded(self, lines: list[str]) -> list[Any]:
        try:
            return self.tokenizer.encode_batch_fast(lines, add_special_tokens=False)
        except Exception as error:  # the package raises nothing more special
            raise DataError(
                f"the tokenizer cannot encode the text ({error}). Take one with a token for what it does not know."
            ) from error


def tokenizer_file(path: Path) -> Path:
    """Return the file that ``--text.tokenizer`` names, by itself or by its folder.

    Raises:
        DataError: There is none.
    """
    if path.is_file():
        return path
    if (path / FILE).is_file():
        return path / FILE
    how = f"Name a {FILE} of Hugging Face, or a folder that holds one."
    if not path.is_dir():
        raise DataError(f"--text.tokenizer {path}: there is no such file. {how}")
    if any((path / name).is_file() for name in _OLDER_FILES):
        how = (
            "It holds older files; transformers' AutoTokenizer.from_pretrained(FOLDER).save_pretrained(NEW) writes one."
        )
    raise DataError(f"--text.tokenizer {path}: the folder holds no {FILE}. {how}")


def _batches(lines: Iterable[str]) -> Iterator[list[str]]:
    batch, letters = list[str](), 0
    for line in lines:
        batch.append(line)
        letters += len(line)
        if letters >= _LETTERS:
            yield batch
            batch, letters = [], 0
    if batch:
        yield batch
