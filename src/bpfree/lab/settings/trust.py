"""The files that may name code to run: the package's, those in folders that the user has marked; with ``--trust``, all.

A recipe or a configuration can name functions, rules, projectors and networks by import path, and an import runs code.
Data, checkpoints and results name nothing that is run.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import bpfree
from bpfree.lab.errors import TrustError
from bpfree.lab.models.hugging_face_files import FAMILY
from bpfree.lab.settings.identity import HUGGING_FACE

CLASSES = ("rule", "model", "within", "logger")
"""Settings that are a class with arguments: ``DFA``, or ``{class_path: DFA, init_args: {...}}``."""
FLAG = "trust"
_FUNCTION = "function"
_RECIPES = Path(bpfree.__file__).parent / "lab" / "recipes"
_OWN = ("bpfree.", "torch.nn.")  # classes that may be named by anybody
_STUDIES = "bpfree.lab.studies."  # functions that may be
_PATH = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)+")
_OPTIONS = ("--model", "--rule", "--settings", "--logger")


def vouched(path: Path, content: Any, *, trust: bool) -> None:
    """Find out whether what a file says may be carried out; if it names code, the current folder is searched for it.

    Args:
        path: The file.
        content: Its content.
        trust: True if the user has vouched for it.

    Raises:
        TrustError: It names code, and nobody has vouched for it; or it vouches for itself.
    """
    if isinstance(content, Mapping) and FLAG in content:
        raise TrustError(f"{path}: {FLAG}: a file cannot vouch for itself. Leave it out, and pass --{FLAG} yourself.")
    found = next(_code(content), None)
    if found is None:
        return
    if not trust and not is_marked(path):
        raise TrustError(
            f"{path} names code to run, {found}, and nothing of it has been imported. If you have read the file and "
            f"that code, add --{FLAG}, or write the line {path.resolve().parent} into {marks()}."
        )
    search_current_folder()


def marks() -> Path:
    """Return the file in which the user lists trusted folders, one a line: no folder can mark itself."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "bpfree" / "trusted-folders"


def is_marked(path: Path) -> bool:
    """Return whether a file lies in a folder that the user has marked, in one below it, or in the package."""
    try:
        lines = marks().read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        lines = []
    folders = [_RECIPES, *(Path(line.strip()).expanduser() for line in lines if line.strip())]
    return any(path.resolve().is_relative_to(folder.resolve()) for folder in folders)


def search_current_folder() -> None:
    """Let the current folder be searched for modules, as Python itself does; a console script does not."""
    if "" not in sys.path:
        sys.path.insert(0, "")


def names_code(words: Sequence[str]) -> bool:
    """Return whether a command line names a class in the current folder: the user who types it vouches for it."""
    for option, value in zip(words, [*words[1:], ""], strict=True):
        name, sign, inside = option.partition("=")
        if (inside if sign else value).startswith(FAMILY):  # the path of files, no import path
            continue
        if name.startswith(_OPTIONS) and name != "--rules":
            roots = {path.partition(".")[0] for path in _PATH.findall(inside if sign else value)}
            if any(Path(root).is_dir() or Path(f"{root}.py").is_file() for root in roots):
                return True
    return False


def _code(content: Any, inside: bool = False) -> Iterator[str]:
    """Return the import paths in a file's content that are not the package's or torch's layers."""
    if isinstance(content, Mapping):
        if content.get("class_path") == HUGGING_FACE:  # its path is a file's, which may look like a module's
            content = {**content, "init_args": {**(content.get("init_args") or {}), "path": None}}
        for name, value in content.items():
            if name == _FUNCTION:
                yield from () if _is_ours(value, (_STUDIES,)) else (str(value),)
            else:
                yield from _code(value, inside or str(name).partition(".")[0] in CLASSES)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from _code(value, inside)
    elif inside and isinstance(content, str) and _PATH.fullmatch(content) and not _is_ours(content, _OWN):
        yield content


def _is_ours(path: Any, beginnings: tuple[str, ...]) -> bool:
    """Return whether an import path leads to code of one of these packages, or to nothing."""
    if not isinstance(path, str) or not path.startswith(beginnings):
        return False
    found: Any = importlib.import_module(path.partition(".")[0])
    for name in path.split(".")[1:]:
        found = _member(found, name)
    return found is None or f"{getattr(found, '__module__', '')}.".startswith(beginnings)


def _member(holder: Any, name: str) -> Any:
    """Return the member of a module or class with this name, importing it if necessary; None if there is none."""
    if not hasattr(holder, name) and hasattr(holder, "__path__"):
        with suppress(ModuleNotFoundError):
            importlib.import_module(f"{holder.__name__}.{name}")
    return getattr(holder, name, None)
