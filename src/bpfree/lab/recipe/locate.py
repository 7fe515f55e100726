"""The files of recipes: those of the package by name, others by path."""

from __future__ import annotations

from pathlib import Path

from bpfree.errors import nearest
from bpfree.lab.disk.files import storable
from bpfree.lab.errors import SettingsError

FOLDER = Path(__file__).parents[1] / "recipes"
ENDINGS = (".yaml", ".yml")


def find(name: str, folder: Path = Path()) -> Path:
    """Find the file of a recipe: one of the package's by name, or any by path.

    Args:
        name: The name, or the path.
        folder: Where a relative path begins.

    Raises:
        SettingsError: There is none.
    """
    path = folder / Path(name).expanduser()
    if storable(path.stem) != path.stem:
        raise SettingsError(f"recipe {storable(name)}: its name is no UTF-8; rename the file.")
    if path.suffix in ENDINGS:
        if not path.is_file():
            raise SettingsError(f"recipe {name}: there is no such file.")
        return path
    if name not in names():
        hint = nearest(name, names()) if names() else ""
        raise SettingsError(f"recipe {name!r} is not known. {hint} One of your own is named by its file, NAME.yaml.")
    return FOLDER / f"{name}.yaml"


def names() -> list[str]:
    """Return the names of the package's recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))
