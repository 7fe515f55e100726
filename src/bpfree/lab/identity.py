"""What a run's name is made of, so that records of before a setting existed are still found.

A record's file name holds a hash of the run's settings. A setting that comes later must not change it for runs that do
not use that setting: at the value that stands here it is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LATER_SETTINGS: dict[str, Any] = {
    "augmentation": {
        "crop_padding": 0,
        "flip": False,
        "resized_crop_scale": None,
        "resized_crop_ratio": [3 / 4, 4 / 3],
    },
    "alignment": "every",
    "visualize": None,
}
"""Setting of a run -> what runs did before it came."""
LATER_INSIDE: dict[tuple[str, ...], Any] = {
    ("rule", "decayed"): None,
    ("rule", "rule", "feedback", "spread"): 0,
    ("rule", "rule", "feedback", "max_bytes"): 4 * 2**30,
}
"""The same of settings inside others, by the way to them."""
LATER_ARGUMENTS: dict[str, dict[str, Any]] = {
    "bpfree.lab.models.MLP": {
        "negative_slope": 0.01,
        "batch_norm": False,
        "input_dropout": 0.0,
        "dropout_before_activation": False,
    },
    "bpfree.lab.models.CNN": {"batch_norm": False, "input_dropout": 0.0, "conv_dropout": 0.0, "dropout": 0.0},
}
"""Model -> its argument -> what it did before that came."""


def identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings, as plain values, without its label and without later settings that it does not use."""
    model = settings["model"]
    later = LATER_ARGUMENTS.get(model.get("class_path", ""), {})
    return {
        **_without_inside(_without(settings, LATER_SETTINGS)),
        "model": model | ({"init_args": _without(model["init_args"], later)} if later else {}),
        "label": None,
    }


def _without_inside(settings: dict[str, Any]) -> dict[str, Any]:
    for (*way, name), value in LATER_INSIDE.items():
        settings = _left_out(settings, way, name, value)
    return settings


def _left_out(settings: Any, way: list[str], name: str, value: Any) -> Any:
    """``settings`` without the one of this name at the end of a way, if it has this value."""
    if not isinstance(settings, Mapping):
        return settings
    if way:
        first, *rest = way
        return {**settings, first: _left_out(settings[first], rest, name, value)} if first in settings else settings
    return _without(settings, {name: value})


def _without(values: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in later or value != later[name]}
