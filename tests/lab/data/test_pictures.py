"""Pictures of every depth and kind: the values that stand in them, derived by hand."""

from __future__ import annotations

import struct
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bpfree.lab.data import ImageSettings, load, picture
from bpfree.lab.errors import DataError
from support.png_files import COLOUR, COLOUR_ALPHA, GREY, GREY_ALPHA, PALETTE, chunk, png


def wide(*numbers: int) -> bytes:
    """Numbers of 16 bits, for four pixels."""
    return struct.pack(f">{len(numbers)}H", *numbers) * 4


TWO_COLOURS = chunk(b"PLTE", bytes([200, 100, 50, 10, 20, 30]))
CASES = {
    # v of 65,535 is the nearest number of 255 to v / 257.
    "grey, 16 bits, half": (png(16, GREY, wide(32768)), [128] * 3),
    "grey, 16 bits, dark": (png(16, GREY, wide(257 * 9 + 200)), [10] * 3),
    "grey, 16 bits, white": (png(16, GREY, wide(65535)), [255] * 3),
    # Of colours the upper 8 bits.
    "colour, 16 bits": (png(16, COLOUR, wide(32768, 256 * 10 + 3, 65535)), [128, 10, 255]),
    # c a + 255 (1 - a), with a of 255.
    "grey and alpha, 8 bits": (png(8, GREY_ALPHA, bytes([0, 51] * 4)), [204] * 3),
    "grey and alpha, 16 bits": (png(16, GREY_ALPHA, wide(0, 51 * 257)), [204] * 3),
    "colour and alpha": (png(8, COLOUR_ALPHA, bytes([200, 100, 0, 51] * 4)), [244, 224, 204]),
    "colour and alpha, opaque": (png(8, COLOUR_ALPHA, bytes([200, 100, 0, 255] * 4)), [200, 100, 0]),
    "colour and alpha, nothing": (png(8, COLOUR_ALPHA, bytes([200, 100, 0, 0] * 4)), [255, 255, 255]),
    "palette": (png(8, PALETTE, bytes([1] * 4), TWO_COLOURS), [10, 20, 30]),
    "palette, transparent": (png(8, PALETTE, bytes(4), TWO_COLOURS, chunk(b"tRNS", bytes([51]))), [244, 224, 214]),
    "palette, another is transparent": (
        png(8, PALETTE, bytes([1] * 4), TWO_COLOURS, chunk(b"tRNS", bytes([0]))),
        [10, 20, 30],
    ),
    "one colour is transparent": (
        png(8, COLOUR, bytes([7, 9, 8] * 4), chunk(b"tRNS", struct.pack(">3H", 7, 9, 8))),
        [255, 255, 255],
    ),
    "one grey is transparent": (png(8, GREY, bytes([7] * 4), chunk(b"tRNS", struct.pack(">H", 7))), [255] * 3),
    "1 bit, white": (png(1, GREY, bytes([0b11110000])), [255] * 3),
    "1 bit, black": (png(1, GREY, bytes(1)), [0] * 3),
    "2 bits": (png(2, GREY, bytes([0b01010101])), [85] * 3),
    "4 bits": (png(4, GREY, bytes([0xAA, 0xAA])), [170] * 3),
}


@pytest.mark.parametrize("case", CASES)
def test_values_are_those_of_the_file(case: str, tmp_path: Path) -> None:
    content, expected = CASES[case]
    (tmp_path / "a.png").write_bytes(content)
    found = picture.picture(tmp_path / "a.png", 4)
    assert found.shape == (4, 4, 3)
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("ink", [(0, 255, 255, 0), (0, 0, 0, 255), (128, 0, 64, 51), (0, 0, 0, 0)])
def test_four_inks_are_what_they_leave_of_the_light(ink: tuple[int, ...], tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), ink).save(tmp_path / "a.jpg", quality=100, subsampling=0)
    light = [255 * (1 - colour / 255) * (1 - ink[3] / 255) for colour in ink[:3]]
    assert np.abs(picture.picture(tmp_path / "a.jpg", 4)[0, 0] - light).max() <= 3


# What a camera notes, and where the upper left corner of what was seen lies in the file: rows, columns.
CORNERS = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}


@pytest.mark.parametrize("orientation", CORNERS)
def test_pictures_are_turned_as_they_were_held(orientation: int, tmp_path: Path) -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    row, column = CORNERS[orientation]
    pixels[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 255
    noted = Image.Exif()
    noted[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95, exif=noted)
    found = picture.picture(tmp_path / "a.jpg", 32)[:, :, 0]
    quarters = [found[:14, :14].mean(), found[:14, 18:].mean(), found[18:, :14].mean(), found[18:, 18:].mean()]
    np.testing.assert_allclose(quarters, [255, 0, 0, 0], atol=6)


def test_a_folder_of_grey_pictures_of_16_bits_is_as_bright_as_they_are(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (20, 20), dtype=np.uint16)
    for part in ("train", "val"):
        (tmp_path / part / "only").mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / part / "only" / "a.png")
    splits = load("folder", tmp_path, images=ImageSettings(size=20, mean=[0, 0, 0], std=[1, 1, 1]))
    np.testing.assert_allclose(splits.train.x[:][0, 0].numpy(), pixels / 65535, atol=0.5 / 255 + 1e-6)


def test_other_formats_are_refused_whatever_they_are_called(tmp_path: Path) -> None:
    for name, form in (("a.png", "GIF"), ("b.jpg", "TIFF"), ("c.png", "EPS")):
        Image.new("RGB", (8, 8)).save(tmp_path / name, form)
        with pytest.raises(DataError, match=rf"{name} cannot be decoded .*cannot identify"):
            picture.picture(tmp_path / name, 4)


@pytest.mark.parametrize(("size", "said"), [((8193, 8192), "more than 67,108,864"), ((4000, 4000), "and has .* bytes")])
def test_what_declares_more_than_it_holds_is_refused(size: tuple[int, int], said: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1, GREY, bytes(500), size=size, rows=1))
    with pytest.raises(DataError, match=rf"a\.png cannot be decoded .*{said}"):
        picture.picture(tmp_path / "a.png", 4)


def together_read(together: threading.Barrier, path: Path) -> None:
    together.wait()
    picture.picture(path, 8)


def test_large_pictures_are_read_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(tmp_path / "a.png")
    most, now, lock, colours = [0], [0], threading.Lock(), picture.colours

    def counted(image: Image.Image) -> Image.Image:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        found = colours(image)
        # Where two may be here at once, one waits for the other, however busy the machine is.
        if most[0] > 1:
            met.set()
        met.wait(300 if several else 0.02)
        with lock:
            now[0] -= 1
        return found

    monkeypatch.setattr(picture, "colours", counted)
    for large, several in ((2**22, True), (2**11, False)):
        met = threading.Event()
        monkeypatch.setattr(picture, "_LARGE", large)
        most[0] = 0
        together = threading.Barrier(4)
        ways = (together, tmp_path / "a.png")
        readers = [threading.Thread(target=together_read, args=ways) for _ in range(4)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        assert (most[0] > 1) == several
