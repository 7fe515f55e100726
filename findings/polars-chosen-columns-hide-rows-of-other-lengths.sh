#!/usr/bin/env bash
# polars 2.1.0: read_csv of some columns says nothing of rows with too many fields, and all of it does.
#
# A row with more fields than the file has columns is an error of read_csv(schema=...): ComputeError. With columns=[...] that leave any column
# out, the same file is read without a word, and the fields that are too many are dropped. A row with too few fields is filled with nulls.
#
# Seen: "1,a,x\n2,b,y,extra\n3,c\n" with three columns. All, or columns=[0, 1, 2]: an error. columns=[0, 2]: (1, x), (2, y), (3, null).
#
# Why it matters: whoever reads the label and some fields of a log, because it has forty, gets a row whose fields have moved by one (a comma
# that was not quoted) as if it were good: numbers of another column become features, and nothing is counted. Count the separators of
# each row before, or read all columns and choose afterwards.
#
# Exit code 0: as described. 1: the behaviour has changed. 2: the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" &&
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check polars==2.1.0 || exit 2

"$folder/venv/bin/python" - <<'PYTHON'
import sys

import polars as pl

LOG = b"1,a,x\n2,b,y,extra\n3,c\n"
KINDS = {"n": pl.Int64, "letter": pl.String, "last": pl.String}


def read(columns=None):
    try:
        found = pl.read_csv(LOG, has_header=False, schema=KINDS, columns=columns)
    except pl.exceptions.PolarsError as error:
        return type(error).__name__
    return found.rows()


every, by_number, some = read(), read([0, 1, 2]), read([0, 2])
print("all:", every)
print("columns=[0, 1, 2]:", by_number)
print("columns=[0, 2]:", some)
sys.exit(not (every == by_number == "ComputeError" and some == [(1, "x"), (2, "y"), (3, None)]))
PYTHON
