"""A text, ready for training: its parts as sequences of tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bpfree.lab.data.text.cache import token_file, trained_vocabulary
from bpfree.lab.data.text.dataset import dataset_name
from bpfree.lab.data.text.part import Part
from bpfree.lab.data.text.parts import find_parts
from bpfree.lab.data.text.sequences import Sequences
from bpfree.lab.data.text.settings import MeasuredOn, Order, TextSettings
from bpfree.lab.data.text.token_file import TokenFile
from bpfree.lab.data.text.vocabulary import FILE, Vocabulary, tokenizer_file
from bpfree.lab.disk.files import storable
from bpfree.lab.errors import DataError

NOT_COUNTED = -100
"""A target that counts for nothing, as in torch's cross-entropy."""
TOKENS = "tokens"
"""The name of the checksum that is of no file: of the tokens that were made of all."""


@dataclass(frozen=True)
class Text:
    """A text, ready for training.

    Attributes:
        name: The name of the folder or data set it was read from.
        train: The data for training.
        evaluation: The data for perplexity and alignment; neither weights nor tokens are learned from it.
        vocabulary: From lines to tokens and back.
        measured_on: Which part that is.
        words: The number of words of the evaluated part, for perplexity per word: what stands between blanks, and the
            end of each line, as in published counts of WikiText and the Penn Treebank; a tokenizer that drops the ends
            of lines leaves them out here as well.
        order: The order of the sequences in training.
        checksums: Name -> SHA-256 of what was read; under ``TOKENS`` of the tokens that were made of it.
    """

    name: str
    train: Sequences
    evaluation: Sequences
    vocabulary: Vocabulary
    measured_on: MeasuredOn
    words: int
    order: Order = "shuffled"
    checksums: dict[str, str] = field(default_factory=dict)

    @property
    def classes(self) -> int:
        """The number of tokens in the vocabulary."""
        return len(self.vocabulary)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sequence, ``(context,)``."""
        return (self.train.context,)

    def first(self, n: int) -> Text:
        """Return the same with the first ``n`` sequences to train on."""
        return replace(self, train=self.train.take(torch.arange(min(n, len(self.train)))))

    def describe(self) -> dict[str, Any]:
        """Return the text as a report shows it; sizes are numbers of tokens to be predicted."""
        return {
            "name": self.name,
            "n_train": len(self.train) * self.train.context,
            "n_eval": len(self.evaluation) * self.evaluation.context,
            "measured_on": self.measured_on,
            "vocabulary": self.classes,
            "context": self.train.context,
            **({} if self.order == "shuffled" else {"order": self.order}),  # a later option: see run_identity
            "checksums": self.checksums,
        }

    def rest(self) -> tuple[Tensor, Tensor]:
        """Return what ``evaluation`` leaves out: the file's first token, and its last ones, fewer than a sequence.

        The first one is predicted from the end of a line, as the first one of every other line is; where the vocabulary
        has none, it is left out here as well. The last ones are predicted from a whole sequence that ends with them.

        Returns:
            ``x`` and ``y``, int64 ``(k, context)`` with k from 0 to 2; other targets are ``NOT_COUNTED``.
        """
        tokens, context, end = self.evaluation.tokens, self.evaluation.context, self.vocabulary.end_of_line
        rows, known = list[Tensor](), list[slice]()
        if end is not None:
            rows.append(torch.cat([torch.tensor([end]), torch.from_numpy(tokens[:context])]))
            known.append(slice(1, None))
        if last := (len(tokens) - 1) % context:
            rows.append(torch.from_numpy(tokens[-context - 1 :]))
            known.append(slice(None, context - last))
        if not rows:
            return torch.empty(0, context, dtype=torch.int64), torch.empty(0, context, dtype=torch.int64)
        found = torch.stack(rows)
        x, y = found[:, :-1], found[:, 1:].clone()
        for row, counted in zip(y, known, strict=True):
            row[counted] = NOT_COUNTED
        return x, y


def load_text(data_dir: Path | None, settings: TextSettings | None = None) -> Text:
    """Read the parts of a text, one sentence or paragraph a line.

    The vocabulary is learned from the training part alone, so nothing of the evaluated part is known in training, or it
    comes from a file. The stream of a part's tokens is cut into sequences without overlap; the last tokens, fewer than
    a sequence, are left out. Vocabulary and tokens are kept in the cache folder.

    Args:
        data_dir: The folder with the files; None for a ``settings.dataset``.
        settings: The options for reading it.

    Raises:
        SettingsError: Options do not go together, or a package is not installed.
        DataError: No folder is given; a file is missing, empty, no text, or too short for one sequence; the training
            file has no room for so many tokens; the tokenizer's file is none.
        WriteError: The cache cannot be written.
    """
    settings = settings or TextSettings()
    parts = find_parts(data_dir, settings)
    # First what is fast: a mistake in the evaluated part is told before the hour that a large training part may take.
    words, ends = _count(parts[1])
    known = _checksums(parts, settings)
    if settings.tokenizer is None:
        vocabulary = trained_vocabulary(parts[0], known[parts[0].name], settings.vocabulary)
    else:
        vocabulary = Vocabulary.loaded(Path(settings.tokenizer).expanduser())
    files = [token_file(part, known[part.name], vocabulary) for part in parts]
    train, evaluation = (_sequences(file, settings.context, part) for file, part in zip(files, parts, strict=True))
    return Text(
        name=_name(data_dir, settings),
        train=train,
        evaluation=evaluation,
        vocabulary=vocabulary,
        measured_on=settings.measured_on,
        words=words + (ends if vocabulary.has_line_ends else 0),
        order=settings.order,
        checksums=known | {TOKENS: _checksum(files)},
    )


def checksums(data_dir: Path | None, settings: TextSettings | None = None) -> dict[str, str]:
    """Return, by name, the SHA-256 of what :func:`load_text` reads.

    Args:
        data_dir: The folder.
        settings: The options for reading it.

    Raises:
        SettingsError: As of :func:`load_text`.
        DataError: A file is missing, or cannot be read.
    """
    settings = settings or TextSettings()
    return _checksums(find_parts(data_dir, settings), settings)


def _name(data_dir: Path | None, settings: TextSettings) -> str:
    if data_dir is None:
        return dataset_name(str(settings.dataset))
    return storable(data_dir.resolve().name)  # which may be no text


def _checksums(parts: Iterable[Part], settings: TextSettings) -> dict[str, str]:
    found: dict[str, str] = {part.name: part.checksum for part in parts}
    if settings.tokenizer is not None:
        content = tokenizer_file(Path(settings.tokenizer).expanduser()).read_bytes()
        found[FILE] = hashlib.sha256(content).hexdigest()
    return found


def _count(part: Part) -> tuple[int, int]:
    """Return a part's words between blanks, and its ends of lines."""
    words = ends = 0
    for line in part.lines():
        words += len(line.split())
        ends += line.endswith("\n")
    return words, ends


def _checksum(files: Iterable[TokenFile]) -> str:
    """Return the SHA-256 of all tokens as numbers of 8 bytes, as which they stood in memory once."""
    found = hashlib.sha256()
    for file in files:
        for piece in file.pieces():
            found.update(piece.tobytes())
    return found.hexdigest()


def _sequences(tokens: TokenFile, context: int, part: Part) -> Sequences:
    n = (len(tokens) - 1) // context
    if n < 1:
        raise DataError(
            f"{part} has {len(tokens)} tokens: too few for one sequence of {context}, which takes one more. Name a "
            "smaller context (--text.context, or context under text in a recipe), or give more text."
        )
    return Sequences(tokens, context, torch.arange(n))
