"""A command line, as the program reads it."""

from bpfree.lab.commands import make_parser
from bpfree.lab.options.parser import read_options, with_model
from bpfree.lab.options.training import CompareOptions


def compare_options(*words: str) -> CompareOptions:
    """What ``bpfree compare WORDS`` asks for."""
    parser, commands = make_parser()
    return read_options(commands["compare"], parser.parse_args(with_model(["compare", *words])).compare, CompareOptions)
