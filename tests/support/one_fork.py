"""What one of the processes of ``pytest --forks`` does."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any

import pytest

from support.copies import serve_copies

FILE, REPORT, WARNING, DONE, BROKEN = "file", "report", "warning", "done", "broken"
"""The kinds of messages: the number of a file that is begun, a report, a warning, a test's end, an error in no test."""
FORK = "PYTEST_FORK"
"""The variable that tells such a process its number."""

Next = Callable[[], tuple[int, Sequence[pytest.Item]] | None]
"""What gives the next file's number and tests."""


class _Teller:
    """Tells the first process what there is to report."""

    def __init__(self, config: pytest.Config, sender: Connection) -> None:
        self.config, self.sender = config, sender
        self.begins = False  # pytest tells whoever is registered of the warnings that were there before

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        told = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        self.sender.send((REPORT, told))

    def pytest_warning_recorded(
        self, warning_message: warnings.WarningMessage, when: str, nodeid: str, location: Any
    ) -> None:
        if not self.begins:
            return
        # Classes of warnings that a test makes cannot be sent; their names can.
        seen = (str(warning_message.message), warning_message.category.__name__)
        place = (warning_message.filename, warning_message.lineno)
        self.sender.send((WARNING, (seen, place, {"when": when, "nodeid": nodeid, "location": location})))


def sent_warning(told: Any) -> dict[str, Any]:
    """The arguments of ``pytest_warning_recorded``, of what was sent."""
    (text, name), (file, line), more = told
    kind = type(name, (Warning,), {})
    return {"warning_message": warnings.WarningMessage(kind(text), kind, file, line), **more}


def work(
    session: pytest.Session, number: int, first: Sequence[pytest.Item], next_file: Next, sender: Connection
) -> None:
    """Run ``first``, then file after file; end this process."""
    code = 1
    try:
        _settle(session.config, number, sender)
        serve_copies(sender)
        _run(session, first, sender)
        while (found := next_file()) is not None:
            sender.send((FILE, found[0]))
            _run(session, found[1], sender)
        inside: Any = session
        inside._setupstate.teardown_exact(None)
        code = 0
    except BaseException:
        sender.send((BROKEN, traceback.format_exc()))
    finally:
        os._exit(code)  # what the first process does when it exits is not for this one


def _settle(config: Any, number: int, sender: Connection) -> None:
    """Have folders and output of its own, and report to the first process in place of the terminal."""
    plugins = config.pluginmanager
    for plugin in list(plugins.get_plugins()):
        if hasattr(plugin, "pytest_runtest_logreport") and not isinstance(plugin, pytest.Session):
            plugins.unregister(plugin)
    teller = _Teller(config, sender)
    plugins.register(teller)
    teller.begins = True
    folders = config._tmp_path_factory
    folders._basetemp = folders.getbasetemp() / f"fork{number}"
    folders._basetemp.mkdir()
    if config.option.capture != "no":
        with (folders._basetemp / "output.txt").open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    os.environ[FORK] = str(number)


def _run(session: pytest.Session, tests: Sequence[pytest.Item], sender: Connection) -> None:
    # Behind the last test of a file nothing is kept but what the session shares.
    for test, following in pairwise([*tests, session]):
        assert isinstance(test, pytest.Item)
        session.config.hook.pytest_runtest_protocol(item=test, nextitem=following)
        sender.send((DONE, None))
