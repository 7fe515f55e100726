#!/usr/bin/env bash
# tonic 1.7.0: ToVoxelGrid counts events of both polarities as positive when the polarity is a bool, as it is in DVSGesture and DSEC.
#
# ToVoxelGrid builds the event volume of a paper in which an event adds +1 or -1. The code turns polarity 0 into -1 within the array of
# the events. In a bool array -1 is True, so that every event adds +1, and nothing is said. Bool is the type of tonic.io.events_struct,
# which make_structured_array and the readers of files use, and of the data sets DVSGesture, DSEC, DVSLip, EBSSA and NERDD. With an
# integer polarity, as NMNIST has it, the signs are right.
#
# Seen: of 2,000 events half are on and half off. With an int8 polarity the grid sums up to near 0 and has both signs. With the same
# events and a bool polarity no voxel is negative, and the grid is that of a recording with on events alone. In both, the events of the
# last bin lose the part that interpolation gives to the bin behind it: of 5 bins the grid holds 90 % of the events, where the paper's
# spacing keeps all.
#
# Why it matters: a network that is trained on such grids sees movement without its direction, and a model trained on one data set is
# tested on another with other signs. Cast the polarity to an integer type before the transform.
#
# Exit code 0: as described. 1: the behaviour has changed. 2: the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" &&
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 tonic==1.7.0 || exit 2

"$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
from tonic.datasets import DSEC, DVSGesture
from tonic.io import events_struct, make_structured_array
from tonic.transforms import ToVoxelGrid

WIDTH, HEIGHT, EVENTS, BINS = 8, 6, 2000, 5
whole = np.dtype([("x", np.int16), ("y", np.int16), ("t", np.int64), ("p", np.int8)])


def by_hand(events, last):
    """Return the grid that the signs +1 and -1 give, with times between 0 and last."""
    grid = np.zeros((BINS, 1, HEIGHT, WIDTH))
    start, length = int(events["t"][0]), int(events["t"][-1] - events["t"][0])
    for event in events:
        time = last * (int(event["t"]) - start) / length
        sign = 1 if event["p"] else -1
        low = int(time)
        for bin_, part in ((low, 1 - (time - low)), (low + 1, time - low)):
            if bin_ < BINS:
                grid[bin_, 0, event["y"], event["x"]] += sign * part
    return grid


rng = np.random.default_rng(0)
x, y, p = rng.integers(0, WIDTH, EVENTS), rng.integers(0, HEIGHT, EVENTS), rng.permutation(EVENTS) % 2
t = np.linspace(0, 100_000, EVENTS).astype(int)
on, signed = make_structured_array(x, y, t, np.ones(EVENTS, int)), make_structured_array(x, y, t, p, dtype=whole)
events = make_structured_array(x, y, t, p)
transform = ToVoxelGrid((WIDTH, HEIGHT, 2), BINS)
grids = {"int8": transform(signed), "bool": transform(events), "bool, on events alone": transform(on)}
for name, grid in grids.items():
    print(f"{name}: sum {grid.sum():.0f}, {(grid < 0).mean():.0%} of the voxels negative")
held = grids["bool, on events alone"].sum() / EVENTS
kept = by_hand(on, BINS - 1).sum() / EVENTS
print(f"of the weight of on events the grid holds {held:.1%}; with times up to {BINS - 1} instead of {BINS}: {kept:.1%}")

control = np.allclose(grids["int8"], by_hand(signed, BINS)) and (grids["int8"] < 0).any()
as_described = np.array_equal(grids["bool"], grids["bool, on events alone"]) and not np.allclose(grids["bool"], by_hand(events, BINS))
as_described &= all(dtype["p"] == bool for dtype in (events_struct, DVSGesture.dtype, DSEC.dtype))
as_described &= abs(held - 0.9) < 0.01 and abs(kept - 1) < 1e-9
sys.exit(not (control and as_described))
PYTHON
