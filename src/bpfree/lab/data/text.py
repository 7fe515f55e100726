"""Text from any folder with a training, a validation and a test file, as sequences of byte-pair tokens."""

from __future__ import annotations

import array
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from bpfree.lab.bounded import contents, unpacked
from bpfree.lab.data.samples import Samples
from bpfree.lab.errors import DataError, SettingsError
from bpfree.lab.files import storable

_LINES = 1000
_SMALLEST = 257  # the 256 bytes, with which any text can be written, and the end of a line

MeasuredOn: TypeAlias = Literal["validation", "test"]


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """The options for reading text.

    Args:
        vocabulary: The number of tokens; they are learned from the training file.
        context: The number of tokens in a sequence.
        measured_on: The file that perplexity is measured on. Choose settings on validation, then measure once on test.
    """

    vocabulary: int = 4000
    context: int = 128
    measured_on: MeasuredOn = "validation"

    def __post_init__(self) -> None:
        if self.vocabulary < _SMALLEST:
            raise SettingsError(
                f"--text.vocabulary {self.vocabulary} must be at least {_SMALLEST}: every byte, and the end of a line."
            )
        if self.context < 1:
            raise SettingsError(f"--text.context {self.context} must be at least 1.")


class Sequences(Samples):
    """Sequences of tokens in memory.

    Attributes:
        x: int64, shape ``(n, context)``.
        y: int64, shape ``(n, context)``: the token that follows each of ``x``.
    """


class Vocabulary:
    """Byte pairs (Sennrich et al. 2016; on bytes, Radford et al. 2019) and the end of a line.

    Any text becomes tokens and comes back as it was.

    Args:
        lines: The text from which the byte pairs are learned.
        size: The number of tokens wanted; there are fewer if the lines hold no more.
    """

    def __init__(self, lines: Sequence[str], size: int) -> None:
        # Imported here: who compares rules on pictures needs none of it.
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        self._pairs = Tokenizer(models.BPE())
        self._pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._pairs.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(vocab_size=size - 1, initial_alphabet=alphabet, show_progress=False)
        self._pairs.train_from_iterator(lines, trainer)
        # No special token of the tokenizer's: text that spells its name would become it.
        self.end_of_line: int = self._pairs.get_vocab_size()

    def __len__(self) -> int:
        return self.end_of_line + 1

    def encode(self, lines: Sequence[str]) -> Tensor:
        """Return the lines as one stream of tokens, int64 ``(n,)``: the end of a line stands behind each."""
        stream = array.array("q")
        for first in range(0, len(lines), _LINES):  # the tokenizer keeps far more of a line than its tokens
            for line in self._pairs.encode_batch(lines[first : first + _LINES]):
                stream.extend(line.ids)
                stream.append(self.end_of_line)
        return torch.frombuffer(stream, dtype=torch.int64)

    def decode(self, stream: Tensor) -> list[str]:
        """Return the lines of a stream of tokens; the last one need not have an end."""
        lines: list[list[int]] = [[]]
        for token in stream.tolist():
            if token == self.end_of_line:
                lines.append([])
            else:
                lines[-1].append(token)
        return self._pairs.decode_batch(lines if lines[-1] else lines[:-1])


