"""Draw the figure that defines tap, segment, error and signal: ``python docs/figures/step.py``."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
COLOURS = {
    "light": {"ink": "#1f2328", "faint": "#59636e", "fill": "#eaf3ff", "segment": "#0969da", "tap": "#8250df"},
    "dark": {"ink": "#e6edf3", "faint": "#9198a1", "fill": "#12233d", "segment": "#58a6ff", "tap": "#b98cff"},
}
SIGNAL = {"light": "#b04500", "dark": "#f0903e"}
WORDS = [
    ("tap", "tap", "an output h where the graph is cut"),
    ("segment", "segment", "the layers between two taps"),
    ("signal", "error e", "the gradient of the loss at the output, ∂L/∂o"),
    ("signal", "signal d", "what a tap gets in place of ∂L/∂h"),
]
TAPS = (221, 397)  # where the two cuts are
FORWARD, BACK = 84, 196  # the heights of the way up and of the error's way


def svg(scheme: str) -> str:
    """Return the figure for a light or a dark page."""
    colour = {**COLOURS[scheme], "signal": SIGNAL[scheme]}
    parts = [_head(colour), _forward(), _back(), _taps(), _words()]
    return "\n".join([*parts, "</svg>", ""])


def _head(colour: dict[str, str]) -> str:
    fills = "".join(f".{name} {{ fill: {value}; }} " for name, value in colour.items() if name != "fill")
    strokes = "".join(f".line-{name} {{ stroke: {value}; }} " for name, value in colour.items() if name != "fill")
    markers = "".join(
        f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path class="{name}" d="M0 0L10 5L0 10z"/></marker>'
        for name in ("faint", "signal")
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 378" role="img" '
        'font-family="-apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="18">\n'
        "<title>One step: tap, segment, error and signal</title>\n"
        f"<style>{fills}{strokes}.box {{ fill: {colour['fill']}; stroke-width: 1.5; }} "
        "line, path.way { fill: none; stroke-width: 2; } .mid { text-anchor: middle; }</style>\n"
        f"<defs>{markers}</defs>"
    )


def _text(x: float, y: float, words: str, kind: str, extra: str = "") -> str:
    return f'<text x="{x}" y="{y}" class="{kind}" {extra}>{words}</text>'


def _box(x: int, width: int, words: str) -> str:
    rectangle = (
        f'<rect x="{x}" y="{FORWARD - 30}" width="{width}" height="60" rx="8" class="box line-segment"/>'
        if words
        else ""
    )
    return rectangle + _text(x + width / 2, FORWARD + 6, words, "ink mid")


def _arrow(path: str, kind: str) -> str:
    return f'<path class="way line-{kind}" d="{path}" marker-end="url(#{kind})"/>'


def _forward() -> str:
    """The way up: the segments, the output layer and the loss."""
    boxes = [_box(62, 130, "segment 1"), _box(250, 118, "segment 2"), _box(426, 116, "output layer")]
    arrows = [(32, 60), (192, 248), (368, 424), (542, 590)]
    return "\n".join(
        [
            *boxes,
            *(_arrow(f"M{start} {FORWARD}H{end}", "faint") for start, end in arrows),
            _text(18, FORWARD + 6, "x", "ink mid", 'font-style="italic"'),
            _text(566, FORWARD - 10, "o", "ink mid", 'font-style="italic"'),
            f'<rect x="592" y="{FORWARD - 22}" width="58" height="44" rx="22" fill="none" class="line-faint"/>',
            _text(621, FORWARD + 6, "loss", "ink mid"),
        ]
    )


def _back() -> str:
    """The error's way: straight to every tap, and by backpropagation inside each segment."""
    parts = [
        _arrow(f"M621 {FORWARD + 22}V{BACK}H{TAPS[1] + 20}", "signal"),
        f'<path class="way line-signal" d="M{TAPS[1] + 20} {BACK}H{TAPS[0] + 20}" marker-end="url(#signal)"/>',
        _text(600, BACK - 10, "e", "signal mid", 'font-style="italic" font-weight="600"'),
    ]
    for number, x in enumerate(TAPS, 1):
        inside = 62 if number == 1 else 250
        parts += [
            f'<rect x="{x - 22}" y="{BACK - 19}" width="44" height="38" rx="6" class="box line-signal"/>',
            _text(x, BACK + 6, f'B<tspan dy="4" font-size="13">{number}</tspan>', "signal mid", 'font-style="italic"'),
            _arrow(f"M{x} {BACK - 19}V{FORWARD + 47}H{inside + 14}", "signal"),
            _text(
                x - 12,
                BACK - 36,
                f'd<tspan dy="4" font-size="13">{number}</tspan><tspan dy="-4"> = eB</tspan>'
                f'<tspan dy="4" font-size="13">{number}</tspan>',
                "signal",
                'text-anchor="end" font-style="italic" font-weight="600"',
            ),
        ]
    return "\n".join(parts)


def _taps() -> str:
    parts = []
    for number, x in enumerate(TAPS, 1):
        parts += [
            f'<line x1="{x}" x2="{x}" y1="34" y2="{FORWARD + 40}" class="line-tap" stroke-dasharray="5 4"/>',
            f'<circle cx="{x}" cy="{FORWARD}" r="6" class="tap"/>',
            _text(x, 24, f"tap {number}", "tap mid", 'font-weight="600"'),
        ]
    return "\n".join(parts)


def _words() -> str:
    return "\n".join(
        _text(24, 266 + 32 * line, word, kind, 'font-size="20" font-weight="600"')
        + _text(130, 266 + 32 * line, meaning, "ink", 'font-size="20"')
        for line, (kind, word, meaning) in enumerate(WORDS)
    )


if __name__ == "__main__":
    for scheme in COLOURS:
        (FOLDER / f"step-{scheme}.svg").write_text(svg(scheme))
