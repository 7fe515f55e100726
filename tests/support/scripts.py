"""Scripts as processes that begin with torch and bpfree imported: importing takes longer than most of them."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from support.copies import copies
from support.two_ranks import free_port


class Script:
    """Does what ``python -u PATH ARGUMENTS`` does in the folder of its log.

    Args:
        path: The script.
        arguments: Its arguments.
        log: The file that gets what it prints; it is made.
        environment: Variables that differ from this process's.
        without: A module that it cannot import.
    """

    def __init__(
        self,
        path: Path,
        *arguments: str,
        log: Path,
        environment: Mapping[str, str] | None = None,
        without: str | None = None,
    ) -> None:
        log.touch()
        self.log = log
        environment = dict(os.environ) | dict(environment or {})
        self._process = copies().Process(target=_main, args=(path, arguments, log, environment, without))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """The exit code; minus a signal's number if that ended it, None while it runs."""
        return self._process.exitcode

    @property
    def printed(self) -> str:
        """What it has printed so far, errors among it."""
        return self.log.read_text()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def output(self, timeout: float) -> str:
        """Wait for the end, at most so many seconds, and return what it has printed."""
        self._process.join(timeout)
        self._process.kill()
        return self.printed


def on_ranks(count: int, path: Path, *arguments: str, logs: Path, environment: Mapping[str, str]) -> list[Script]:
    """Start a script on so many processes, with the variables that torchrun sets and with these.

    Rank r prints to ``rankR.txt`` in the folder ``logs``. No process ends another, as torchrun would.
    """
    size = str(count)
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    return [
        Script(
            path,
            *arguments,
            log=logs / f"rank{rank}.txt",
            environment={**group, **environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]


def _main(
    path: Path, arguments: tuple[str, ...], log: Path, environment: Mapping[str, str], without: str | None
) -> None:
    os.chdir(log.parent)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    if "OMP_NUM_THREADS" in environment:  # which torch read when it was imported
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    sys.argv = [str(path), *arguments]
    if without:
        parts = [name for name in sys.modules if name.startswith(f"{without}.")]
        sys.modules.update(dict.fromkeys([without, *parts]))  # type: ignore[arg-type]
    runpy.run_path(str(path), run_name="__main__")
