"""jsonargparse, with options from a dataclass's documentation and with errors that name the nearest valid word."""

from __future__ import annotations

import argparse
import functools
import inspect
import itertools
import re
import sys
from collections.abc import Sequence
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, get_args, get_type_hints

import yaml
from docstring_parser import parse
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace, get_loader, set_loader
from torch import nn

from bpfree.errors import nearest
from bpfree.lab.options.training import Options
from bpfree.lab.settings import RuleOverrides
from bpfree.lab.settings.argument_errors import mistake
from bpfree.lab.settings.model import ModelSettings, with_import_path
from bpfree.lab.settings.plain_values import default
from bpfree.lab.settings.signatures import FROM_DATA
from bpfree.lab.settings.trust import FLAG, vouched
from bpfree.lab.tasks import task_of

_MODE = "bpfree"
_WORDS = {"rules": "LABEL", "taps": "NAME", "cell": "ROW/COLUMN", "beside": "RUN"}
"""Options that take several words, and what one of them is called."""
_ARGUMENTS = ("name", "file")
"""Those that are given without their names."""


def _load(text: str) -> Any:
    """Load YAML in which bpfree's networks may be named without a path, even if other packages use the same names."""
    value = get_loader("yaml")(text)
    if isinstance(value, dict) and "model" in value:
        value["model"] = with_import_path(value["model"])
    return value


set_loader(_MODE, _load, exceptions=(yaml.YAMLError,))


