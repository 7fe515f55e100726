"""The options of ``bpfree render``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from bpfree.lab.errors import SettingsError

Motion: TypeAlias = Literal["turntable", "sway"]
_MOVING = (".gif", ".mp4")
_STILL = ".png"


@dataclass(frozen=True, kw_only=True)
class RenderOptions:
    """Draw pictures of a scene, with the radiance field of a run of bpfree train.

    Args:
        name: The run: the folder that bpfree train wrote to, or its record or checkpoint.
        view: The number of a held-out view, counted from 1, that is drawn as a still.
        motion: Draw a moving picture in place of a still: turntable goes once around the scene, and sway once around an
            ellipse before a scene whose cameras all look forward.
        beside: Other runs on the same scene: what they show stands to the right, in this order, by the same cameras.
        frames: The number of pictures in it; 20 are shown in a second.
        width: Pixels in a row, any number; by default as many as the photographs have.
        dual: Average the coarse and the fine field (NeRF-Dual of Launay et al. 2020).
        to: The file. A still is a .png: beside it come the maps of depth and opacity, with -depth and -opacity in their
            names. A moving picture is a .gif or an .mp4; the latter needs the extra rendering. By default view-1.png,
            turntable.gif and so on, in the current folder.
        trust: Let a run use a model of your own by the import path in its folder, wherever that lies.
    """

    name: str | None = None
    view: int = 1
    motion: Motion | None = None
    beside: list[str] | None = None
    frames: int = 60
    width: int | None = None
    dual: bool = False
    to: str | None = None
    trust: bool = False

    def __post_init__(self) -> None:
        for name, value in (("view", self.view), ("frames", self.frames), ("width", self.width)):
            if value is not None and value < 1:
                raise SettingsError(f"--{name} {value} must be at least 1.")
        kinds = _MOVING if self.motion else (_STILL,)
        if self.path.suffix not in kinds:
            what = "a moving picture" if self.motion else "a still"
            raise SettingsError(f"--to {self.path}: {what} is a file that ends in {' or '.join(kinds)}.")

    @property
    def path(self) -> Path:
        """The file that is written."""
        if self.to is not None:
            return Path(self.to).expanduser()
        return Path(f"{self.motion}.gif" if self.motion else f"view-{self.view}{_STILL}")
