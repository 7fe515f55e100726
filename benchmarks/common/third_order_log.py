"""A made-up log of clicks that nothing predicts but a product of three fields.

Each of ten fields has ten values, all as frequent. Half of the values of the first three have the sign +1, the others
-1, and a click's logit is 2 times the product of the three signs. No field, and no two fields, say anything about it:
whatever the values of two, the third one is +1 as often as -1.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from bpfree.lab.data.clicks import Schema
from bpfree.lab.data.clicks.schema import AS_WRITTEN, Label, Split

FIELDS, VALUES, PLANTED = 10, 10, 3
LOGIT = 2.0
SCHEMA = Schema(
    label=Label(column="click"),
    categorical=tuple(f"C{number}" for number in range(FIELDS)),
    split=Split(fractions=(0.8, 0.1, 0.1), order=AS_WRITTEN),
)


def write_log(path: Path, rows: int, seed: int = 0) -> None:
    """Write so many rows as CSV."""
    frame(rows, seed).write_csv(path)


def frame(rows: int, seed: int) -> pl.DataFrame:
    """Return the rows: click, and C0 to C9, of which the first three decide."""
    draw = np.random.default_rng(seed)
    values = draw.integers(0, VALUES, (rows, FIELDS))
    product = np.prod(np.where(values[:, :PLANTED] < VALUES // 2, 1, -1), axis=1)
    clicks = draw.random(rows) < 1 / (1 + np.exp(-LOGIT * product))
    columns = {name: values[:, number] for number, name in enumerate(SCHEMA.categorical)}
    return pl.DataFrame({"click": clicks.astype(np.uint8)} | columns)


def best_auc() -> float:
    """Return the AUC of who knows the product: p of a row's two scores is right, 1/2 where they are the same."""
    right = 1 / (1 + np.exp(-LOGIT))
    return float(right**2 + right * (1 - right))
