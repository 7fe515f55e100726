"""The identity of a run: the settings and the user's own code that decide its numbers.

File names of records and keys of a table's runs hold hashes of it. A setting that is added later must not change the
identity of runs that do not use it, or their records would no longer be found: at the value listed here it is left out.
A user's own code changes without a version, so the identity holds a hash of its files.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bpfree.feedback.options import is_default

_VERSIONED = ("bpfree", "torch")
HUGGING_FACE = "bpfree.lab.models.hugging_face.CausalLM"
"""The class of transformers' models. Its ``content`` is a hash of the files that lie in its ``path``."""

LATER_SETTINGS: dict[str, Any] = {
    "augmentation": {
        "crop_padding": 0,
        "flip": False,
        "resized_crop_scale": None,
        "resized_crop_ratio": [3 / 4, 4 / 3],
    },
    "alignment": "every",
    "visualize": None,
    "clip": None,
    "accumulate": 1,
    "precision": "float32",
    "patience": None,
    "restored": "best",
    "processes": 1,
}
"""For each later setting of a run, the value that earlier runs had without it."""
LATER_INSIDE: dict[tuple[str, ...], Any] = {
    ("rule", "decayed"): None,
    ("rule", "beta2"): 0.999,
    ("rule", "eps"): 1e-8,
    ("rule", "warmup"): 0,
    ("rule", "alternate"): 1,
    ("rule", "alternate_order"): "cyclic",
    ("rule", "rule", "rows"): 1.0,
    ("rule", "rule", "feedback", "spread"): 0,
    ("rule", "rule", "feedback", "rank"): None,
    ("rule", "rule", "feedback", "max_bytes"): 4 * 2**30,
}
"""The same for settings inside others, by the path to them."""
LATER_ARGUMENTS: dict[str, dict[str, Any]] = {
    "bpfree.lab.models.MLP": {
        "negative_slope": 0.01,
        "batch_norm": False,
        "input_dropout": 0.0,
        "dropout_before_activation": False,
    },
    "bpfree.lab.models.CNN": {"batch_norm": False, "input_dropout": 0.0, "conv_dropout": 0.0, "dropout": 0.0},
    "bpfree.lab.models.CausalTransformer": {
        "placement": "macro",
        "attention": "standard",
        "initialization": "default",
        "identical_blocks": False,
    },
}
"""For each model its later arguments, with the values that earlier runs had without them."""


def identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's settings, as plain values, without its label and without later settings that it does not use."""
    model = without_places(settings["model"])
    later = LATER_ARGUMENTS.get(model.get("class_path", ""), {})
    return {
        **_without_inside(_without(settings, LATER_SETTINGS)),
        "model": dict(model) | ({"init_args": _without(model["init_args"], later)} if later else {}),
        "label": None,
    }


def without_places(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a model without the path of files whose hash is beside it: the same files may lie anywhere."""
    if model.get("class_path") != HUGGING_FACE:
        return model
    return {**model, "init_args": _without(model["init_args"], {"path": model["init_args"]["path"]})}


def versions(model: Mapping[str, Any]) -> list[str]:
    """Return the versions of packages, beside torch and bpfree, that a model's numbers depend on."""
    if model.get("class_path") != HUGGING_FACE:
        return []
    with suppress(PackageNotFoundError):  # who builds the model says that it is missing
        return [version("transformers")]
    return []


def _without_inside(settings: dict[str, Any]) -> dict[str, Any]:
    for (*path, name), value in LATER_INSIDE.items():
        settings = _left_out(settings, path, name, value)
    return settings


def _left_out(settings: Any, path: list[str], name: str, value: Any) -> Any:
    """Return ``settings`` without the setting ``name`` at the end of ``path``, if it has this value."""
    if not isinstance(settings, Mapping):
        return settings
    if path:
        first, *rest = path
        return {**settings, first: _left_out(settings[first], rest, name, value)} if first in settings else settings
    return _without(settings, {name: value}) if is_default(settings.get(name), value) else settings


def _without(values: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in later or value != later[name]}


def own_code(module: str) -> str | None:
    """Return a hash of a module's file if it is a user's; None if it is bpfree's or torch's, or has no file."""
    if module.partition(".")[0] in _VERSIONED:
        return None
    path = getattr(importlib.import_module(module), "__file__", None)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else None


def own_codes(rule: object, within: object, model: Mapping[str, Any]) -> list[Any]:
    """Return hashes of the files of a rule's and a model's class, and of the user's other modules, by module.

    Others are the files of the rule carried ``within``, of the classes that any of these are derived from, and of the
    classes and functions among their arguments. What such a file imports besides is not seen.

    Args:
        rule: The rule.
        within: The rule that carries signals down, or None.
        model: ``class_path`` and ``init_args``.
    """
    named = [type(rule).__module__, model["class_path"].rpartition(".")[0]]
    others = {entry.__module__ for kind in _inside([rule, within, model]) for entry in _ancestry(kind)}
    found = {module: own_code(module) for module in sorted(others - set(named)) if _is_own(module)}
    return [*map(own_code, named), *([found] if found else [])]


def _inside(value: Any) -> Iterator[Any]:
    """Yield the classes and functions in a value; a mapping may name a class by its ``class_path``."""
    if is_dataclass(value) and not isinstance(value, type):
        yield type(value)
        value = [getattr(value, entry.name) for entry in fields(value)]
    if isinstance(value, Mapping):
        path = value.get("class_path")
        if isinstance(path, str):
            yield from _imported(path)
        value = value.values()
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        for item in value:
            yield from _inside(item)
    elif hasattr(value, "__qualname__"):
        yield value
    elif value is not None:
        yield type(value)


def _imported(path: str) -> Iterator[Any]:
    module, _, name = path.rpartition(".")
    if module and module.partition(".")[0] not in _VERSIONED:
        yield getattr(importlib.import_module(module), name)


def _ancestry(kind: Any) -> tuple[Any, ...]:
    return kind.__mro__ if isinstance(kind, type) else (kind,)


def _is_own(module: str | None) -> bool:
    root = (module or "").partition(".")[0]
    return bool(root) and root not in _VERSIONED and root not in sys.stdlib_module_names
