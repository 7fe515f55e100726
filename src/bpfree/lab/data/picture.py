"""One picture from a file, as red, green and blue between 0 and 255, from any format of the file."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from bpfree.lab.errors import DataError

FORMATS = ("JPEG", "PNG")
"""The formats that are read; others would run other readers, whatever the file's name says."""
_LARGEST = 2**26  # pixels: 8,192 x 8,192
_LARGE = 2**22  # pixels of which one picture at a time is read, be there many threads
_PACKED = 1100  # bytes that a byte of a file may become: 1,032 in PNG, some hundreds in JPEG
_ONE_AT_A_TIME = threading.Lock()


def picture(path: Path, size: int) -> np.ndarray:
    """Read the middle of a picture: the shorter edge is scaled to ``size``; uint8 ``(size, size, 3)``.

    Numbers of 16 bits become the nearest ones of 8 in grey pictures, and lose their lower half in coloured ones. What
    is transparent shows white behind it. A camera's note on how it was held is followed.

    Raises:
        DataError: It is neither JPEG nor PNG, damaged, or declares more than it can hold.
    """
    try:
        with Image.open(path, formats=FORMATS) as image, turn(image, path):
            # Turned before it is cut: the middle is another one otherwise.
            return np.asarray(ImageOps.fit(colours(_upright(image)), (size, size), Image.Resampling.BILINEAR))
    # Damaged pictures make decoders fail in many ways.
    except Exception as error:
        raise DataError(f"{path} cannot be decoded ({error}). Replace or delete it.") from error


def turn(image: Image.Image, path: Path) -> AbstractContextManager[object]:
    """Find out whether a picture of this size can be in the file, and wait if it is a large one.

    Raises:
        DataError: It cannot, or is too large.
    """
    pixels, size = image.width * image.height, path.stat().st_size
    if pixels > _LARGEST:
        raise DataError(f"it has {image.width} x {image.height} pixels, more than {_LARGEST:,}")
    if pixels // 8 > _PACKED * size:  # of one bit each at least
        raise DataError(f"it declares {image.width} x {image.height} pixels, and has {size} bytes")
    return _ONE_AT_A_TIME if pixels > _LARGE else nullcontext()


def _upright(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image)


def colours(image: Image.Image) -> Image.Image:
    """Return the picture in red, green and blue, 8 bits each."""
    if image.mode == "I" or image.mode.startswith("I;16"):  # grey, 16 bits: pillow's own conversion cuts at 255
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    elif "A" in image.getbands() or "transparency" in image.info:
        above = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", above.size, "white"), above)
    return image.convert("RGB")
