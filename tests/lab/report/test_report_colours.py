"""Colours can be told from the page and from each other, whatever a reader's colour vision."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

pytest.importorskip("altair")

from bpfree.lab.report import style
from bpfree.lab.report.charts import CLASS_COLOURS
from bpfree.lab.report.template import HERE

# Machado, Oliveira and Fernandes 2009, severity 1, of linear RGB.
SEEN = {
    "everybody": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
# Ottosson 2020, from linear sRGB.
CONES = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566]]
CONES += [[0.0883024619, 0.2817188376, 0.6299787005]]
LAB = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099]]
LAB += [[0.0259040371, 0.7827717662, -0.8086757660]]


def linear(colour: str) -> np.ndarray:
    """`#rrggbb` as light, by the definition of sRGB."""
    value = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2."""
    low, high = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in (linear(one), linear(other)))
    return (high + 0.05) / (low + 0.05)


def oklab(light: np.ndarray) -> np.ndarray:
    return np.array(LAB) @ np.cbrt(np.array(CONES) @ light)


def papers() -> tuple[str, str]:
    """The light and the dark page's own colour."""
    light, dark = re.findall(r"--paper: (#\w{6})", (HERE / "page.css").read_text(encoding="utf-8"))
    return light, dark


def test_the_measures_are_right() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # a known pair
    assert oklab(linear("#ffffff")) == pytest.approx([1, 0, 0], abs=1e-6)
    assert oklab(linear("#ff0000")) == pytest.approx([0.628, 0.225, 0.126], abs=1e-3)


@pytest.mark.parametrize(("place", "hues"), [(0, style.LIGHT), (1, style.DARK)])
def test_lines_stand_out_from_the_page(place: int, hues: tuple[str, ...]) -> None:
    for colour in (*hues, style.REFERENCE[place], style.CONTROL[place]):
        assert contrast(colour, papers()[place]) >= 3, colour


@pytest.mark.parametrize("colour", CLASS_COLOURS)
def test_classes_stand_out_from_both_pages(colour: str) -> None:
    assert min(contrast(colour, paper) for paper in papers()) >= 3


@pytest.mark.parametrize("vision", SEEN)
@pytest.mark.parametrize("hues", [(*style.LIGHT, style.REFERENCE[0]), (*style.DARK, style.REFERENCE[1])])
def test_hues_differ_whatever_the_colour_vision(vision: str, hues: tuple[str, ...]) -> None:
    seen = {colour: oklab(np.clip(np.array(SEEN[vision]) @ linear(colour), 0, 1)) for colour in hues}
    for one, other in itertools.combinations(hues, 2):
        assert np.linalg.norm(seen[one] - seen[other]) >= 0.13, (one, other)
