"""What long trials have found, kept in a file that they continue.

Each trial has a name, and is in the file as soon as it is complete: a command that was stopped, started again, does the
others alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path

from bpfree.lab.disk.files import read_json, write_json
from bpfree.lab.process.environment import describe

FOLDER = Path(__file__).parents[1] / "evidence"
"""Where the repository keeps what was found."""

Counts = Mapping[str, int]
Trial = tuple[str, int, Callable[[], Counts]]
"""A name, how often something is tried, and what does so and counts what comes of it."""


class Evidence:
    """Counts of what came of each trial.

    Args:
        path: A JSON file, which need not be there. None: nothing is kept.
        command: What makes it anew.
    """

    def __init__(self, path: Path | None, command: str) -> None:
        self._path, self._command = path, command
        found = read_json(path) if path is not None and path.exists() else {"trials": []}
        self._trials: dict[str, dict[str, object]] = {trial["trial"]: trial for trial in found["trials"]}

    def once(self, name: str, times: int, trial: Callable[[], Counts]) -> dict[str, int]:
        """Return what came of a trial; make it unless it is there, made at least so often."""
        known = self._trials.get(name)
        if known is not None and int(str(known["times"])) >= times:
            return dict(known["found"])  # type: ignore[call-overload]
        found = dict(sorted(trial().items()))
        self._trials[name] = {"trial": name, "times": times, "found": found}
        if self._path is not None:
            trials = [self._trials[name] for name in sorted(self._trials)]
            write_json(self._path, {"command": self._command, "environment": describe(), "trials": trials})
        return found


def add_option(parser: argparse.ArgumentParser) -> None:
    """Let a command name the file of what it finds."""
    parser.add_argument("--evidence", type=Path, metavar="FILE", help="keep what was found here, and do the rest alone")


def make(trials: Iterable[Trial], path: Path | None, command: str, good: Container[str]) -> int:
    """Make trials, and print a line for each.

    Args:
        trials: What is tried.
        path: The file of what was found before, see :class:`Evidence`.
        command: What makes it anew.
        good: What may come of a trial.

    Returns:
        The exit status: 1 if anything else has come of one.
    """
    kept, wrong = Evidence(path, command), 0
    for name, times, trial in trials:
        found = kept.once(name, times, trial)
        wrong += sum(count for what, count in found.items() if what not in good)
        print(f"{name}, {times} times: {found}", flush=True)
    print(f"not as it should be: {wrong}")
    return 1 if wrong else 0
