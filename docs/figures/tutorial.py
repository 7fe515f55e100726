"""Run the tutorial's own code for eight epochs and draw its two pictures: ``python docs/figures/tutorial.py``."""

from __future__ import annotations

import re
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from schemes import FOLDER, LINES, label_ends, save

EPOCHS = 8


def run() -> dict[str, Any]:
    """Return what the page's code has defined after it ran."""
    page = (FOLDER.parent / "tutorial.md").read_text()
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    names: dict[str, Any] = {"__name__": "tutorial"}
    exec(compile(code.replace("EPOCHS = 1", f"EPOCHS = {EPOCHS}"), "tutorial.md", "exec"), names)
    return names


def accuracy(curves: dict[str, list[float]], scheme: str) -> Figure:
    """Draw the test accuracy after every epoch."""
    figure, axes = plt.subplots(figsize=(6.6, 3.4), layout="constrained")
    epochs = range(1, EPOCHS + 1)
    for rule, values in curves.items():
        axes.plot(epochs, [100 * value for value in values], color=LINES[rule][scheme], linewidth=2)
    label_ends(axes, {rule: 100 * values[-1] for rule, values in curves.items()}, EPOCHS, 7, scheme)
    axes.set(xlabel="epoch", ylabel="test accuracy, %", ylim=(0, 104), xticks=epochs)
    return figure


def alignment(cosines: dict[str, list[float]], scheme: str) -> Figure:
    """Draw the cosine between signal and gradient at every tap."""
    figure, axes = plt.subplots(figsize=(6.6, 3.0), layout="constrained")
    taps = range(1, 7)
    for rule, values in cosines.items():
        axes.plot(taps, values, "o-", color=LINES[rule][scheme], linewidth=2)
    label_ends(axes, {rule: values[-1] for rule, values in cosines.items()}, 6, 0.1, scheme)
    axes.set(xlabel="tap, from the input to the output", ylabel="cosine to BP", ylim=(-0.05, 1.05), xticks=taps)
    return figure


if __name__ == "__main__":
    found = run()
    save("tutorial-accuracy", lambda scheme: accuracy(found["curves"], scheme))
    save("tutorial-alignment", lambda scheme: alignment(found["alignment"], scheme))
