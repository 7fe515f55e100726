"""What the two commands can be asked, and the command line that asks it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

import bpfree
from bpfree.lab.errors import SettingsError
from bpfree.lab.models.build import ModelSettings
from bpfree.lab.settings import (
    DEFAULT_RULES,
    RuleOverrides,
    RunSettings,
    import_path,
    plain,
    rule_options,
    rule_settings,
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What both commands take.

    Args:
        data: The data set: digits (5,000 real handwritten digits that come with an installed package, no network) or
            mnist (all 70,000).
        data_dir: The folder with the original files of MNIST; without it they are downloaded once.
        validation: Hold out this many training images and measure on them in place of the test set. Choose settings
            this way; then measure once on the test set.
        epochs: Passes over the training images.
        batch_size: Images a step.
        lr: A learning rate for every rule that has none in --settings; without it, that of each rule's preset.
        settings: What differs from a rule's preset, by label. For example --settings.DFA.lr 1e-4,
            --settings.DFA.optimizer SGD, --settings.Mine.rule my_file.MyRule.
        threads: Threads that torch computes with; by default its own choice.
        out: The folder for results; a name in runs/ by default.
        model: The network: MLP, CNN, or any torch.nn.Module by import path. Its arguments follow as --model.NAME; those
            called shape and classes come from the data.
        taps: Names or glob patterns of the modules of the network after which feedback enters; by default every
            non-linearity.
        error_at: The name of the module at whose output the error is taken; by default the network's output.
    """

    data: str = "digits"
    data_dir: str | None = None
    validation: int = 0
    epochs: int = 5
    batch_size: int = 128
    lr: float | None = None
    settings: dict[str, RuleOverrides] = field(default_factory=dict)
    threads: int | None = None
    out: str | None = None
    model: ModelSettings = field(default_factory=ModelSettings)
    taps: list[str] | None = None
    error_at: str | None = None

    def run(self, label: str, seed: int, *, details: bool) -> RunSettings:
        """The settings of one run.

        Raises:
            SettingsError: A value means nothing.
        """
        return RunSettings(
            label=label,
            seed=seed,
            rule=rule_settings(label, self.settings, self.lr),
            model=self.model.describe(),
            taps=self.taps,
            error_at=self.error_at,
            epochs=self.epochs,
            batch_size=self.batch_size,
            threads=self.threads or torch.get_num_threads(),
            details=details,
        )

    def directory(self) -> Path:
        """The folder for results."""
        return Path(self.out or Path("runs") / self.default_name()).expanduser()

    def default_name(self) -> str:
        """What that folder is called if it is not named."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class CompareOptions(Options):
    """Train one network by several rules over several seeds, and report.

    Args:
        rules: The labels of the rules, in the table's order: BP, Shallow (the frozen control), FA, uSF, frSF, brSF,
            DFA, sDFA, "ternary DFA", DRTP, or labels of your own that --settings explains.
        seeds: How many seeds (0, 1, ...), or a list of them such as [0, 5].
    """

    rules: list[str] = field(default_factory=lambda: list(DEFAULT_RULES))
    seeds: int | list[int] = 3

    def __post_init__(self) -> None:
        if not self.rules or len(set(self.rules)) < len(self.rules):
            raise SettingsError(f"--rules {' '.join(self.rules)}: name at least one rule, and each only once.")
        chosen = self.seed_list()
        if not chosen or len(set(chosen)) < len(chosen):
            raise SettingsError(f"--seeds {self.seeds}: give at least one seed, and each only once.")
        for label in self.settings:
            if label not in self.rules:
                hint = bpfree.errors.nearest(label, self.rules)
                raise SettingsError(f"--settings.{label}: no rule of this name is compared. {hint}")

    def seed_list(self) -> list[int]:
        """The seeds."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)

    def default_name(self) -> str:
        """One folder a data set."""
        return f"compare-{self.data}"


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Options):
    """Train one network by one rule.

    Args:
        rule: The label of the rule, as for compare.
        seed: Determines the initial weights, the order of the data and the feedback.
        resume: Continue an interrupted run of the same settings from its last complete epoch.
    """

    rule: str = "DFA"
    seed: int = 0
    resume: bool = False

    def default_name(self) -> str:
        """One folder a data set, rule and seed."""
        return f"train-{self.data}-{self.rule.replace(' ', '-')}-seed{self.seed}"


def command_line(command: str, options: Options) -> str:
    """The command that asks for exactly these options."""
    words = ["bpfree", command]
    for entry in fields(options):
        value, default = getattr(options, entry.name), getattr(type(options)(), entry.name)
        if isinstance(value, ModelSettings):
            value, default = value.describe(), default.describe()
        if value != default:
            words += [f"--{entry.name.replace('_', '-')}", *_words(value)]
    return shlex.join(words)


def _words(value: Any) -> list[str]:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    if isinstance(value, bool):
        return [str(value).lower()]
    return [value if isinstance(value, str) else json.dumps(_asked(value))]


def _asked(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _asked(item) for key, item in value.items()}
    if isinstance(value, RuleOverrides):
        return {name: _asked(item) for name, item in value.given().items()}
    if isinstance(value, bpfree.Rule):
        return {"class_path": import_path(type(value)), "init_args": rule_options(value)}
    return plain(value)