class _Help(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help texts without the list of every module that torch has."""

    def _expand_help(self, action: argparse.Action) -> str:
        return re.sub(r", known subclasses: [^)]*", "", super()._expand_help(action))


class Parser(ArgumentParser):
    """A parser whose errors are one line and a hint.

    Attributes:
        trust: True if configuration files may name code wherever they lie.
    """

    trust = False

    def __init__(self, *args: Any, **options: Any) -> None:
        # A shortened option would mean something else as soon as another one begins like it.
        ours: dict[str, Any] = {"formatter_class": _Help, "allow_abbrev": False, "parser_mode": _MODE}
        super().__init__(*args, **ours | options)

    def parse_path(self, cfg_path: Any, *args: Any, **options: Any) -> Namespace:
        """Parse a configuration file, if it names no code, or the user has vouched for it."""
        path = Path(str(cfg_path))
        vouched(path, _configured(str(path)), trust=self.trust)
        return super().parse_path(cfg_path, *args, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong and end the program with status 2."""
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        program = parser.prog.replace(" [options]", "")
        found = mistake(message)
        said = message if found is None else f"{_flag(found.place[0])}: {found.within(found.place[0])}"
        sys.stderr.write(f"{program}: error: {said}\n{hint(message, parser)}Options: {program} --help\n")
        self.exit(2)


def _flag(place: str) -> str:
    # Options of a group, such as --text.measured_on, are called as their fields are.
    return f"--{place if '.' in place else place.replace('_', '-')}"


def hint(message: str, parser: ArgumentParser) -> str:
    """Return the nearest valid word, on a line of its own, or nothing if the message is about something else."""
    options = [text for action in parser._actions for text in action.option_strings]
    asked = re.search(r"unrecognized arguments: --([\w-]+)", message)
    name = asked[1].replace("-", "_") if asked else ""
    if "--settings" in options and name in {entry.name for entry in fields(RuleOverrides)}:
        return f"It is a setting of a rule: --settings.LABEL.{name}, such as --settings.DFA.{name}.\n"
    for pattern, valid in (
        (r"unrecognized arguments: (--[\w.-]+)", options),
        (r"does not accept option '([\w.-]+)'", [action.dest for action in parser._actions]),
        (r"invalid choice: '([^']*)'", _quoted(message.partition("choose from")[2])),
    ):
        found = re.search(pattern, message)
        if found and valid:
            return nearest(found[1], valid) + "\n"
    return ""


def _quoted(text: str) -> list[str]:
    return re.findall(r"'?([\w.-]+)'?", text)


_TRUST = "Let a configuration file run the code that it names. Read it first: what it names is imported."


def add_options(parser: Parser, kind: type[Any]) -> None:
    """Add one option for each field of the dataclass ``kind``, with help texts from its docstring, and ``--config``.

    Fields that are called ``name`` or ``file`` are arguments without a name.
    """
    parser.add_argument("--config", action="config", help="A YAML file with any of these options.")
    if FLAG not in {entry.name for entry in fields(kind)}:
        parser.add_argument(f"--{FLAG}", action="store_true", help=_TRUST)
    for entry in sorted(fields(kind), key=lambda entry: entry.name not in ("rules", "rule", "seeds", "seed")):
        add_option(parser, kind, entry.name)


def add_option(parser: Parser, kind: type[Any], name: str) -> None:
    """Add the option for one field of the dataclass ``kind``, with the help text from its docstring."""
    entry, hint, text = _described(kind)[name]  # type: ignore[arg-type]  # for mypy a type has no hash
    flag = f"--{name.replace('_', '-')}"
    if name == "model":
        parser.add_subclass_arguments(
            nn.Module, "model", as_group=False, instantiate=False, required=False, skip=set(FROM_DATA), help=text
        )
    elif name in _ARGUMENTS:
        parser.add_argument(name, type=hint, nargs="?", help=text)
    elif name in _WORDS:
        parser.add_argument(flag, type=str, nargs="+", default=default(entry), help=text, metavar=_WORDS[name])
    elif hint is bool:
        parser.add_argument(flag, action="store_true", help=text)
    else:
        parser.add_argument(flag, type=hint, default=default(entry), help=text)


@functools.cache
def _described(kind: type[Any]) -> dict[str, tuple[Field[Any], Any, str]]:
    """Return the fields of a dataclass with their types and their help texts, by name."""
    hints, texts = get_type_hints(kind), _texts(kind)
    return {entry.name: (entry, hints[entry.name], texts[entry.name]) for entry in fields(kind)}


def read_options(parser: Parser, parsed: Namespace, kind: type[Any]) -> Any:
    """Return the options that were parsed.

    Raises:
        SettingsError: A value means nothing.
    """
    for name, (entry, hint, _) in _described(kind).items():  # type: ignore[arg-type]
        if parsed.get(name) is None and NoneType not in get_args(hint):
            # null in a file, for what has no such value: as if it were not there
            parsed[name] = Namespace() if is_dataclass(hint) else default(entry)
    values = parser.instantiate(parsed).as_dict()
    given = {entry.name: values[entry.name] for entry in fields(kind)}
    if given.get("model") is not None:
        # As it was given: the model is built anew in every run, after that run's seed is set.
        given["model"] = ModelSettings(parsed.model.class_path, parsed.model.as_dict().get("init_args", {}))
    return kind(**given)


def with_model(arguments: Sequence[str]) -> list[str]:
    """Return the command line with its model by import path; a default model is added if only arguments are given.

    jsonargparse could take the model from a default, but would then pass that default's arguments to any other model
    with arguments of the same names.
    """
    words = [word for argument in arguments for word in _parts(argument)]
    named = [
        part
        for before, word in itertools.pairwise(["", *words])
        for part in (_model_words(word) if before == "--model" else [word])
    ]
    given = dict(itertools.pairwise(named))
    asked = _configured(given.get("--config")) | ({"data": given["--data"]} if "--data" in given else {})
    if "--model" in given or "model" in asked or not any(word.startswith("--model.") for word in named):
        return named
    return [*named[:1], "--model", ModelSettings(task_of(asked.get("data", Options.data)).model).full_path, *named[1:]]


def _model_words(name: str) -> list[str]:
    """Return a model by import path, and the option that gives the path of a model of transformers."""
    found = with_import_path(name)
    return [found] if isinstance(found, str) else [found["class_path"], "--model.path", found["init_args"]["path"]]


def _parts(argument: str) -> list[str]:
    """Split ``--name=value`` into two words, for the options that are looked at here."""
    name, sign, value = argument.partition("=")
    return [name, value] if sign and name in ("--model", "--data", "--config") else [argument]


def _configured(path: str | None) -> dict[str, Any]:
    """Return the content of a configuration file; nothing if it cannot be read: then the parser reports the error."""
    try:
        return dict(_load(Path(path).read_text(encoding="utf-8"))) if path else {}
    except (OSError, ValueError, TypeError, yaml.YAMLError):
        return {}


def summary(kind: type[Any]) -> str:
    """Return the first line of a dataclass's documentation."""
    return parse(inspect.getdoc(kind) or "").short_description or ""


def _texts(kind: type[Any]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        for entry in parse(base.__doc__ or "").params:
            texts[entry.arg_name] = " ".join((entry.description or "").split())
    return texts
