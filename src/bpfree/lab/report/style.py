"""One colour and dash pattern per rule, in every chart, for light paper and dark screens.

The six hues have a contrast of at least 3 : 1 to the page (WCAG 2.2, 1.4.11), and keep a distance of at least 0.13 in
OKLab, in pairs and to the ink, also as seen with protanopia, deuteranopia and tritanopia (Machado's matrices). From the
seventh rule on they come back dashed, and every six later with another pattern.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LIGHT = ("#0e5ee0", "#b04b0f", "#07536b", "#80261a", "#c38906", "#009ddc")
DARK = ("#3772e4", "#f15836", "#2bd2a6", "#ab7096", "#f0ce29", "#b9a6ff")
SOLID = (1, 0)
DASHES = (SOLID, (6, 3), (2, 2))
_STROKE, _DOT = (8, 2), (2, 2)
# Backpropagation is the reference: ink. The frozen control is the floor: grey and dotted.
REFERENCE = ("#1b1b1f", "#f2f2f2", SOLID)
CONTROL = ("#77777d", "#9d9da5", (1.5, 3))


@dataclass(frozen=True)
class Mark:
    """The colours and the dash pattern of a rule.

    Attributes:
        label: the rule's label in the comparison.
        light: colour on white.
        dark: colour on a dark screen.
        dash: lengths of strokes and gaps in turn, in pixels.
    """

    label: str
    light: str
    dark: str
    dash: tuple[float, ...]


@dataclass(frozen=True)
class Style:
    """The style of a chart: marks in rule order, the colours of text and lines."""

    marks: Sequence[Mark]
    colours: Sequence[str]
    ink: str = "currentColor"
    grid: str = "var(--grid)"
    zero: str = "var(--zero)"
    paper: str = "var(--paper)"
    font: str = "system-ui, sans-serif"


def marks(labels: Sequence[str], rules: Mapping[str, Any]) -> list[Mark]:
    """Return the marks of `labels`, no two alike; `rules` are the settings per label, which name the rules.

    Of several labels whose rule is backpropagation, or the frozen control, the first one has its look.
    """
    special: dict[str, tuple[str, str, tuple[float, ...]]] = {"BP": REFERENCE, "Shallow": CONTROL}
    found, taken = [], 0
    for label in labels:
        look = special.pop(rules.get(label, {}).get("rule", label), None)
        if look is None:
            cycle, hue = divmod(taken, len(LIGHT))
            look = LIGHT[hue], DARK[hue], _dash(cycle)
            taken += 1
        found.append(Mark(label, *look))
    return found


def _dash(cycle: int) -> tuple[float, ...]:
    """Return the pattern of all hues in their first turn (0), second turn ...; later a stroke with ever more dots."""
    return DASHES[cycle] if cycle < len(DASHES) else _STROKE + _DOT * (cycle - len(DASHES) + 1)


def on_screen(found: Sequence[Mark]) -> Style:
    """Return colours as CSS variables of the page, so that the charts follow the reader's light or dark mode."""
    return Style(found, [f"var(--rule-{i})" for i in range(len(found))])


def on_paper(found: Sequence[Mark]) -> Style:
    """Return plain colours, for a picture on white."""
    return Style(found, [m.light for m in found], "#33333a", "#e4e4e8", "#a2a2ac", "#ffffff", "sans-serif")
