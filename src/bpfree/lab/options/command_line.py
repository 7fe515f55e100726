"""The command line that asks for given options."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import bpfree
from bpfree.lab.options.training import Options
from bpfree.lab.settings import RuleOverrides
from bpfree.lab.settings.model import ModelSettings
from bpfree.lab.settings.plain_values import import_path, plain, rule_options


def command_line(command: str, options: Options) -> str:
    """Return the command that asks for exactly these options."""
    words = ["bpfree", command]
    for entry in fields(options):
        value, default = getattr(options, entry.name), getattr(type(options)(), entry.name)
        if isinstance(value, ModelSettings):
            value = value.describe()
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
