"""The options of ``bpfree predict``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Write the probability of a click for every row of a file, by a run of bpfree train.

    Args:
        name: The run: the folder that bpfree train wrote to, or its record or checkpoint.
        file: A file with the columns of the run's schema; no label is needed.
        to: Where probabilities are written, as CSV: beside them stand the schema's identifiers, or the numbers of the
            rows if it names none. By default FILE with -predictions.csv in place of its ending, in the current folder.
        trust: Let a run use a model of your own by the import path in its folder, wherever that lies.
    """

    name: str | None = None
    file: str | None = None
    to: str | None = None
    trust: bool = False
