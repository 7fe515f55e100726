"""The cache of a log: a folder with a file for each column, which is there whole or not at all.

A cache is known by the content of the log's files and by the schema, so that of another log or schema is never found.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpfree.errors import BpfreeError
from bpfree.lab.data.clicks.known_checksums import file_checksum
from bpfree.lab.data.clicks.schema import PARTS, Part, Schema
from bpfree.lab.data.clicks.sources import Source
from bpfree.lab.data.download import cache_folder
from bpfree.lab.disk.files import read_json

FORMAT = "bpfree-clicks/1"
"""The version of the files, and of the way in which a log becomes rows."""
MANIFEST = "manifest.json"
LABELS = "labels.bin"


@dataclass(frozen=True)
class Field:
    """A column of identifiers.

    Attributes:
        name: Its name in the log.
        size: The number of identifiers.
        dtype: The kind of number in its file.
    """

    name: str
    size: int
    dtype: str


@dataclass(frozen=True)
class Cache:
    """A log's cache, which is whole.

    Attributes:
        folder: The folder.
        facts: The content of its manifest.
    """

    folder: Path
    facts: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Cache | None:
        """Open a cache; None if there is none, or it is damaged or another's."""
        try:
            facts = read_json(folder / MANIFEST)
            if facts["format"] != FORMAT or facts["key"] != folder.name:
                return None
            whole = all(file_checksum(folder / name) == found for name, found in facts["files"].items())
        except (BpfreeError, KeyError, TypeError, AttributeError):
            return None
        return cls(folder, facts) if whole else None

    @property
    def fields(self) -> list[Field]:
        """The columns of identifiers, in their order."""
        return [Field(entry["name"], entry["size"], entry["dtype"]) for entry in self.facts["fields"]]

    @property
    def counts(self) -> dict[Part, int]:
        """The number of rows of each part."""
        return {part: int(self.facts["rows"][part]) for part in PARTS}

    @property
    def clicks(self) -> dict[Part, int]:
        """The number of clicks of each part."""
        return {part: int(self.facts["clicks"][part]) for part in PARTS}

    def ids_file(self, number: int) -> Path:
        """Return the file of a field's identifiers: those of train, validation and test, one behind the other."""
        return self.folder / ids_name(number)

    def vocabulary_file(self, number: int) -> Path:
        """Return the file of a field's vocabulary."""
        return self.folder / vocabulary_name(number)


def ids_name(number: int) -> str:
    """Return the name of the file of a field's identifiers."""
    return f"{number:04d}.bin"


def vocabulary_name(number: int) -> str:
    """Return the name of the file of a field's vocabulary."""
    return f"{number:04d}.vocabulary"


def source_checksums(sources: Sequence[Source], joined: Sequence[Path]) -> dict[str, str]:
    """Return, by its place in the folder, the SHA-256 of each file of a log, and of the tables it is joined with.

    Raises:
        DataError: One cannot be read.
    """
    found = {source.name: file_checksum(source.path) for source in sources}
    return found | {path.name: file_checksum(path) for path in joined}


def place(schema: Schema, sources: Sequence[Source], checksums: Mapping[str, str]) -> Path:
    """Return the folder of a log's cache."""
    names = [source.name for source in sources]
    # The order counts and names do not: a log that has moved is the same.
    content = [[source.part, checksums[source.name]] for source in sources]
    content += [[None, found] for name, found in checksums.items() if name not in names]
    key = json.dumps([FORMAT, schema.describe(), content], sort_keys=True)
    return cache_folder() / "clicks" / hashlib.sha256(key.encode()).hexdigest()[:32]


def remove(folder: Path) -> None:
    """Delete a folder that is no whole cache."""
    shutil.rmtree(folder, ignore_errors=True)
