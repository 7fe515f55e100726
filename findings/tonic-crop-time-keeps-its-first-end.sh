#!/usr/bin/env bash
# tonic 1.7.0: CropTime(min=...) without a maximum cuts every recording at the end of the first one that it saw.
#
# The documentation: max is "the maximum timestamp above which all events are dropped", None by default. The first call writes the last
# time of its recording into the transform, and from then on this is the maximum. There is no error and no warning.
#
# Seen: three recordings of 1, 5 and 3 seconds. A new transform for each keeps all events from 0.5 seconds on. One transform for all keeps
# 100 % of these in the first, 11 % in the second and 20 % in the third. In another order all three are whole. So what a sample is depends
# on the order of the epoch, and with several workers on which worker saw what first.
#
# Why it matters: a transform in a data set is one object for all recordings. Whoever cuts the start off, to skip a flash or a moment of
# adaption, loses the end of all that last longer than the first one drawn, by another share in every run. Caches on disk keep the loss.
# Give max a number larger than any time.
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
from tonic.io import make_structured_array
from tonic.transforms import CropTime

START, SECOND = 500_000, 1_000_000


def recording(seconds):
    t = np.arange(0, seconds * SECOND, 1000)
    return make_structured_array(t % 7, t % 5, t, t // 1000 % 2)


recordings = {seconds: recording(seconds) for seconds in (1, 5, 3)}
right = {seconds: int((events["t"] >= START).sum()) for seconds, events in recordings.items()}


def kept(order, transform_of):
    """Return which share of the events from the start on is kept."""
    return {seconds: len(transform_of()(recordings[seconds])) / right[seconds] for seconds in order}


shared, other, given = CropTime(min=START), CropTime(min=START), CropTime(min=START, max=10**12)
found = {
    "a transform each": kept((1, 5, 3), lambda: CropTime(min=START)),
    "one transform, a large maximum": kept((1, 5, 3), lambda: given),
    "one transform": kept((1, 5, 3), lambda: shared),
    "one transform, the longest first": kept((5, 3, 1), lambda: other),
}
for name, shares in found.items():
    print(f"{name}: " + ", ".join(f"{share:.0%} of {seconds} s" for seconds, share in shares.items()))
print(f"the maximum after the first recording of 1 s: {shared.max}")

whole = all(share == 1 for name, shares in found.items() if name != "one transform" for share in shares.values())
expected = {1: 1.0, 5: right[1] / right[5], 3: right[1] / right[3]}  # Cut at the last event of the first.
sys.exit(not (whole and found["one transform"] == expected and shared.max == SECOND - 1000))
PYTHON
