"""The commands of ``bpfree``, and what their words mean."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Sequence
from typing import Any

import bpfree
from bpfree.errors import BpfreeError
from bpfree.lab.options.generate import GenerateOptions
from bpfree.lab.options.parser import Parser, add_options, read_options, summary, with_model
from bpfree.lab.options.predict import PredictOptions
from bpfree.lab.options.render import RenderOptions
from bpfree.lab.options.training import CompareOptions, DemoOptions, TrainOptions
from bpfree.lab.settings.trust import FLAG, names_code, search_current_folder
from bpfree.lab.tables.command_options import ReportOptions, TableOptions, TuneOptions

_DESCRIPTION = """Train neural networks without backpropagation, and see what that costs and buys.

Begin with:  bpfree demo               (5,000 digits, no network needed, a minute)
Then:        bpfree compare --data mnist --data-dir DIR --epochs 10
             bpfree train --rule DFA --model my_file.MyNet
             bpfree generate RUN --prompt "To be"   (text of a model that bpfree train has trained)
             bpfree predict RUN FILE   (the probabilities of clicks)
             bpfree render RUN --motion turntable   (pictures of a scene)
             bpfree table --list       (published tables, beside the papers' numbers)
"""
_INTERRUPTED = 130  # what a shell reports of a program ended by Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 0, 1 for an error that is explained, 130 after Ctrl-C."""
    # A terminal or pipe that knows ASCII alone gets question marks and no exception.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Other modules of the current folder would be imported in place of installed ones.
    if names_code(words):
        search_current_folder()
    parser, commands = make_parser(trust=f"--{FLAG}" in words)
    name = next(iter(words), "")
    try:
        parsed = parser.parse_args(with_model(words))
    except BpfreeError as error:
        return _explained(name, error)
    name = parsed.command
    try:
        options = read_options(commands[name], parsed[name], _COMMANDS[name])
        _run(name, options)
    except BpfreeError as error:
        return _explained(name, error)
    except (KeyboardInterrupt, SystemExit):
        # Lightning turns Ctrl-C into SystemExit.
        print(_HINTS.get(name, "Interrupted. Finished runs are kept; the same command continues."), file=sys.stderr)
        return _INTERRUPTED
    return 0


def _explained(name: str, error: BpfreeError) -> int:
    print(f"bpfree {name}: {error}", file=sys.stderr)
    return 1


_COMMANDS: dict[str, type[Any]] = {
    "demo": DemoOptions,
    "compare": CompareOptions,
    "train": TrainOptions,
    "generate": GenerateOptions,
    "predict": PredictOptions,
    "render": RenderOptions,
    "table": TableOptions,
    "tune": TuneOptions,
    "report": ReportOptions,
}
_MODULES = {
    "demo": "bpfree.lab.commands.demo",
    "compare": "bpfree.lab.commands.compare",
    "train": "bpfree.lab.commands.train",
    "generate": "bpfree.lab.commands.generate",
    "predict": "bpfree.lab.commands.predict",
    "render": "bpfree.lab.commands.render",
    "table": "bpfree.lab.tables.table",
    "tune": "bpfree.lab.tables.tune",
    "report": "bpfree.lab.tables.recipe_page",
}
"""Command -> the module of the function that is called like it."""


_HINTS = {
    "train": "Interrupted. Finished runs are kept; the same command continues with --resume.",
    "generate": "Interrupted.",
    "predict": "Interrupted. Nothing was written.",
    "render": "Interrupted. Nothing was written.",
}
"""Command -> what is said after Ctrl-C, where it is not what others say."""


def _run(name: str, options: Any) -> None:
    # Imported here, so that --help and mistakes in the command line are answered at once.
    from bpfree.lab.process import replicas
    from bpfree.lab.process.console import make_console
    from bpfree.lab.process.quiet import quiet

    replicas.check(f"bpfree {name}", able=name == "train")
    command = getattr(importlib.import_module(_MODULES[name]), name)
    with quiet():
        command(options, make_console())


def make_parser(*, trust: bool = False) -> tuple[Parser, dict[str, Parser]]:
    """Make the parser, and those of the commands by name.

    Args:
        trust: True if configuration files may name code wherever they lie.
    """
    parser = Parser(prog="bpfree", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"bpfree {bpfree.__version__}")
    subcommands = parser.add_subcommands(dest="command")
    commands: dict[str, Parser] = {}
    for name, kind in _COMMANDS.items():
        commands[name] = Parser(description=summary(kind))
        commands[name].trust = trust
        add_options(commands[name], kind)
        subcommands.add_subcommand(name, commands[name], help=summary(kind))
    return parser, commands
