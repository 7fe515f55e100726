"""Train one cell of a language recipe, and print for each tap its alignment and the best that one matrix could have.

    python experiments/alignment_limits.py launay2020-table5 --cell "Micro/DFA, Adam" --scale reduced --data-dir DIR

Where the limit is high and the alignment low, the rule has not learned its matrix. Where the limit is low, no rule with
one matrix for all tokens helps at that tap. The trained network is kept in ``--runs`` and not trained again.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch

from bpfree.lab.recipe.locate import find
from bpfree.lab.recipe.reading import read
from bpfree.lab.report.alignment_kinds import kind_and_layer
from bpfree.lab.running.runs import Places, learner, run
from bpfree.lab.studies.alignment_limit import TapLimit, alignment_limits, table
from bpfree.lab.tables.cells import plan
from bpfree.lab.tables.work import Training
from bpfree.lab.tasks.learner import Learner

Batch: TypeAlias = tuple[torch.Tensor, torch.Tensor]
MEASURED, FIT = 16, 64
"""Sequences of the evaluation data on which cosines are taken, and those behind them that the best matrix is fit to."""


def trained(work: Training, runs: Path, data_dir: str | None) -> tuple[Learner, Batch]:
    """The network after training, and the evaluation data's first sequences, each with the tokens that follow."""
    settings, text = work.settings, work.data(data_dir)
    run(settings, text, runs, keep_checkpoint=True)
    found = learner(settings, text)
    checkpoint = torch.load(Places.of(settings, text, runs).checkpoint, weights_only=True)
    found.load_state_dict(checkpoint["state_dict"])
    found.model.eval()
    return found, text.evaluation.batch(torch.arange(min(MEASURED + FIT, len(text.evaluation))))


def by_kind(limits: tuple[TapLimit, ...]) -> tuple[TapLimit, ...]:
    """The means over layers, the last tap left out, which is exact."""
    kinds: dict[str, list[TapLimit]] = {}
    for one in limits:
        if one.limit < 1 - 1e-6:
            kinds.setdefault(kind_and_layer(one.name)[0], []).append(one)
    mean = statistics.fmean
    return tuple(
        TapLimit(kind, mean(one.learned for one in ones), mean(one.limit for one in ones))
        for kind, ones in kinds.items()
    )


def main() -> None:
    """Print the limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a recipe by name or path")
    parser.add_argument("--cell", required=True, help="ROW/COLUMN")
    parser.add_argument("--scale", default="reduced")
    parser.add_argument("--data-dir")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/alignment-limits"), help="where the network is kept")
    options = parser.parse_args()
    recipe = read(find(options.recipe))
    (cell,) = plan(recipe, recipe.scale(options.scale), options.seed + 1, [options.cell], options.data_dir)
    work = cell.works[options.seed]
    assert isinstance(work, Training), "the cell is no training run"
    task, (x, y) = trained(work, options.runs, options.data_dir)
    fit, measured = ((x[part], y[part]) for part in (slice(MEASURED, None), slice(MEASURED)))
    limits = alignment_limits(task.attachment, partial(task.batch_loss, fit), partial(task.batch_loss, measured))
    print(f"{table(limits)}\n\n{table(by_kind(limits))}")


if __name__ == "__main__":
    main()
