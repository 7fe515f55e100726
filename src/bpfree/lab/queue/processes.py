"""Several processes that do the same work, as long as it lasts."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
"""The start method of workers: they are never copies of this process, which may hold a GPU or threads."""
_LEAVE = 20.0  # seconds that workers have for giving their runs back when a command ends
_REPLACED = 20  # workers of one command; more deaths are the machine's fault, not that of some runs


class Team:
    """Several processes that work; a context manager, which ends those that are left.

    One that is killed, as a run does that needs more memory than there is, is replaced, or every such run would leave
    fewer for the others. One that ends by itself has been told why not to go on.

    Args:
        work: The function that each runs.
        size: Their number.
        say: Is told of those that die.
    """

    def __init__(self, work: Callable[[], None], size: int, say: Callable[[str], None]) -> None:
        self._work, self._say = work, say
        self._context: Any = multiprocessing.get_context(METHOD)  # without what its kinds have in common
        if METHOD == "forkserver":
            self._context.set_forkserver_preload(["bpfree.lab.running.runs"])  # imported once, not by every worker
        self._processes = [self._started() for _ in range(size)]
        self._replaced, self._codes = 0, list[int]()

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
        end = time.monotonic() + _LEAVE
        for process in self._processes:
            process.join(max(end - time.monotonic(), 0))
            process.kill()  # which those that have ended do not notice
            process.join()

    def alive(self) -> bool:
        """Return whether any process works; report and replace processes that have died since the last call."""
        looked = [(process, process.exitcode) for process in self._processes]  # once: one may end at any moment
        self._processes = [process for process, exitcode in looked if exitcode is None]
        for exitcode in [exitcode for _, exitcode in looked if exitcode]:
            self._codes.append(exitcode)
            self._say(f"A worker has died: {_end(exitcode)}.")
            if exitcode < 0 and self._replaced < _REPLACED:
                self._replaced += 1
                self._processes.append(self._started())
        return bool(self._processes)

    def obituary(self) -> str:
        """Return, for a sentence, how the dead processes ended."""
        return f" ({', '.join(_end(code) for code in dict.fromkeys(self._codes))})" if self._codes else ""

    def _started(self) -> BaseProcess:
        process: BaseProcess = self._context.Process(target=self._work, daemon=True)
        process.start()
        return process


def _end(code: int) -> str:
    """Return an exit code in words."""
    names = {-number.value: number.name for number in signal.Signals}
    return f"exit code {code}{f', {names[code]}' if code in names else ''}"
