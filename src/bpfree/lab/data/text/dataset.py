"""Text of a data set of the package ``datasets``: by its name on Hugging Face, or a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpfree.errors import nearest
from bpfree.lab.data.text.part import Part
from bpfree.lab.data.text.reading import lines_of
from bpfree.lab.data.text.settings import TextSettings
from bpfree.lab.errors import DataError, SettingsError
from bpfree.lab.extras import missing

_ROWS = 1000
_VALIDATION = ("validation", "valid", "dev")


@dataclass(frozen=True)
class DatasetPart:
    """One split: the rows of a column, each of one line or several. Rows without a text are left out.

    Attributes:
        rows: The split.
        column: The column's name.
        name: The split's name.
        place: What the user calls the data set.
    """

    rows: Any
    column: str
    name: str
    place: str

    @property
    def checksum(self) -> str:
        """The SHA-256 of the lines: how the data set is stored does not count."""
        found = hashlib.sha256()
        for line in self.lines():
            found.update(line.encode())
        return found.hexdigest()

    def lines(self) -> Iterator[str]:
        """Yield its lines."""
        return lines_of(self._texts(), str(self))

    def _texts(self) -> Iterator[str]:
        for batch in self.rows.select_columns([self.column]).iter(_ROWS):
            yield from (text for text in batch[self.column] if text is not None)

    def __str__(self) -> str:
        return f"{self.place}, split {self.name}"


def dataset_parts(settings: TextSettings) -> tuple[Part, Part]:
    """Return the split to train on, and the split to measure on.

    Raises:
        SettingsError: The package is not installed.
        DataError: The data set cannot be had, or has no such splits, or no such column of texts.
    """
    place = str(settings.dataset)
    splits = _load(place)
    evaluated = _VALIDATION if settings.measured_on == "validation" else ("test",)
    return _part(splits, ("train",), settings.column, place), _part(splits, evaluated, settings.column, place)


def dataset_name(place: str) -> str:
    """Return what records call a data set: its name, or that of its folder."""
    folder = Path(place).expanduser()
    return folder.resolve().name if folder.is_dir() else place


def _load(place: str) -> Mapping[str, Any]:
    try:
        # Imported here: it is an extra, and takes seconds.
        from datasets import DatasetDict, load_dataset, load_dataset_builder, load_from_disk
    except ModuleNotFoundError as error:
        raise SettingsError(f"--text.dataset {place}: {missing(error) or error}") from error
    folder, files = Path(place).expanduser(), None
    try:
        if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
            found = load_from_disk(str(folder))
        else:
            name, _, config = (str(folder), "", "") if folder.is_dir() else place.partition(":")
            files = load_dataset_builder(name, config or None).config.data_files
            found = load_dataset(name, config or None)
    except Exception as error:  # of its own, of the network's, of the file formats'
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DataError(
            f"--text.dataset {place} cannot be loaded ({reason}). Check the name (NAME or NAME:CONFIG); what has not "
            "been downloaded before needs a network, or name a folder that holds the data set."
        ) from error
    _check_files(files or {}, place)
    return found if isinstance(found, DatasetDict) else {str(found.split or "train"): found}


def _check_files(files: Mapping[Any, Sequence[str]], place: str) -> None:
    """Refuse a file that is in two splits: train_dev.txt, by its name, would be trained on and measured on."""
    splits: dict[str, str] = {}
    for split, names in files.items():
        for name in names:
            if name in splits:
                raise DataError(
                    f"--text.dataset {place}: the package datasets puts {name} into the splits {splits[name]} and "
                    f"{split}, because its name holds both words. Rename the file."
                )
            splits[name] = str(split)


def _part(splits: Mapping[str, Any], names: tuple[str, ...], column: str, place: str) -> Part:
    name = next((name for name in names if name in splits), None)
    if name is None:
        raise DataError(
            f"--text.dataset {place} has no split {names[0]!r}, only {', '.join(map(repr, splits))}. Text needs a "
            "split train and another one to measure on, which --text.measured_on names."
        )
    rows = splits[name]
    if column not in rows.column_names:
        raise DataError(f"--text.column {column}: {place} has no such column. {nearest(column, rows.column_names)}")
    kind = getattr(rows.features[column], "dtype", None)
    if kind not in ("string", "large_string"):
        raise DataError(f"--text.column {column}: {place} holds no texts there, but {kind or 'lists'}.")
    return DatasetPart(rows, column, name, place)
