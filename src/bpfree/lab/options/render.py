"""The options of ``bpfree render``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from bpfree.lab.errors import SettingsError

Motion: TypeAlias = Literal["turntable", "sway"]
_MOVING = (".gif", ".mp4")
_STILL = ".png"
_MESH = ".ply"
_AT_MOST = {"frames": 10_000, "cells": 1_000}


@dataclass(frozen=True, kw_only=True)
class RenderOptions:
    """Draw pictures of a scene, or its surface, with the radiance field of a run of bpfree train.

    Args:
        name: The run: the folder that bpfree train wrote to, or its record or checkpoint.
        view: The number of a held-out view, counted from 1, that is drawn as a still.
        motion: Draw a moving picture in place of a still: turntable goes once around the scene, and sway once around an
            ellipse before a scene whose cameras all look forward.
        beside: Other runs on the same scene: what they show stands to the right, in this order, by the same cameras.
        frames: The number of pictures in it; 20 are shown in a second.
        width: Pixels in a row, any number; by default as many as the photographs have.
        dual: Average the coarse and the fine field (NeRF-Dual of Launay et al. 2020).
        mesh: Make a mesh of the scene's surface in place of a picture; it needs the extra rendering.
        cells: For a mesh: the cells along an edge of the cube that is looked through.
        density: For a mesh: the density that the surface has; by default that at which half of the light is lost from
            one point of the coarse pass to the next.
        to: The file. A still is a .png: beside it come the maps of depth and opacity, with -depth and -opacity in their
            names. A moving picture is a .gif or an .mp4; the latter needs the extra rendering. A mesh is a .ply. By
            default view-1.png, turntable.gif, mesh.ply and so on, in the current folder.
        trust: Let a run use a model of your own by the import path in its folder, wherever that lies.
    """

    name: str | None = None
    view: int = 1
    motion: Motion | None = None
    beside: list[str] | None = None
    frames: int = 60
    width: int | None = None
    dual: bool = False
    mesh: bool = False
    cells: int = 128
    density: float | None = None
    to: str | None = None
    trust: bool = False

    def __post_init__(self) -> None:
        for name, value in (("view", self.view), ("frames", self.frames), ("width", self.width), ("cells", self.cells)):
            if value is not None and value < 1:
                raise SettingsError(f"--{name} {value} must be at least 1.")
        for name, most in _AT_MOST.items():
            if getattr(self, name) > most:
                raise SettingsError(f"--{name} {getattr(self, name)} must be at most {most:,}.")
        if self.density is not None and not 0 < self.density < math.inf:
            raise SettingsError(f"--density {self.density} must be a number above 0.")
        if self.mesh and (self.motion or self.beside or self.dual or self.width):
            raise SettingsError(
                "--mesh: a mesh is of one run, and no picture. Leave out motion, beside, dual and width."
            )
        what, kinds = self._what
        if self.path.suffix not in kinds:
            raise SettingsError(f"--to {self.path}: {what} is a file that ends in {' or '.join(kinds)}.")

    @property
    def _what(self) -> tuple[str, tuple[str, ...]]:
        """Name the kind of file, and list the endings that it may have; the first is the default."""
        if self.mesh:
            return "a mesh", (_MESH,)
        return ("a moving picture", _MOVING) if self.motion else ("a still", (_STILL,))

    @property
    def path(self) -> Path:
        """The file that is written."""
        if self.to is not None:
            return Path(self.to).expanduser()
        name = "mesh" if self.mesh else self.motion or f"view-{self.view}"
        return Path(f"{name}{self._what[1][0]}")
