"""With which code a number was measured."""

from __future__ import annotations

import functools
import hashlib
import subprocess
from pathlib import Path

import bpfree

_PACKAGE = Path(bpfree.__file__).parent
_SHOWS = (
    "lab/report",
    "lab/recipe",
    "lab/tables",
    "pipeline",
)  # code that shows numbers or plans runs, and changes none
_SHOW_FILES = tuple(
    f"lab/{name}.py"
    for name in ("cli", "commands", "extras", "parser", "trust", "terminal_table", "terminal", "compare", "train")
)


def code() -> dict[str, str | None]:
    """Return the version, the package's last commit if it is in a repository, and a hash of its sources."""
    return {"version": bpfree.__version__, "commit": _commit(), "source": source()}


@functools.cache
def source() -> str:
    """Return a hash of the files that numbers depend on."""
    found = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        name = path.relative_to(_PACKAGE).as_posix()
        if not name.startswith(_SHOWS) and name not in _SHOW_FILES:
            found.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]


@functools.cache
def _commit() -> str | None:
    # The last one that touched the package: none where the package is installed in a folder of someone's repository.
    command = ["git", "-C", str(_PACKAGE), "log", "-1", "--format=%H", "--", "."]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
