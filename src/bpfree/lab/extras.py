"""Packages that come with an extra of bpfree, and what is said where one is missing."""

from __future__ import annotations

from importlib.metadata import requires
from re import match

_EXTRAS = {
    "torch_geometric": "graphs",
    "datasets": "datasets",
    "polars": "clicks",
    "imageio_ffmpeg": "rendering",
    "skimage": "rendering",
}
"""Module -> the extra that it comes with."""
_INSIDE = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml", "docstring_parser": "docstring-parser"}
"""Module -> the package that it is in, where the two are not called alike."""


def named(error: ModuleNotFoundError) -> ModuleNotFoundError:
    """Return ``error`` with a text that says what installs the module, where that is known."""
    return ModuleNotFoundError(missing(error) or str(error), name=error.name, path=error.path)


def missing(error: ModuleNotFoundError) -> str | None:
    """Say what installs the module that was not found; None if it is no part of an extra."""
    module = (error.name or "").partition(".")[0]
    if module in _EXTRAS:
        return f"{module} is not installed: pip install 'bpfree[{_EXTRAS[module]}]'."
    if _INSIDE.get(module, module).replace("_", "-") in _of_the_lab():
        return f"{module} is not installed: pip install 'bpfree[lab]'."
    return None


def _of_the_lab() -> set[str]:
    """Return the packages that the commands need."""
    found = (match(r"[\w.-]+", entry) for entry in requires("bpfree") or [] if 'extra == "lab"' in entry)
    return {name[0].replace("_", "-").removesuffix("-python") for name in found if name}
