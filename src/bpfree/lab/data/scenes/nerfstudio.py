"""Scenes of Nerfstudio: one list of views, ``transforms.json``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bpfree.lab.data.scenes.photographs import checksum
from bpfree.lab.data.scenes.scene import Scene, spread
from bpfree.lab.data.scenes.settings import MeasuredOn, SceneSettings
from bpfree.lab.data.scenes.transforms import Frame, Listed, make_views, read_list
from bpfree.lab.disk.files import storable
from bpfree.lab.errors import DataError

_PARTS: dict[MeasuredOn, str] = {"validation": "val_filenames", "test": "test_filenames"}


def load_nerfstudio(data_dir: Path | None, settings: SceneSettings | None = None) -> Scene:
    """Read ``transforms.json`` and its pictures; poses are taken as they stand there.

    Views are held out as the file says (``val_filenames``, ``test_filenames``); in a file that does not, every eighth
    in the order of names.

    Args:
        data_dir: The scene's folder.
        settings: The options for reading it; ``near`` and ``far`` must be named.

    Raises:
        DataError: No folder is given; the list or a view is missing or does not fit; no views are held out, or none are
            left; pictures have masks, or a lens that bends lines.
        SettingsError: The bounds are not named, or mean nothing.
    """
    settings = settings or SceneSettings()
    if data_dir is None:
        raise DataError("nerfstudio: pass --data-dir DIR, a scene's folder, with transforms.json.")
    path = data_dir / "transforms.json"
    bounds = settings.bounds(None, None, str(path))
    listed = read_list(path)
    _require_no_masks(listed)
    train, held_out, measured_on = _split(listed, settings)
    held_out = tuple(held_out[number] for number in spread(len(held_out), settings.views).tolist())
    views = make_views(listed, (*train, *held_out), settings.channels, bounds, settings.background or 0.0)
    pictures = checksum([frame.picture for frame in listed.frames])
    return Scene(
        storable(data_dir.resolve().name),
        views.choose(torch.arange(len(train))),
        views.choose(torch.arange(len(train), len(train) + len(held_out))),
        measured_on,
        {path.name: listed.checksum, f"pictures of {path.name}": pictures},
    )


Split = tuple[tuple[Frame, ...], tuple[Frame, ...], MeasuredOn]


def _split(listed: Listed, settings: SceneSettings) -> Split:
    """Return the views to learn from, those that are held out, and what the latter are called."""
    if any(key in listed.content for key in _PARTS.values()):
        found = _said(listed, settings)
    else:
        ordered = sorted(listed.frames, key=lambda frame: frame.name)
        held_out = tuple(ordered[:: settings.hold_out])
        found = tuple(frame for frame in ordered if frame not in held_out), held_out, "test"
    if not found[0] or not found[1]:
        missing = "views to learn from" if not found[0] else "held-out views"
        raise DataError(f"{listed.path}: no {missing}, of {len(listed.frames)} in all.")
    return found


def _said(listed: Listed, settings: SceneSettings) -> Split:
    """Return what the file itself holds out."""
    key = _PARTS[settings.measured_on]
    known = {frame.name: frame for frame in listed.frames}
    parts = {}
    for part in ("train_filenames", key):
        names: Any = listed.content.get(part, [])
        if not isinstance(names, list):
            raise DataError(f"{listed.path}: {part} is no list of names. Put them in brackets.")
        unknown = [name for name in names if not isinstance(name, str) or name not in known]
        if unknown:
            raise DataError(f"{listed.path}: {part} names {unknown[0]!r}, which is no view of the list.")
        parts[part] = tuple(known[name] for name in names)
    _require_once(listed, parts)
    if not parts[key]:
        other = next(name for name in _PARTS if name != settings.measured_on)
        raise DataError(f"no held-out views: {listed.path} has no {key}. Name --scene.measured_on {other}.")
    return parts["train_filenames"], parts[key], settings.measured_on


def _require_once(listed: Listed, parts: Mapping[str, tuple[Frame, ...]]) -> None:
    """Raise DataError if a view stands twice: no view that is held out may be trained on."""
    names = Counter(frame.name for part in parts.values() for frame in part)
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{listed.path}: {twice} stands twice in {' and '.join(parts)}. Leave it in one of them, once.")


def _require_no_masks(listed: Listed) -> None:
    masked = next((frame.name for frame in listed.frames if frame.lens.get("mask_path")), None)
    if masked is not None:
        raise DataError(f"{listed.path}: {masked} has a mask_path, and masks are not read: leave them out of the list.")
