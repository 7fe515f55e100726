"""The cache of vocabularies and tokens: each is made once, and known by the content that it was made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from bpfree.lab.data.download import cache_folder
from bpfree.lab.data.text.part import Part
from bpfree.lab.data.text.token_file import TokenFile, write
from bpfree.lab.data.text.vocabulary import Vocabulary
from bpfree.lab.disk.files import read_json, write_json
from bpfree.lab.errors import DamageError, DataError, WriteError

_FORMAT = "bpfree-text/1"  # of the files, and of how a text becomes lines


def trained_vocabulary(part: Part, checksum: str, size: int) -> Vocabulary:
    """Return the vocabulary of a training part; it is learned where the cache has none.

    Args:
        part: The training part.
        checksum: Its checksum.
        size: The number of tokens.

    Raises:
        DataError: The part cannot be read, or holds no such number of different tokens.
        WriteError: The cache cannot be written.
    """
    path = _place("vocabulary", checksum, str(size), "json")
    found = _kept_vocabulary(path)
    if found is None:
        found = Vocabulary.trained(part.lines(), size)
        if len(found) < size:
            raise DataError(
                f"{part} holds no more than {len(found)} different tokens. Ask for as many, "
                f"--text.vocabulary {len(found)}, or give more text."
            )
        _keep(lambda: write_json(path, {"key": path.stem, "tokenizer": found.tokenizer.to_str()}))
    return found


def _kept_vocabulary(path: Path) -> Vocabulary | None:
    """Return the vocabulary of a file of the cache; None if there is none, or it is damaged or another's."""
    try:
        content = read_json(path)
        return Vocabulary.parsed(content["tokenizer"]) if content["key"] == path.stem else None
    except (DamageError, ValueError, KeyError, TypeError, AttributeError):
        return None


def token_file(part: Part, checksum: str, vocabulary: Vocabulary) -> TokenFile:
    """Return the tokens of a part; they are made where the cache has none.

    Args:
        part: The part.
        checksum: Its checksum.
        vocabulary: The vocabulary.

    Raises:
        DataError: The part cannot be read.
        WriteError: The cache cannot be written.
    """
    path = _place("tokens", checksum, vocabulary.checksum, "bin")
    found = TokenFile.open(path, path.stem)
    if found is None:
        _keep(lambda: write(path, path.stem, vocabulary.dtype, vocabulary.arrays(part.lines())))
        found = TokenFile.open(path, path.stem)
    if found is None:
        raise WriteError(f"{path} is not as it was written a moment ago: the disk loses data, or somebody changes it.")
    return found


def _place(kind: str, checksum: str, how: str, ending: str) -> Path:
    # What a tokenizer makes of a text may be other with its next version.
    key = json.dumps([_FORMAT, kind, checksum, how, version("tokenizers")])
    return cache_folder() / "text" / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.{ending}"


def _keep(write: Callable[[], object]) -> None:
    try:
        write()
    except WriteError as error:
        raise WriteError(f"{error} The folder of what is kept of texts is $XDG_CACHE_HOME/bpfree/text.") from error
