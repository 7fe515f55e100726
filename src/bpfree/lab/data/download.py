"""Fetching one file from the first of several places that has it unaltered."""

from __future__ import annotations

import hashlib
import http.client
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from bpfree.lab.errors import DataError
from bpfree.lab.files import replacing

_SECONDS = 30


def download(path: Path, urls: Sequence[str], checksum: str) -> None:
    """Fetch ``path`` from one of ``urls``; only a file with this SHA-256 is ever put there.

    Raises:
        DataError: None of the places gave the file; says what each of them answered.
        WriteError: The file could not be stored.
    """
    failures: list[str] = []
    for url in urls:
        try:
            with urllib.request.urlopen(url, timeout=_SECONDS) as answer:
                content = answer.read()
        # HTTPException covers an answer that breaks off, OSError everything before it.
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"{url}: {error}")
            continue
        found = hashlib.sha256(content).hexdigest()
        if found == checksum:
            with replacing(path) as temporary:
                temporary.write_bytes(content)
            return
        failures.append(f"{url}: SHA-256 {found} in place of {checksum}")
    reasons = "\n  ".join(failures)
    raise DataError(
        f"{path.name} could not be downloaded:\n  {reasons}\n"
        "Without internet, pass --data-dir DIR with a folder that holds the original files."
    )
