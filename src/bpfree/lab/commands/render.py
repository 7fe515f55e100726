"""Pictures of a scene by a trained run: a still with its maps, a moving picture, or the surface as a mesh."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from bpfree.lab.data.scenes import Cameras
from bpfree.lab.disk.files import require_place
from bpfree.lab.errors import RunError, SettingsError
from bpfree.lab.kept.scenes import KeptScene, find_scene_run, load_scene_run
from bpfree.lab.options.render import RenderOptions
from bpfree.lab.process.environment import device
from bpfree.lab.rendering.mesh import surface, write_ply
from bpfree.lab.rendering.passes import Passes
from bpfree.lab.rendering.paths import looked_at, sway, turntable
from bpfree.lab.rendering.pictures import bytes_of, still_files, write_moving, write_still
from bpfree.lab.rendering.rays import Rays
from bpfree.lab.rendering.view import Renders, render_view

_LARGEST = 2**26
"""Pixels of a picture: 8,192 x 8,192."""


def render(options: RenderOptions, console: Console | None = None) -> list[Path]:
    """Draw what a run has learned of its scene, without the scene's photographs.

    Beside one picture, and the small ones of a GIF, memory does not grow with the resolution. Files are there whole or
    not at all.

    Args:
        options: The run, what is drawn, how large, and where to.
        console: Where progress and the files are shown; None shows nothing.

    Returns:
        The files.

    Raises:
        RunError: There is no such run, or no checkpoint in it, or its model renders nothing, or it has no surface.
        SettingsError: There is no such view; the picture is too large; the motion or a mesh does not suit the scene; a
            run beside is on another scene; a model has no two fields to average; what writes MP4 or finds surfaces is
            not installed.
        DamageError: A file of the run is damaged, or its checkpoint is of another net.
        TrustError: The run has a model of one's own, and nobody has vouched for it.
        WriteError: A file could not be written; where nothing can be written at all, before anything is rendered.
    """
    if options.name is None:
        raise RunError("Name the folder of a run: bpfree render runs/NAME.")
    still = not (options.mesh or options.motion)
    for path in still_files(options.path) if still else (options.path,):
        require_place(path)  # now, and not behind hours of rendering
    kept = _load(options.name, options)
    if options.mesh:
        return [_write_mesh(kept, options, console)]
    others = [_beside(name, kept, options) for name in options.beside or ()]
    cameras = _cameras(kept, options)
    with _progress(console) as progress:
        rays = progress.add_task("rays", total=(1 + len(others)) * len(cameras) * cameras.pixels)
        models = [_Counting(one.model, lambda count: progress.advance(rays, count)) for one in (kept, *others)]
        shown = (_side_by_side(models, cameras, number, dual=options.dual) for number in range(len(cameras)))
        if options.motion:
            write_moving(options.path, (bytes_of(one["colours"]) for one in shown))
            written = [options.path]
        else:
            written = write_still(options.path, next(shown), cameras.far)
    if console is not None:
        if options.motion is None:
            console.print(f"view: {kept.names[options.view - 1]}", soft_wrap=True)
        for path in written:
            console.print(f"picture: {path} ({len(models) * cameras.width} x {cameras.height})", soft_wrap=True)
    return written


def _progress(console: Console | None) -> Progress:
    return Progress(console=console, transient=True, disable=console is None or not console.is_terminal)


def _write_mesh(kept: KeptScene, options: RenderOptions, console: Console | None) -> Path:
    """Write the surface in the cube around the ball in which rays begin and end."""
    cameras, model = kept.around, kept.model
    if cameras.ndc is not None:
        raise SettingsError(
            "--mesh: this run's scene is seen from the front alone, and its field lives in normalized device "
            "coordinates. Draw a still or --motion sway."
        )
    field, passes = getattr(model, "field", None), getattr(model, "passes", Passes())
    if field is None:
        raise RunError(f"{type(model).__name__} has no attribute field, whose surface could be drawn.")
    density = options.density or math.log(2) * passes.samples / (cameras.far - cameras.near)
    with _progress(console) as progress:
        places = progress.add_task("places", total=(options.cells + 1) ** 3)
        mesh = surface(
            field, looked_at(cameras.poses), (cameras.far - cameras.near) / 2, options.cells, density,
            lambda count: progress.advance(places, count),
        )  # fmt: skip
    write_ply(options.path, mesh)
    if console is not None:
        size = f"{len(mesh.places):,} corners, {len(mesh.triangles):,} triangles, density {density:.3g}"
        console.print(f"mesh: {options.path} ({size})", soft_wrap=True)
    return options.path


def _load(name: str, options: RenderOptions) -> KeptScene:
    kept = load_scene_run(find_scene_run(Path(name).expanduser()), trust=options.trust)
    if isinstance(kept.model, nn.Module):
        kept.model.to(device())
    return kept


def _beside(name: str, first: KeptScene, options: RenderOptions) -> KeptScene:
    """Return another run on the same scene."""
    kept = _load(name, options)
    if not torch.equal(kept.around.poses, first.around.poses) or kept.around.ndc != first.around.ndc:
        raise SettingsError(f"--beside {name}: this run was trained on other views than {options.name}.")
    return kept


def _cameras(kept: KeptScene, options: RenderOptions) -> Cameras:
    """Return the cameras of what is drawn, one a picture."""
    cameras = kept.cameras if options.motion is None else kept.around
    if options.width is not None:
        cameras = cameras.resized(options.width)
        if (1 + len(options.beside or ())) * cameras.pixels > _LARGEST:
            raise SettingsError(
                f"--width {options.width}: {cameras.width} x {cameras.height} pixels for each run are more than "
                f"{_LARGEST:,} in all. Name a smaller width."
            )
    if options.motion is None:
        if options.view > len(cameras):
            raise SettingsError(
                f"--view {options.view}: the run has {len(cameras)} held-out views, 1 to {len(cameras)}."
            )
        return cameras.take(torch.tensor([options.view - 1]))
    if options.motion == "sway":
        return sway(cameras, options.frames)
    if cameras.ndc is not None:
        raise SettingsError(
            "--motion turntable: this run's scene is seen from the front alone (normalized device coordinates). Name "
            "--motion sway."
        )
    return turntable(cameras, options.frames)


def _side_by_side(models: Sequence[Renders], cameras: Cameras, number: int, *, dual: bool) -> dict[str, Tensor]:
    shown = [render_view(model, cameras, number, dual=dual) for model in models]
    return {name: torch.cat([one[name] for one in shown], dim=1) for name in shown[0]}


class _Counting:
    """A model that tells how many rays it has rendered."""

    def __init__(self, model: Renders, tell: Callable[[int], None]) -> None:
        self._model, self._tell = model, tell

    def render(self, rays: Rays, *, dual: bool = False) -> dict[str, Tensor]:
        found = self._model.render(rays, dual=dual)
        self._tell(len(rays.origins))
        return found
