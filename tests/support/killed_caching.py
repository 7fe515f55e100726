"""``python -m support.killed_caching FOLDER SCHEMA``: cache a log, slowly, to be killed meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_BEGINS = "caching begins"


def main() -> None:
    from bpfree.lab.data.clicks import ClickSettings, columns, load_clicks, pieces, text_rows

    text_rows.PIECE = int(os.environ["PIECE"])
    pause = float(os.environ.get("PAUSE", "0"))
    for module, name in ((pieces, "write_piece"), (columns, "write_numbers"), (os, "replace")):
        setattr(module, name, _slowly(getattr(module, name), pause))
    print(_BEGINS, flush=True)  # importing takes seconds, in which nothing is written
    load_clicks(Path(sys.argv[1]), ClickSettings(schema=sys.argv[2]))


def _slowly(call: Any, pause: float) -> Any:
    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(pause)
        return call(*arguments, **options)

    return slow


def run(folder: Path, schema: str, cache: Path, seconds: float | None, *, pause: float = 0, piece: int = 2000) -> bool:
    """Cache a log in a process of its own, in pieces of so many bytes.

    It is killed some seconds after it has begun. Return whether it ended before.
    """
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "PAUSE": str(pause), "PIECE": str(piece)}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-m", "support.killed_caching", str(folder), schema]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{_BEGINS}\n"
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            return False
    assert process.returncode == 0
    return True


def files(cache: Path) -> dict[str, bytes]:
    """Every file of the caches in a folder, but for locks and known checksums."""
    place = cache / "bpfree" / "clicks"
    return {
        path.relative_to(place).as_posix(): path.read_bytes()
        for path in sorted(place.rglob("*"))
        if path.is_file() and path.suffix != ".lock" and "checksums" not in path.parts
    }


if __name__ == "__main__":
    main()
