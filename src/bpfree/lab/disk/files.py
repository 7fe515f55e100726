"""Files that are there whole or not at all, and JSON that says whether it is as it was written."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bpfree.lab.disk.bounded import parse_json
from bpfree.lab.disk.checksums import is_sealed, is_whole, sealed, unsealed
from bpfree.lab.disk.leftovers import sweep, temporary_file, temporary_folder
from bpfree.lab.errors import DamageError, WriteError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to, and put it in ``path``'s place at the end.

    A killed process or a full disk leaves the old file, or none, and never half of a new one.

    Raises:
        WriteError: The file could not be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        # In the same folder: only within one file system does a replacement swap files in one step.
        with temporary_file(path.parent) as temporary:
            yield temporary
            _store(temporary)
            # Temporary files may be read by their owner alone.
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
            _store(path.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise WriteError(f"{path} could not be written ({reason}). Free some space or name another folder.") from error


def require_place(path: Path) -> None:
    """Make the folder of a file that is written later.

    Raises:
        WriteError: The file cannot stand there.
    """
    if path.is_dir():
        raise WriteError(f"{path} is a folder. Name a file.")
    make_folder(path.parent)


def _store(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name != "posix" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``path`` to write to, and give it that name at the end.

    A killed process or a full disk leaves no folder of this name, and never half of one.

    Raises:
        WriteError: It could not be written.
    """
    try:
        with temporary_folder(path.parent) as temporary:
            yield temporary
            for file in temporary.iterdir():
                _store(file)
            temporary.chmod(0o777 & ~_umask())  # it was its owner's alone
            temporary.rename(path)
            _store(path.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise WriteError(f"{path} could not be written ({reason}). Free some space or name another folder.") from error


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, unless it is there.

    Raises:
        WriteError: It cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise WriteError(f"the folder {path} cannot be made ({reason}). Name another one for results.") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def file_name(text: str) -> str:
    """Make a file's name of any text; what is no letter, digit, dot, hyphen or underscore becomes a hyphen."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in text)


def write_text(path: Path, text: str) -> Path:
    """Write ``text`` to ``path`` in one step, see :func:`replacing`; return the path."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def write_json(path: Path, values: dict[str, Any]) -> Path:
    """Write ``values`` as JSON in one step, a checksum behind them; see :func:`storable` and :func:`json_lines`."""
    return write_text(path, json_lines(sealed(storable(values))))


def json_lines(values: dict[str, Any]) -> str:
    """Return JSON of one line an entry, and of one line an item where an entry is a list of dictionaries.

    Without spaces: indented, the files of results are half as large again. In one line, no change could be read.
    """
    return "{\n" + ",\n".join(f"{_json(name)}:{_lines(value)}" for name, value in values.items()) + "\n}\n"


def _lines(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return "[\n" + ",\n".join(map(_json, value)) + "\n]"
    return _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def read_json(path: Path) -> Any:
    """Read a JSON file that :func:`write_json` has written.

    Raises:
        DamageError: The file is no JSON, or not as it was written.
    """
    remedy = "Delete it and repeat the command."
    try:
        values = parse_json(path.read_bytes())
    except OSError as error:
        raise DamageError(f"{path} cannot be read ({error.strerror}). {remedy}") from error
    except ValueError as error:
        raise DamageError(f"{path} is not readable as JSON ({error}). {remedy}") from error
    if not is_sealed(values):
        raise DamageError(f"{path} has no checksum: it is damaged, or of a version that wrote none. {remedy}")
    if not is_whole(values):
        raise DamageError(f"{path} is damaged: its checksum is not that of what stands in it. {remedy}")
    return unsealed(values)


def storable(value: Any) -> Any:
    """Return ``value`` as a JSON file can hold it: None for NaN and infinity, and question marks for half letters.

    Half letters, which are no text, come from names of files that are no UTF-8.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {storable(str(key)): storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [storable(item) for item in value]
    return value
