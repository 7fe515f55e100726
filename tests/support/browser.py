"""Headless Chromium: open a page from disk, let it run, and read what became of it."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--enable-logging=stderr",
    "--virtual-time-budget=20000",
    "--window-size=1280,900",
    "--dump-dom",
)
# A line like `[12:12:1121/050000.0:INFO:CONSOLE:1] "text", source: file:///page.html (1)`.
CONSOLE = re.compile(r":CONSOLE[:(]\d+[])]+ (.*)")


@dataclass(frozen=True)
class Page:
    """What a page became: its document as HTML, and all that it wrote to the console."""

    dom: str
    console: list[str]


def find() -> str | None:
    """The path of an installed Chromium or Chrome."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def visit(binary: str, page: Path, profile: Path, *, seconds: float = 300) -> Page:
    """Open `page` with a fresh `profile` folder; the call and its processes last `seconds` at most."""
    command = [binary, *FLAGS, f"--user-data-dir={profile}", page.resolve().as_uri()]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        dom, log = process.communicate(timeout=seconds)
    finally:
        # The browser is the leader of its own group, so this reaches its helpers and nothing else.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert process.returncode == 0, f"the browser failed with {process.returncode}:\n{log}"
    return Page(dom, CONSOLE.findall(log))


def probed(binary: str, page: Path, probe: str) -> tuple[dict[str, Any], list[str]]:
    """What a probe, HTML behind the page's own, left as JSON in ``body.dataset.found``, and what the console heard.

    The first is empty if the probe did not come to its end.
    """
    page.write_text(page.read_text(encoding="utf-8") + probe, encoding="utf-8")
    seen = visit(binary, page, page.parent / "profile")
    found = re.search(r'data-found="([^"]*)"', seen.dom)
    return json.loads(html.unescape(found[1])) if found else {}, seen.console