@dataclass(frozen=True)
class Text:
    """A text, ready for training.

    Attributes:
        name: The name of the folder it was read from.
        train: The data for training.
        evaluation: The data for perplexity and alignment; neither weights nor tokens are learned from it.
        vocabulary: From lines to tokens and back.
        measured_on: Which file that is.
        checksums: File name -> SHA-256 of what was read; ``tokens`` of the tokens that were made of it.
    """

    name: str
    train: Sequences
    evaluation: Sequences
    vocabulary: Vocabulary
    measured_on: MeasuredOn
    checksums: dict[str, str] = field(default_factory=dict)

    @property
    def classes(self) -> int:
        """The number of tokens in the vocabulary."""
        return len(self.vocabulary)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sequence, ``(context,)``."""
        return tuple(self.train.x.shape[1:])

    def first(self, n: int) -> Text:
        """Return the same with the first ``n`` sequences to train on."""
        return replace(self, train=self.train.take(torch.arange(min(n, len(self.train)))))

    def describe(self) -> dict[str, Any]:
        """Return the text as a report shows it; sizes are numbers of tokens to be predicted."""
        return {
            "name": self.name,
            "n_train": self.train.y.numel(),
            "n_eval": self.evaluation.y.numel(),
            "measured_on": self.measured_on,
            "vocabulary": self.classes,
            "context": self.shape[0],
            "checksums": self.checksums,
        }


def load_text(data_dir: Path | None, settings: TextSettings | None = None) -> Text:
    """Read ``train``, ``valid`` and ``test`` (``.txt`` or ``.txt.gz``), one sentence or paragraph a line.

    The vocabulary is learned from the training file alone, so nothing of the evaluated file is known in training. The
    stream of a file's tokens is cut into sequences without overlap; the last tokens, fewer than a sequence, are left
    out. Nothing is kept on disk: reading the Brown corpus takes 6 seconds.

    Args:
        data_dir: The folder.
        settings: The options for reading it.

    Raises:
        DataError: No folder is given; a file is missing, empty, no text, or too short for one sequence; the training
            file has no room for so many tokens.
    """
    settings = settings or TextSettings()
    if data_dir is None:
        raise DataError(
            "text needs --data-dir DIR: a folder with the files train, valid and test, each .txt or .txt.gz, UTF-8, "
            "one sentence or paragraph a line."
        )
    files = _files(data_dir, settings)
    lines = [_lines(path) for path in files]
    vocabulary = _vocabulary(lines[0], settings.vocabulary, files[0])
    streams = [vocabulary.encode(part) for part in lines]
    train, evaluation = (
        _sequences(stream, settings.context, path) for stream, path in zip(streams, files, strict=True)
    )
    tokens = hashlib.sha256(torch.cat(streams).numpy().tobytes()).hexdigest()
    known = checksums(data_dir, settings) | {"tokens": tokens}
    name = storable(data_dir.resolve().name)  # which may be no text
    return Text(name, train, evaluation, vocabulary, settings.measured_on, known)


def checksums(data_dir: Path, settings: TextSettings | None = None) -> dict[str, str]:
    """Return, by name, the SHA-256 of the files that :func:`load_text` reads.

    Args:
        data_dir: The folder.
        settings: The options for reading it.

    Raises:
        DataError: A file is missing, or cannot be read.
    """
    files = _files(data_dir, settings or TextSettings())
    return {path.name: hashlib.sha256(contents(path)).hexdigest() for path in files}


def _files(folder: Path, settings: TextSettings) -> list[Path]:
    """Return the file to train on, and the file to measure on."""
    return [_find(folder, part) for part in ("train", "valid" if settings.measured_on == "validation" else "test")]


def _find(folder: Path, part: str) -> Path:
    found = [path for path in (folder / f"{part}.txt.gz", folder / f"{part}.txt") if path.is_file()]
    if len(found) == 2:
        raise DataError(f"{folder} holds {part}.txt and {part}.txt.gz: which of them is meant? Remove the other.")
    if found:
        return found[0]
    raise DataError(
        f"{part}.txt (or {part}.txt.gz) is missing in {folder}. Text is read from the files train, valid and test, "
        "one sentence or paragraph a line."
    )


def _lines(path: Path) -> list[str]:
    content = unpacked(path) if path.suffix == ".gz" else contents(path)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text ({error}). Convert it first.") from error
    if not text.strip():
        raise DataError(f"{path} is empty. It needs text, one sentence or paragraph a line.")
    # Not splitlines(), which also breaks at characters that stand within a line.
    return text.removesuffix("\n").split("\n")


def _vocabulary(lines: Sequence[str], size: int, path: Path) -> Vocabulary:
    vocabulary = Vocabulary(lines, size)
    if len(vocabulary) < size:
        raise DataError(
            f"{path} holds no more than {len(vocabulary)} different tokens. Ask for as many, "
            f"--text.vocabulary {len(vocabulary)}, or give more text."
        )
    return vocabulary


def _sequences(stream: Tensor, context: int, path: Path) -> Sequences:
    n = (len(stream) - 1) // context
    if n < 1:
        raise DataError(f"{path} has {len(stream)} tokens: too few for one sequence of --text.context {context}.")
    x, y = stream[: n * context], stream[1 : n * context + 1]
    return Sequences(x.view(n, context), y.view(n, context))
