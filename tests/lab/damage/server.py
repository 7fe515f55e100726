"""A PostgreSQL server of one's own, to restart."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import tempfile
from pathlib import Path

from support.two_ranks import free_port

_PLACES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)


def absent() -> str:
    """Why there can be no server; nothing if there can."""
    if not _PLACES:
        return "no PostgreSQL in /usr/lib/postgresql"
    if importlib.util.find_spec("psycopg") is None:
        return "no driver: pip install 'bpfree[postgresql]'"
    return ""


class Server:
    """A server in a folder that is gone at the end; a context manager."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="bpfree-postgresql-")
        self._data = Path(self._folder.name) / "data"
        self._port = free_port()
        self.url = f"postgresql+psycopg://user:secret@127.0.0.1:{self._port}/postgres"

    def __enter__(self) -> Server:
        Path(self._folder.name).chmod(0o777)
        self._run("initdb", "-D", self._data, "-A", "trust", "-U", "user", "--no-sync")
        self._control("start")
        return self

    def __exit__(self, *_: object) -> None:
        self._control("stop")
        self._folder.cleanup()

    def restart(self) -> None:
        """Break off whatever is going on."""
        self._control("restart")

    def _control(self, what: str) -> None:
        options = f"-p {self._port} -k {self._folder.name} -h 127.0.0.1 -F"
        log = Path(self._folder.name) / "log"
        self._run("pg_ctl", "-D", self._data, "-o", options, "-w", "-m", "immediate", "-l", log, what)

    def _run(self, name: str, *words: object) -> None:
        # The server refuses to be root's.
        who = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
        command = [str(_PLACES[0] / name), *map(str, words)]
        subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL, timeout=60, **who)
