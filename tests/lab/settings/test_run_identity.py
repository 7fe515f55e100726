"""The names of records: settings that came later change them only for runs that use those."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import bpfree
from bpfree.lab.data.augmentation import Augmentation
from bpfree.lab.settings import RuleSettings, RunSettings, rule_settings
from bpfree.lab.settings.identity import LATER_ARGUMENTS, LATER_INSIDE, LATER_SETTINGS
from bpfree.lab.settings.model import ModelSettings
from bpfree.lab.settings.plain_values import plain
from support import tiny_lab


def cnn(**arguments: object) -> RunSettings:
    return tiny_lab.settings(model=ModelSettings("CNN", arguments).describe(), taps=["pool*", "act"])


def language() -> RunSettings:
    return tiny_lab.settings(model=ModelSettings("CausalTransformer").describe(), task="language", steps=8)


# Of the version before there was augmentation, and before these models had more arguments.
@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (tiny_lab.settings, "DFA-seed0-0683963768"),
        (cnn, "DFA-seed0-4c2675ffa7"),
        (language, "DFA-seed0-7ca72b3be2"),
    ],
)
def test_records_of_an_earlier_version_are_found(settings, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.13.0")
    monkeypatch.setattr(bpfree, "__version__", "0.1.0")
    assert settings().name(tiny_lab.splits().describe()) == name


def test_runs_that_use_them_have_names_of_their_own() -> None:
    settings = [
        tiny_lab.settings(),
        tiny_lab.settings(augmentation=Augmentation(flip=True)),
        tiny_lab.settings(augmentation=Augmentation(crop_padding=4)),
        tiny_lab.settings(augmentation=Augmentation(crop_padding=5)),
        tiny_lab.settings(augmentation=Augmentation(resized_crop_scale=(0.1, 1.0))),
        tiny_lab.settings(augmentation=Augmentation(resized_crop_scale=(0.1, 1.0), resized_crop_ratio=(1.0, 1.0))),
        tiny_lab.settings(alignment="last"),
        tiny_lab.settings(visualize="conv1"),
        tiny_lab.settings(clip=0.5),
        tiny_lab.settings(accumulate=2),
        tiny_lab.settings(precision="bf16"),
        *(
            tiny_lab.settings(rule=replace(rule_settings("DFA"), **changes))
            for changes in (
                {"beta2": 0.98},
                {"eps": 1e-9},
                {"optimizer": "RAdam"},
                {"schedule": "noam", "warmup": 5},
                {"schedule": "noam", "warmup": 6},
                {"schedule": "validation-plateau"},
                {"schedule": "plateau"},
            )
        ),
    ]
    for class_path, later in LATER_ARGUMENTS.items():
        plain_model = ModelSettings(class_path).describe()
        for name, value in later.items():
            other = not value if isinstance(value, bool) else 0.25
            model = plain_model | {"init_args": plain_model["init_args"] | {name: other}}
            settings.append(replace(tiny_lab.settings(), model=model))
    names = [entry.name({}) for entry in settings]
    assert len(set(names)) == len(names)


FEEDBACK = """
import dataclasses, bpfree
@dataclasses.dataclass(frozen=True)
class Narrow(bpfree.Feedback):
    pass
"""


def test_a_name_knows_the_code_of_classes_inside_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    place = tmp_path / "sketched_feedback.py"
    place.write_text(FEEDBACK)
    rule = bpfree.DFA(feedback=importlib.import_module("sketched_feedback").Narrow())
    settings = tiny_lab.settings(rule=RuleSettings(rule=rule))
    before = settings.name({})
    assert settings.name({}) == before
    place.write_text(FEEDBACK + "# another thought")
    assert settings.name({}) != before


def test_layerwise_rules_of_the_same_arguments_have_names_of_their_own() -> None:
    rules = [RuleSettings(rule=bpfree.DFA(), window=2, within=kind()) for kind in (bpfree.FA, bpfree.KolenPollack)]
    assert len({tiny_lab.settings(rule=rule).name({}) for rule in rules}) == 2


def test_one_sample_and_all_samples_have_names_of_their_own() -> None:
    rules = [RuleSettings(rule=bpfree.FDFA(rows=rows)) for rows in (1, 1.0)]
    assert len({tiny_lab.settings(rule=rule).name({}) for rule in rules}) == 2


def test_what_is_left_out_is_the_default() -> None:
    described = plain(tiny_lab.settings(rule=rule_settings("FDFA")))
    assert {name: described[name] for name in LATER_SETTINGS} == LATER_SETTINGS
    for path, value in LATER_INSIDE.items():
        inside: Any = described
        for name in path:
            inside = inside[name]
        assert inside == value, path
    for class_path, later in LATER_ARGUMENTS.items():
        described = ModelSettings(class_path).describe()["init_args"]
        assert later == {name: described[name] for name in later}
