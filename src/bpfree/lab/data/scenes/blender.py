"""Scenes of Blender, as those of Mildenhall et al. 2020: three lists of views."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bpfree.lab.data.scenes.photographs import checksum
from bpfree.lab.data.scenes.scene import Scene, spread
from bpfree.lab.data.scenes.settings import SceneSettings
from bpfree.lab.data.scenes.transforms import Listed, make_views, read_list
from bpfree.lab.disk.files import storable
from bpfree.lab.errors import DataError

_BOUNDS = 2.0, 6.0
_PARTS = {"validation": "val", "test": "test"}


def load_blender(data_dir: Path | None, settings: SceneSettings | None = None) -> Scene:
    """Read ``transforms_train.json``, and ``transforms_val.json`` or ``transforms_test.json``, and their pictures.

    The focal length comes from the horizontal field of view and the width of the pictures, whatever their size, or from
    ``fl_x`` where the list has it.

    Args:
        data_dir: The scene's folder.
        settings: The options for reading it.

    Raises:
        DataError: No folder is given; a list or a view is missing or does not fit; no views are held out.
        SettingsError: The bounds mean nothing.
    """
    settings = settings or SceneSettings()
    if data_dir is None:
        raise DataError("blender: pass --data-dir DIR, a scene's folder, with transforms_train.json.")
    bounds = settings.bounds(*_BOUNDS, "blender")
    background = 1.0 if settings.background is None else settings.background
    held_out = read_held_out(data_dir, settings)
    train = read_list(data_dir / "transforms_train.json")
    if not train.frames:
        raise DataError(f"{train.path} lists no views to learn from.")
    numbers = spread(len(held_out.frames), settings.views).tolist()
    held_out = replace(held_out, frames=tuple(held_out.frames[number] for number in numbers))
    learned, measured = (
        make_views(one, one.frames, settings.channels, bounds, background) for one in (train, held_out)
    )
    if learned.pixels.shape[1:3] != measured.pixels.shape[1:3]:
        raise DataError(f"the views of {held_out.path} have another size than those of {train.path}.")
    checksums = _checksums(train) | _checksums(held_out)
    return Scene(storable(data_dir.resolve().name), learned, measured, settings.measured_on, checksums)


def read_held_out(data_dir: Path, settings: SceneSettings) -> Listed:
    """Read the list of views that are measured on.

    Raises:
        DataError: It is missing or empty.
    """
    path = data_dir / f"transforms_{_PARTS[settings.measured_on]}.json"
    other = next(name for name in _PARTS if name != settings.measured_on)
    remedy = f"Name --scene.measured_on {other}, or put views there."
    if not path.is_file():
        raise DataError(f"no held-out views: {path} is missing. {remedy}")
    found = read_list(path)
    if not found.frames:
        raise DataError(f"no held-out views: {path} lists none. {remedy}")
    return found


def _checksums(listed: Listed) -> dict[str, str]:
    name = listed.path.name
    return {name: listed.checksum, f"pictures of {name}": checksum([frame.picture for frame in listed.frames])}
