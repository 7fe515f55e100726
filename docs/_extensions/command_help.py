"""The directive ``command-help``: what ``bpfree COMMAND --help`` prints."""

from __future__ import annotations

import os
from typing import Any, ClassVar

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from bpfree.lab.commands import make_parser


class CommandHelp(SphinxDirective):
    """Show the options of the command that is named."""

    required_arguments: ClassVar[int] = 1

    def run(self) -> list[nodes.Node]:
        """Return the help as a literal block."""
        os.environ["COLUMNS"] = "78"  # argparse asks for the width; a page shows this many
        self.env.note_reread()  # the options are in the sources, which Sphinx does not watch
        _, commands = make_parser()
        text = commands[self.arguments[0]].format_help().replace(" \b", "")  # as a terminal shows a backspace
        return [nodes.literal_block(text, text, language="text")]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
