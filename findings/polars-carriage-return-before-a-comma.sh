#!/usr/bin/env bash
# polars 2.1.0: read_csv drops a carriage return at the end of any unquoted field, not only at the end of a line.
#
# A line may end in "\r\n", so a carriage return before the line feed belongs to the line's end. polars drops one before a separator too, in the
# middle of a line. A field that is nothing but a carriage return becomes a null.
#
# Seen: "1,x\r,2\n" gives ("1", "x", "2"), and "1,\r,2\n" gives ("1", None, "2"). In quotes the carriage return stays. Python's csv module, told
# that lines end in "\n", keeps it.
#
# Why it matters: identifiers that differ in it alone (a log made from a file with Windows line ends, whose last column was moved forward)
# become the same identifier in training by polars, and other ones where another program reads the same log for serving. Quote such fields, or
# strip them everywhere.
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

KINDS = {"a": pl.String, "b": pl.String, "c": pl.String}
SEEN = {
    b"1,x\r,2\n": ("1", "x", "2"),
    b"1,\r,2\n": ("1", None, "2"),
    b'1,"x\r",2\n': ("1", "x\r", "2"),
}
as_described = True
for line, expected in SEEN.items():
    (found,) = pl.read_csv(line, has_header=False, schema=KINDS).rows()
    print(line, "->", found)
    as_described &= found == expected
sys.exit(not as_described)
PYTHON
