"""Train one cell of a recipe of texts or images, and print for each tap its alignment and the best it could have.

    python experiments/alignment_limits.py launay2020-table5 --cell "Micro/DFA, Adam" --scale reduced --data-dir DIR
    python experiments/alignment_limits.py experiments/fast-cifar10.yaml --cell "LMS, nine modes/test accuracy" \
        --scale full --modes 1 9 25 --gates 2 8 --data-dir DIR

Where the limit is high and the alignment low, the rule has not learned its matrix. Where the limit is low, no rule with
one matrix for all tokens or images helps at that tap. ``--modes`` says what matrices of so many spatial modes a channel
could have, ``--gates`` mixtures of matrices that the tap's own output weighs. The trained network is kept in ``--runs``
and not trained again.
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
ROWS_OF_SEQUENCE = 128
"""So many images count as one sequence."""


def trained(work: Training, runs: Path, data_dir: str | None, unit: int) -> tuple[Learner, Batch]:
    """The network after training, and the evaluation data's first rows, ``unit`` for each sequence."""
    settings, data = work.settings, work.data(data_dir)
    run(settings, data, runs, keep_checkpoint=True)
    found = learner(settings, data)
    checkpoint = torch.load(Places.of(settings, data, runs).checkpoint, weights_only=True)
    found.load_state_dict(checkpoint["state_dict"])
    found.model.eval()
    return found, data.evaluation.batch(torch.arange(min((MEASURED + FIT) * unit, len(data.evaluation))))


def by_kind(limits: tuple[TapLimit, ...]) -> tuple[TapLimit, ...]:
    """The means over layers, the last tap left out, which is exact."""
    kinds: dict[str, list[TapLimit]] = {}
    for one in limits:
        if one.limit < 1 - 1e-6:
            kinds.setdefault(kind_and_layer(one.name)[0], []).append(one)
    mean = statistics.fmean
    return tuple(
        TapLimit(
            kind,
            mean(one.learned for one in ones),
            mean(one.limit for one in ones),
            {count: mean(one.by_modes[count] for one in ones) for count in ones[0].by_modes},
            {count: mean(one.by_gates[count] for one in ones) for count in ones[0].by_gates},
        )
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
    parser.add_argument("--modes", type=int, nargs="*", default=[], help="numbers of spatial modes a channel")
    parser.add_argument("--gates", type=int, nargs="*", default=[], help="numbers of gates")
    options = parser.parse_args()
    recipe = read(find(options.recipe))
    (cell,) = plan(recipe, recipe.scale(options.scale), options.seed + 1, [options.cell], options.data_dir)
    work = cell.works[options.seed]
    assert isinstance(work, Training), "the cell is no training run"
    dims, unit = (2, 1) if work.settings.task == "language" else (1, ROWS_OF_SEQUENCE)
    task, (x, y) = trained(work, options.runs, options.data_dir, unit)
    fit, measured = ((x[part], y[part]) for part in (slice(MEASURED * unit, None), slice(MEASURED * unit)))
    closures = partial(task.batch_loss, fit), partial(task.batch_loss, measured)
    limits = alignment_limits(task.attachment, *closures, dims, modes=options.modes, gates=options.gates)
    told = table(limits)
    print(told if dims == 1 else f"{told}\n\n{table(by_kind(limits))}")


if __name__ == "__main__":
    main()
