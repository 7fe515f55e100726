"""The options for reading scenes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from bpfree.lab.errors import SettingsError

MeasuredOn: TypeAlias = Literal["validation", "test"]
Channels: TypeAlias = Literal["any", "rgb", "rgba"]


@dataclass(frozen=True, kw_only=True)
class SceneSettings:
    """The options for reading a scene.

    Args:
        measured_on: Which held-out views are rendered and scored, where a scene has both. Choose settings on
            validation, then measure once on test.
        folder: The scene's folder below --data-dir, such as nerf_synthetic/lego; by default --data-dir itself.
        views: Measure on no more than so many held-out views, spread evenly over all; None takes all.
        hold_out: Of a scene without held-out views (LLFF, Nerfstudio) every so manieth is held out, the first included.
        near: The distance at which rays begin; by default 2 in a scene of Blender, and by the file's bounds in LLFF.
        far: The distance at which they end; by default 6 in a scene of Blender.
        ndc: LLFF: use normalized device coordinates, for cameras that all look forward. False for cameras all around.
        factor: LLFF: read the folder images_N with this N, 1 for images; by default the only one that is there.
        channels: What pictures must have: three channels (rgb) or transparency as well (rgba).
        background: The colour behind transparent pixels, 0 for black and 1 for white; by default white in a scene of
            Blender, and black in the others.
    """

    measured_on: MeasuredOn = "validation"
    folder: str | None = None
    views: int | None = None
    hold_out: int = 8
    near: float | None = None
    far: float | None = None
    ndc: bool = True
    factor: int | None = None
    channels: Channels = "any"
    background: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("views", 1), ("hold_out", 2), ("factor", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise SettingsError(f"--scene.{name} {value} must be at least {least}.")
        for name in ("near", "far"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise SettingsError(f"--scene.{name} {value} must be 0 or a positive number.")
        if self.near is not None and self.far is not None and self.near >= self.far:
            raise SettingsError(f"--scene.near {self.near} must lie before --scene.far {self.far}.")
        if self.background is not None and not 0 <= self.background <= 1:
            raise SettingsError(f"--scene.background {self.background} must lie between 0, black, and 1, white.")

    def bounds(self, near: float | None, far: float | None, where: str) -> tuple[float, float]:
        """Return where rays begin and end.

        Args:
            near: The scene's own, which a setting replaces; None if it has none.
            far: Likewise.
            where: The file or format that they come from, for errors.

        Raises:
            SettingsError: One is not known, or near is not before far.
        """
        found = near if self.near is None else self.near, far if self.far is None else self.far
        begin, end = found
        if begin is None or end is None:
            raise SettingsError(
                f"{where} does not say where the scene begins and ends: name --scene.near and --scene.far, distances "
                "from the cameras in the units of their positions."
            )
        if begin >= end:
            raise SettingsError(
                f"{where}: near {begin:g} is not before far {end:g}; name --scene.near and --scene.far."
            )
        return begin, end
