"""Write pictures: stills with their maps as PNG, and moving pictures as GIF or MP4."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from bpfree.lab.disk.files import replacing
from bpfree.lab.errors import SettingsError
from bpfree.lab.extras import missing

_A_SECOND = 20
"""Pictures. GIF counts in hundredths of a second: not every rate can be had."""


def bytes_of(colours: Tensor) -> np.ndarray:
    """Return colours or greys from 0 to 1, of any shape, as uint8 from 0 to 255."""
    return np.asarray((colours.detach().cpu().clamp(0, 1) * 255).round().byte().numpy())


def write_still(path: Path, shown: Mapping[str, Tensor], far: float) -> list[Path]:
    """Write a view, and beside it the maps of its depth and its opacity.

    Depth is 16-bit grey: 0 where nothing is seen, 65,535 at ``far``. Opacity is 8-bit grey: white where nothing shines
    through. The three files are put in place when all are whole.

    Args:
        path: The picture's file; the maps have ``-depth`` and ``-opacity`` in their names.
        shown: What :func:`bpfree.lab.rendering.view.render_view` returns.
        far: The largest depth.

    Returns:
        The files.

    Raises:
        WriteError: One could not be written.
    """
    depth = (shown["depth"].detach().cpu().double() / far).clamp(0, 1) * (2**16 - 1)
    pictures = (
        Image.fromarray(bytes_of(shown["colours"])),
        Image.fromarray(depth.round().numpy().astype(np.uint16)),
        Image.fromarray(bytes_of(shown["opacity"])),
    )
    places = still_files(path)
    with ExitStack() as whole:
        for place, picture in zip(places, pictures, strict=True):
            picture.save(whole.enter_context(replacing(place)), format="PNG")
    return places


def still_files(path: Path) -> list[Path]:
    """Return the files of a still that is written to ``path``: the picture, its depth and its opacity."""
    return [path, *(path.with_stem(f"{path.stem}-{what}") for what in ("depth", "opacity"))]


def write_moving(path: Path, frames: Iterator[np.ndarray]) -> None:
    """Write frames, uint8 ``(height, width, 3)`` of one size, as a GIF without an end, or as an MP4.

    Raises:
        SettingsError: An MP4 is asked for, and what writes it is not installed; no frame has been taken then.
        WriteError: The file could not be written.
    """
    if path.suffix == ".mp4":
        _write_mp4(path, frames)
        return
    # A palette for each picture; scattered dots, which imitate further colours, would flicker and not compress.
    shown = (Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in frames)
    with replacing(path) as temporary:
        first = next(shown)
        first.save(temporary, format="GIF", save_all=True, append_images=shown, duration=1000 // _A_SECOND, loop=0)


def _write_mp4(path: Path, frames: Iterator[np.ndarray]) -> None:
    try:
        from imageio_ffmpeg import write_frames
    except ModuleNotFoundError as error:
        raise SettingsError(f"--to {path}: {missing(error) or error} Or name a .gif.") from error
    with replacing(path) as temporary:
        even = (_even(frame) for frame in frames)
        first = next(even)
        # The temporary file's ending does not say what it is. Sizes are even already: it would scale them to 16s.
        writer = write_frames(
            str(temporary), (first.shape[1], first.shape[0]), fps=_A_SECOND, quality=8, macro_block_size=2,
            output_params=["-f", "mp4"],
        )  # fmt: skip
        writer.send(None)
        try:
            writer.send(first)
            for frame in even:
                writer.send(frame)
        finally:
            writer.close()


def _even(frame: np.ndarray) -> np.ndarray:
    """Return a frame of even width and height, the last column and row doubled if need be: MP4 has no other ones."""
    height, width = frame.shape[:2]
    return np.ascontiguousarray(np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"))
