"""The options for reading text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from bpfree.lab.errors import SettingsError

SMALLEST = 257
"""The least number of tokens: the 256 bytes, with which any text can be written, and the end of a line."""
_VOCABULARY, _COLUMN = 4000, "text"

MeasuredOn: TypeAlias = Literal["validation", "test"]
Order: TypeAlias = Literal["shuffled", "streams"]


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """The options for reading text.

    Args:
        vocabulary: The number of tokens; they are learned from the training file.
        context: The number of tokens in a sequence.
        measured_on: The file that perplexity is measured on. Choose settings on validation, then measure once on test.
        tokenizer: A tokenizer.json of Hugging Face, or a folder that holds one, in place of learned tokens.
        dataset: A data set of the package datasets in place of files, NAME or NAME:CONFIG or a local folder.
        column: The column of that data set that holds the text.
        order: Sequences of the training file are drawn anew in each pass (shuffled), or the file is cut into as many
            parts as a batch has sequences, which are read side by side from their beginnings (streams).
    """

    vocabulary: int = _VOCABULARY
    context: int = 128
    measured_on: MeasuredOn = "validation"
    tokenizer: str | None = None
    dataset: str | None = None
    column: str = _COLUMN
    order: Order = "shuffled"

    def __post_init__(self) -> None:
        if self.vocabulary < SMALLEST:
            raise SettingsError(
                f"--text.vocabulary {self.vocabulary} must be at least {SMALLEST}: every byte, and the end of a line."
            )
        if self.context < 1:
            raise SettingsError(f"--text.context {self.context} must be at least 1.")
        for name in ("tokenizer", "dataset", "column"):
            if getattr(self, name) == "":
                raise SettingsError(f"--text.{name}: it names nothing; leave it out.")
        if self.tokenizer is not None and self.vocabulary != _VOCABULARY:
            raise SettingsError(
                f"--text.vocabulary {self.vocabulary}: the tokens are those of --text.tokenizer; leave one of the two "
                "out."
            )
        if self.dataset is None and self.column != _COLUMN:
            raise SettingsError(f"--text.column {self.column}: only a --text.dataset has columns; leave it out.")
