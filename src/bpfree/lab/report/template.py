"""Pages of one look: what they need is in them, and they open from disk without a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bpfree.lab.report import text
from bpfree.lab.report.style import Mark

HERE = Path(__file__).parent


def rendered(template: Path, marks: Sequence[Mark], **values: Any) -> str:
    """Return a page as text.

    Args:
        template: A file that extends ``shell.html``.
        marks: The colours and dashes of its curves; the template finds each by its label, with its number.
        values: The page's other content. All but Markup is escaped.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, HERE]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template(template.name).render(
        marks={mark.label: (number, mark) for number, mark in enumerate(marks)},
        text=text,
        css=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        js=Markup((HERE / "page.js").read_text(encoding="utf-8")),
        **values,
    )
