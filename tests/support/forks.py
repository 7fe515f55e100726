"""``pytest --forks 3``: the tests on three processes, copies of one that has imported and collected everything.

Importing and collecting takes a process as long as hundreds of tests, and is done once. The tests of a file run on one
process, so that what they share is made once; a process that is free takes the next file.
"""

from __future__ import annotations

import importlib
import os
import signal
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

import pytest

from support.one_fork import BROKEN, FILE, REPORT, WARNING, sent_warning, work

ENDED = "ended"
_NUMBER = struct.Struct("H")
_MOST_FILES = 32768
"""The numbers of so many fit into a pipe that nobody reads yet."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--forks", type=int, default=0, metavar="COUNT", help="run the tests on so many processes")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    count = session.config.getoption("forks")
    if not count or session.testsfailed or session.config.option.collectonly:
        return None  # pytest's own loop
    if threading.active_count() > 1:  # a copy has none but its first, and would wait for the others for ever
        raise pytest.UsageError(
            f"a module of tests has started a thread while it was imported: {threading.enumerate()}"
        )
    importlib.import_module(
        "torch._decomp.decompositions_for_jvp"
    )  # or each copy does, for a second, at its first dual number
    pool = _Pool(session)
    try:
        pool.run(count)
    finally:
        pool.end()
    return True


@dataclass
class _Fork:
    """A copy of this process.

    Attributes:
        pid: Its process number.
        left: What it has yet to run of a file, with the test that it runs now.
    """

    pid: int
    left: list[pytest.Item] = field(default_factory=list)


def _received(receiver: Connection) -> Any:
    try:
        return receiver.recv()
    except EOFError:
        return ENDED, None


class _Pool:
    """The copies of a process, and what they report to it."""

    def __init__(self, session: pytest.Session) -> None:
        self.session = session
        self.files = [list(tests) for _, tests in groupby(session.items, key=lambda item: item.path)]
        # What is begun last keeps one process busy while the others have nothing left.
        self.files.sort(key=lambda tests: (tests[0].get_closest_marker("long") is not None, len(tests)), reverse=True)
        assert len(self.files) <= _MOST_FILES
        # Whoever reads the next number runs the file.
        self.queue, end = os.pipe()
        os.write(end, b"".join(map(_NUMBER.pack, range(len(self.files)))))
        os.close(end)
        self.forks: dict[Connection, _Fork] = {}
        self.begun = 0

    def run(self, count: int) -> None:
        """Run all tests on ``count`` copies."""
        for _ in range(count):
            self._begin([])
        while self.forks:
            for ready in wait(list(self.forks)):
                assert isinstance(ready, Connection)
                self._hear(ready)
                if self.session.shouldfail:
                    raise self.session.Failed(self.session.shouldfail)
                if self.session.shouldstop:
                    raise self.session.Interrupted(self.session.shouldstop)

    def end(self) -> None:
        """End what still runs."""
        for fork in self.forks.values():
            os.kill(fork.pid, signal.SIGTERM)
            os.waitpid(fork.pid, 0)

    def _begin(self, first: Sequence[pytest.Item]) -> None:
        receiver, sender = Pipe(duplex=False)
        number, self.begun = self.begun, self.begun + 1
        pid = os.fork()
        if pid == 0:
            for theirs in (*self.forks, receiver):
                theirs.close()
            work(self.session, number, first, self._next_file, sender)
        sender.close()
        self.forks[receiver] = _Fork(pid, list(first))

    def _next_file(self) -> tuple[int, list[pytest.Item]] | None:
        read = os.read(self.queue, _NUMBER.size)
        if not read:
            return None
        (number,) = _NUMBER.unpack(read)
        return number, self.files[number]

    def _hear(self, receiver: Connection) -> None:
        config = self.session.config
        kind, told = _received(receiver)
        if kind == BROKEN:
            raise RuntimeError(told)
        if kind == ENDED:
            self._ended(receiver)
        elif kind == FILE:
            self.forks[receiver].left = list(self.files[told])
        elif kind == REPORT:
            report = config.hook.pytest_report_from_serializable(config=config, data=told)
            config.hook.pytest_runtest_logreport(report=report)
        elif kind == WARNING:
            config.hook.pytest_warning_recorded.call_historic(kwargs=sent_warning(told))
        else:
            test = self.forks[receiver].left.pop(0)
            config.hook.pytest_runtest_logfinish(nodeid=test.nodeid, location=test.location)

    def _ended(self, receiver: Connection) -> None:
        """Forget a copy that has ended. If it died, its test has failed, and another copy goes on behind that."""
        fork = self.forks.pop(receiver)
        receiver.close()
        code = os.waitstatus_to_exitcode(os.waitpid(fork.pid, 0)[1])
        if code == 0:
            return
        if not fork.left:
            raise RuntimeError(f"a process of the tests ended with exit code {code}, in no test")
        test, *left = fork.left
        text = f"the process that ran it ended with exit code {code}"
        report = pytest.TestReport(test.nodeid, test.location, {}, "failed", text, "call")
        self.session.config.hook.pytest_runtest_logreport(report=report)
        self._begin(left)
