"""``bpfree report FILE.json``: the HTML page of a comparison, made again from its numbers."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from rich.console import Console

from bpfree.lab.disk.files import read_json
from bpfree.lab.errors import SettingsError
from bpfree.lab.tables.command_options import ReportOptions

SUFFIX = ".json"
"""A name that ends so is the file of a comparison; recipes are YAML files, or have a name alone."""


def comparison_page(options: ReportOptions, console: Console | None = None) -> Path:
    """Write ``report.html`` beside the ``comparison.json`` that ``bpfree compare`` wrote; nothing is trained.

    Args:
        options: The file under ``name``; what else can be asked is for recipes.
        console: Where the page's path is shown; None shows nothing.

    Returns:
        The page's path.

    Raises:
        SettingsError: There is no such file, or an option is for recipes alone.
        DamageError: The file is damaged.
        ReportError: It holds no comparison.
    """
    # Drawing needs libraries that take seconds to import.
    from bpfree.lab import report

    path = Path(str(options.name))
    usual = ReportOptions(name=options.name)
    for entry in fields(options):
        if getattr(options, entry.name) != getattr(usual, entry.name):
            raise SettingsError(
                f"--{entry.name.replace('_', '-')}: {path} is a comparison, not a recipe; leave it out."
            )
    if not path.is_file():
        raise SettingsError(f"{path} is not a file. Name the comparison.json of a finished bpfree compare.")
    page = report.write(read_json(path), path.with_name("report.html"))
    if console is not None:
        console.print(f"page: {page}", soft_wrap=True)
    return page
