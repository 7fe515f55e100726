"""Print alignment by layer and by kind of tap for the runs of a result, after the last evaluation and over training.

    python experiments/where_alignment_is_lost.py results/language-beyond.json [--label FDFA ...] [--number cosine_mean]

The file is a result of ``bpfree table``, a ``comparison.json``, or the record of one run.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bpfree.lab.disk.files import read_json
from bpfree.lab.report.alignment_kinds import by_layer, over_training, table
from bpfree.lab.tables.result import FORMAT, of_format


def texts(result: Mapping[str, Any], labels: list[str] | None, number: str) -> Iterator[str]:
    """Two tables for each run that has alignment."""
    for run in result.get("records") or result.get("runs") or [result]:
        epochs = run.get("epochs") or []
        if not epochs or not epochs[-1].get("alignment") or (labels and run["label"] not in labels):
            continue
        last = by_layer(epochs[-1]["alignment"], number)
        yield f"{run['label']}, seed {run['seed']}: {number} after evaluation {epochs[-1]['epoch']}"
        yield table(last, "layer") + "\n"
        if len(epochs) > 1:
            yield f"{run['label']}, seed {run['seed']}: {number}, mean over layers"
            yield table(over_training(run, number), "evaluation") + "\n"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--label", nargs="+", help="only runs of these labels")
    parser.add_argument(
        "--number", default="cosine_mean", help="cosine_mean, cosine_feedback, norm_signal, norm_bp ..."
    )
    options = parser.parse_args()
    content = of_format(options.file, FORMAT) or read_json(options.file)
    found = list(texts(content, options.label, options.number))
    print("\n".join(found) or "No run of this file has alignment: it was never measured, or the labels are others.")


if __name__ == "__main__":
    main()
