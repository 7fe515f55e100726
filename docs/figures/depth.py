"""Draw how six He-initialized ReLU layers learn, from the committed runs: ``python docs/figures/depth.py``."""

from __future__ import annotations

import json
from statistics import mean

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from schemes import FOLDER, LINES, label_ends, save

RULES = ("BP", "FDFA", "GrAPE", "DFA", "Shallow")
RUNS = FOLDER.parents[1] / "results" / "depth-he" / "comparison.json"


def accuracies() -> dict[str, list[float]]:
    """Return each rule's test accuracy after every epoch, the mean over seeds."""
    runs = json.loads(RUNS.read_text())["runs"]
    curves = {rule: [run["epochs"] for run in runs if run["label"] == rule] for rule in RULES}
    return {
        rule: [mean(epoch["eval_accuracy"] for epoch in epochs) for epochs in zip(*seeds, strict=True)]
        for rule, seeds in curves.items()
    }


def figure(scheme: str) -> Figure:
    """Draw one line a rule."""
    drawn, axes = plt.subplots(figsize=(6.6, 3.4), layout="constrained")
    curves = accuracies()
    epochs = range(1, len(curves["BP"]) + 1)
    for rule, values in curves.items():
        axes.plot(epochs, values, color=LINES[rule][scheme], linewidth=2)
    label_ends(axes, {rule: values[-1] for rule, values in curves.items()}, epochs[-1], 7, scheme)
    axes.set(xlabel="epoch", ylabel="test accuracy, %", ylim=(0, 106), xticks=[1, 5, 10, 15, 20])
    return drawn


if __name__ == "__main__":
    save("depth", figure)
