"""Ways to alter the bytes of a file."""

from __future__ import annotations

import random
import struct
from pathlib import Path

_SIZES = (0, 1, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1)


def flipped(content: bytes, luck: random.Random) -> bytes:
    """One bit is another."""
    place = luck.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << luck.randrange(8)]) + content[place + 1 :]


def flipped_where_written(content: bytes, luck: random.Random) -> bytes:
    """One bit of a byte that is not zero is another: most of a small database is empty."""
    place = luck.choice([place for place, byte in enumerate(content) if byte])
    return content[:place] + bytes([content[place] ^ 1 << luck.randrange(8)]) + content[place + 1 :]


def truncated(content: bytes, luck: random.Random) -> bytes:
    """The end is missing."""
    return content[: luck.randrange(len(content))]


def mutated(content: bytes, luck: random.Random) -> bytes:
    """One to four changes of any kind."""
    for _ in range(luck.randint(1, 4)):
        content = luck.choice(_WAYS)(content or b"\0", luck)
    return content


def _byte(content: bytes, luck: random.Random) -> bytes:
    place = luck.randrange(len(content))
    return content[:place] + bytes([luck.randrange(256)]) + content[place + 1 :]


def _size(content: bytes, luck: random.Random) -> bytes:
    """A number that may be a size becomes a large one."""
    form = luck.choice(["<H", ">H", "<I", ">I", "<Q", ">Q"])
    width = struct.calcsize(form)
    place = luck.randrange(len(content))
    number = luck.choice(_SIZES) % 256**width
    return content[:place] + struct.pack(form, number) + content[place + width :]


def _cut(content: bytes, luck: random.Random) -> bytes:
    first = luck.randrange(len(content))
    return content[:first] + content[first + luck.randint(1, 64) :]


def _repeat(content: bytes, luck: random.Random) -> bytes:
    first = luck.randrange(len(content))
    part = content[first : first + luck.randint(1, 64)]
    return content[:first] + part * luck.randint(2, 50) + content[first:]


def _insert(content: bytes, luck: random.Random) -> bytes:
    place = luck.randrange(len(content))
    return content[:place] + luck.randbytes(luck.randint(1, 16)) + content[place:]


def _swap(content: bytes, luck: random.Random) -> bytes:
    first, second = sorted(luck.randrange(len(content)) for _ in range(2))
    return content[second:] + content[first:second] + content[:first]


_WAYS = (flipped, truncated, _byte, _size, _cut, _repeat, _insert, _swap)


def altered(path: Path, way: str = "flipped") -> None:
    """Damage a file: a bit is another one, or its end is missing."""
    content = path.read_bytes()
    path.write_bytes({"flipped": flipped, "truncated": truncated}[way](content, random.Random(3)))
