"""Fetching files from the first of several places that has them unaltered, into a folder that is kept."""

from __future__ import annotations

import hashlib
import http.client
import os
import tarfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from bpfree.lab.disk.files import replacing
from bpfree.lab.errors import DataError

_SECONDS = 30


def cache_folder() -> Path:
    """Return the folder of downloads: ``$XDG_CACHE_HOME/bpfree``, by default ``~/.cache/bpfree``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bpfree"


def has_checksum(content: bytes, checksum: str) -> bool:
    """Return whether a file's content has this SHA-256, or this git identifier if it has 40 digits."""
    if len(checksum) == 40:
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == checksum
    return hashlib.sha256(content).hexdigest() == checksum


def download(path: Path, urls: Sequence[str], checksum: str) -> None:
    """Fetch ``path`` from one of ``urls``, unless the file with this checksum is there; see :func:`has_checksum`.

    A file that is there and is another is replaced. Only the right one is ever put there.

    Raises:
        DataError: None of the places gave the file; says what each of them answered.
        WriteError: The file could not be stored.
    """
    if path.is_file() and has_checksum(path.read_bytes(), checksum):
        return
    failures: list[str] = []
    for url in urls:
        try:
            with urllib.request.urlopen(url, timeout=_SECONDS) as answer:
                content = answer.read()
        # HTTPException covers an answer that breaks off, OSError everything before it.
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"{url}: {error}")
            continue
        if has_checksum(content, checksum):
            with replacing(path) as temporary:
                temporary.write_bytes(content)
            return
        found = hashlib.sha256(content).hexdigest()
        failures.append(f"{url}: SHA-256 {found} in place of {checksum}")
    reasons = "\n  ".join(failures)
    raise DataError(
        f"{path.name} could not be downloaded:\n  {reasons}\n"
        "Without internet, pass --data-dir DIR with a folder that holds the original files."
    )


def download_members(folder: Path, members: Sequence[str], urls: Sequence[str], checksum: str) -> None:
    """Fetch the files ``members`` of a tar archive into ``folder``, unless all of them are there.

    Args:
        folder: Where they are put; its name is that of the folder inside the archive.
        members: The names of files in that folder; nothing else is unpacked.
        urls: Places of the archive.
        checksum: SHA-256 of the archive, which is deleted when it has been unpacked.

    Raises:
        DataError: None of the places gave the archive.
        WriteError: A file could not be stored.
    """
    if all((folder / name).is_file() for name in members):
        return
    archive = folder.parent / urls[0].rpartition("/")[2]
    download(archive, urls, checksum)
    with tarfile.open(archive) as packed:
        for name in members:
            with replacing(folder / name) as temporary:
                found = packed.extractfile(f"{folder.name}/{name}")
                if found is None:
                    raise DataError(f"{archive}: {name} is no file in it.")
                temporary.write_bytes(found.read())
    archive.unlink()
