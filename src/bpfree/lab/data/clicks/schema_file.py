"""Reading the schema of a log from a YAML file, or one of the package's own by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from bpfree.errors import nearest
from bpfree.lab.data.clicks.schema import PARTS, Join, Label, Schema, Split
from bpfree.lab.disk import yaml_file
from bpfree.lab.errors import SettingsError

_OWN = Path(__file__).parent / "schemas"


def own_schemas() -> list[str]:
    """Return the names of the package's own schemas."""
    return sorted(path.stem for path in _OWN.glob("*.yaml"))


def read_schema(name: str | Path) -> Schema:
    """Read a schema.

    Args:
        name: A file, or the name of one of the package's own.

    Raises:
        SettingsError: There is none, or it is no schema; the file and the key are named.
    """
    path = Path(name).expanduser()
    if str(name) in own_schemas():
        path = _OWN / f"{name}.yaml"
    elif not path.is_file():
        raise SettingsError(f"--schema {name}: there is no such file, and {nearest(str(name), own_schemas())}")
    try:
        return schema_of(yaml_file.read(path))
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from error


def schema_of(content: Any) -> Schema:
    """Make a schema of the content of its file.

    Raises:
        SettingsError: A key is not known or is missing, or a value is of the wrong kind.
    """
    given = _mapping(content, "the schema", [entry.name for entry in fields(Schema)])
    if "label" not in given:
        raise SettingsError("label is missing: name the column that holds 0 and 1.")
    read = {name: _READERS[name](value, name) for name, value in given.items() if value is not None}
    return Schema(**read)


def _mapping(value: Any, where: str, valid: list[str]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise SettingsError(f"{where} must be names with values, not {value!r}.")
    for key in value:
        if key not in valid:
            raise SettingsError(f"{where}: {key!r} is not known. {nearest(key, valid)}")
    return dict(value)


def _name(value: Any, where: str) -> str:
    # Names of columns that are numbers need no quotes; 'no' and 'yes' do, or YAML 1.1 makes truth values of them.
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise SettingsError(f"{where} must be a name, not {value!r}; write it in quotes.")
    return str(value)


def _names(value: Any, where: str) -> tuple[str, ...]:
    entries = value if isinstance(value, list) else [value]
    return tuple(_name(entry, where) for entry in entries)


def _words(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise SettingsError(f'{where} must be a list of words in quotes, such as ["NA", "-1"], not {value!r}.')
    return tuple(value)


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SettingsError(f"{where} must be a number, not {value!r}.")
    return value


def _whole(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise SettingsError(f"{where} must be a whole number, not {value!r}.")
    return value


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise SettingsError(f"{where} must be true or false, not {value!r}.")
    return value


def _label(value: Any, where: str) -> Label:
    if not isinstance(value, Mapping):
        return Label(column=_name(value, where))
    given = _mapping(value, where, ["column", "threshold"])
    if "column" not in given:
        raise SettingsError(f"{where}: column is missing.")
    threshold = given.get("threshold")
    return Label(
        column=_name(given["column"], f"{where}: column"),
        threshold=None if threshold is None else float(_number(threshold, f"{where}: threshold")),
    )


def _files(value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        return _names(value, where)
    given = _mapping(value, where, list(PARTS))
    return {part: _names(given[part], f"{where}: {part}") for part in PARTS if part in given}


def _split(value: Any, where: str) -> Split:
    given = _mapping(value, where, [entry.name for entry in fields(Split)])
    if "fractions" in given:
        entries = given["fractions"] if isinstance(given["fractions"], list) else [given["fractions"]]
        given["fractions"] = tuple(float(_number(entry, f"{where}: fractions")) for entry in entries)
    if "order" in given:
        given["order"] = _name(given["order"], f"{where}: order")
    if "seed" in given:
        given["seed"] = _whole(given["seed"], f"{where}: seed")
    return Split(**given)


def _joins(value: Any, where: str) -> tuple[Join, ...]:
    entries = value if isinstance(value, list) else [value]
    found = [_mapping(entry, where, ["file", "key"]) for entry in entries]
    for entry in found:
        if set(entry) != {"file", "key"}:
            raise SettingsError(f"{where}: each entry needs file and key, not {entry}.")
    return tuple(Join(file=_name(entry["file"], where), key=_name(entry["key"], where)) for entry in found)


_READERS: dict[str, Callable[[Any, str], Any]] = {
    "label": _label,
    "format": _name,
    "columns": _names,
    "numeric": _names,
    "categorical": _names,
    "identifiers": _names,
    "files": _files,
    "join": _joins,
    "missing": _words,
    "quotes": _flag,
    "min_count": _whole,
    "bad_rows": _whole,
    "split": _split,
}
