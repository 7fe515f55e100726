"""The parts of a text, for training and for evaluation, wherever they come from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bpfree.lab.data.text.dataset import dataset_parts
from bpfree.lab.data.text.files import LAYOUT, find
from bpfree.lab.data.text.part import Part
from bpfree.lab.data.text.reading import lines
from bpfree.lab.data.text.settings import TextSettings
from bpfree.lab.disk.bounded import unreadable
from bpfree.lab.errors import DataError, SettingsError


@dataclass(frozen=True)
class FilePart:
    """A file of a folder."""

    path: Path

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    @property
    def checksum(self) -> str:
        """The SHA-256 of the file as it lies there, packed or not."""
        try:
            with self.path.open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise unreadable(self.path, error) from error

    def lines(self) -> Iterator[str]:
        """Yield its lines."""
        return lines(self.path)

    def __str__(self) -> str:
        return str(self.path)


def find_parts(data_dir: Path | None, settings: TextSettings) -> tuple[Part, Part]:
    """Return the part to train on, and the part to measure on.

    Raises:
        SettingsError: Both a folder and a data set are given, or the package ``datasets`` is not installed.
        DataError: Neither is given, or what is given has no such parts.
    """
    if settings.dataset is not None:
        if data_dir is not None:
            raise SettingsError(f"--data-dir {data_dir}: the text is that of --text.dataset; leave one of the two out.")
        return dataset_parts(settings)
    if data_dir is None:
        raise DataError(f"text needs --data-dir DIR, a folder with {LAYOUT}; or --text.dataset NAME.")
    return FilePart(find(data_dir, "train")), FilePart(find(data_dir, settings.measured_on))
