"""docs/support.md, made of the declaration: ``make support``."""

from __future__ import annotations

from pathlib import Path

from support.matrix import FEATURES, ROWS, Cell, cell

PAGE = Path(__file__).parents[2] / "docs" / "support.md"
SIGNS = {"holds": "yes", "gap": "**gap**", "meaningless": "-"}

HEAD = """\
# What works with what

Every rule under every feature of PyTorch. Each cell is a test in `tests/test_support.py`; `make support` writes this
page from `tests/support/matrix.py`.

- **yes**: the test passes.
- **gap**: it does not work. The test is there and must fail; when it passes, the cell has to be changed.
- **-**: the combination has no meaning.
"""


class Notes:
    """What is to be said of the cells, each thing once, numbered in the order in which it is met."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, known: Cell) -> str:
        """The cell as the table has it."""
        if not known.reason:
            return SIGNS[known.status]
        number = self._numbers.setdefault(known.reason, len(self._numbers) + 1)
        return f"{SIGNS[known.status]} [{number}]"

    def lines(self) -> list[str]:
        """The list below the table."""
        return [f"{number}. {reason}" for reason, number in self._numbers.items()]


def page() -> str:
    """The whole page."""
    notes = Notes()
    titles = [feature.title for feature in FEATURES.values()]
    table = [_line("rule", *titles), _line(*["---"] * (len(titles) + 1))]
    table += [_line(row, *(notes.mark(cell(feature, row)) for feature in FEATURES)) for row in ROWS]
    means = [f"- **{feature.title}**: {feature.means}" for feature in FEATURES.values()]
    return "\n".join([HEAD, *table, "", *notes.lines(), "", "## What is tested", "", *means]) + "\n"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    PAGE.write_text(page())
