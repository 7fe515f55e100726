"""Runs on scenes: their fields can be rendered without the photographs that they were trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bpfree.lab.data.scenes import Cameras, Scene, Views
from bpfree.lab.data.scenes.cameras import require_pose
from bpfree.lab.disk.files import read_json, write_json
from bpfree.lab.errors import DamageError, DataError, RunError
from bpfree.lab.kept.model import find_run, keep_model, load_model, read_settings
from bpfree.lab.rendering.view import Renders
from bpfree.lab.settings import RunSettings

_CAMERAS = "cameras.json"
_HELD_OUT, _TRAINED_ON = "views", "trained_on"


@dataclass(frozen=True)
class KeptScene:
    """A trained field.

    Attributes:
        model: It renders rays, see :func:`bpfree.lab.rendering.view.render_view`.
        cameras: Those of the held-out views, where rays begin and end, and normalized device coordinates.
        names: The name of each held-out view.
        around: The cameras of the views that were trained on: all that is known of where the scene can be seen from.
    """

    model: Renders
    cameras: Cameras
    names: tuple[str, ...]
    around: Cameras


def keep_scene(settings: RunSettings, scene: Scene, folder: Path) -> None:
    """Write down, in a run's folder, what its model is built of, background included, and the cameras.

    Raises:
        WriteError: A file could not be written.
    """
    keep_model(settings, scene, folder)
    cameras = scene.evaluation.cameras
    size = {name: getattr(cameras, name) for name in ("width", "height", "near", "far", "ndc")}
    views = {_HELD_OUT: _listed(scene.evaluation), _TRAINED_ON: _listed(scene.train)}
    write_json(folder / _CAMERAS, size | views)


def _listed(views: Views) -> list[dict[str, Any]]:
    cameras = views.cameras
    numbers = (part.tolist() for part in (cameras.poses, cameras.focal, cameras.centre))
    return [
        {"name": name, "pose": pose, "focal": focal, "centre": centre}
        for name, pose, focal, centre in zip(views.names, *numbers, strict=True)
    ]


def load_scene_run(folder: Path, *, trust: bool = False) -> KeptScene:
    """Build the model of a run, finished or interrupted, with the weights of its last whole checkpoint.

    Args:
        folder: The run's folder, see :func:`find_scene_run`.
        trust: True if a model of one's own may be imported, wherever the folder lies.

    Raises:
        TrustError: The model is of one's own, and nobody has vouched for the file that names it.
        RunError: There is no checkpoint, or the model renders nothing.
        DamageError: A file is not as it was written, no checkpoint is whole, or it is of another net.
        SettingsError: The model cannot be built.
    """
    kept, path = read_json(folder / _CAMERAS), folder / _CAMERAS
    try:
        cameras, around = (_cameras(kept, part, path) for part in (_HELD_OUT, _TRAINED_ON))
        names = tuple(str(view["name"]) for view in kept[_HELD_OUT])
    # A checksum can be made for anything, and a file of somebody else may hold anything.
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DamageError(
            f"{path} does not hold the cameras of a run's views ({error}). Train the run anew."
        ) from error
    model = load_model(folder, read_settings(folder, trust=trust))
    return KeptScene(_renders(model), cameras, names, around)


def _cameras(kept: Mapping[str, Any], part: str, path: Path) -> Cameras:
    poses, focal, centre = (
        torch.tensor([view[name] for view in kept[part]], dtype=torch.float64) for name in ("pose", "focal", "centre")
    )
    if not len(poses) or focal.shape != (len(poses), 2) or centre.shape != focal.shape:
        raise DataError("each view needs a pose, two focal lengths and a centre")
    for view, pose in zip(kept[part], poses, strict=True):
        require_pose(pose.numpy(), f"{path.name}: {view['name']}")
    width, height = int(kept["width"]), int(kept["height"])
    near, far = float(kept["near"]), float(kept["far"])
    if min(width, height) < 1 or not 0 <= near < far:
        raise DataError(f"{width} x {height} pixels, near {near:g}, far {far:g}")
    ndc = None if kept["ndc"] is None else (float(kept["ndc"][0]), float(kept["ndc"][1]))
    return Cameras(poses, focal, centre, width, height, near, far, ndc)


def _renders(model: nn.Module) -> Any:
    if not callable(getattr(model, "render", None)):
        raise RunError(
            f"{type(model).__name__} has no method render(rays, *, dual): nothing can be drawn with it. "
            "bpfree.lab.rendering.view.Renders says what it returns."
        )
    return model


def find_scene_run(place: Path) -> Path:
    """Return the folder of a run on a scene, see :func:`bpfree.lab.kept.model.find_run`."""
    return find_run(place, _CAMERAS, "a scene")
