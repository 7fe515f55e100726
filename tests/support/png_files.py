"""Small PNG files of any depth."""

from __future__ import annotations

import struct
import zlib

GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(depth: int, kind: int, row: bytes, *chunks: bytes, size: tuple[int, int] = (4, 4), rows: int = 4) -> bytes:
    """A PNG by its definition: rows without a filter."""
    head = struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0)
    body = zlib.compress((b"\0" + row) * rows)
    return b"\x89PNG\r\n\x1a\n" + b"".join([chunk(b"IHDR", head), *chunks, chunk(b"IDAT", body), chunk(b"IEND", b"")])
