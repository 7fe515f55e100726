#!/usr/bin/env bash
# datasets 5.2.0: a file whose name holds two words for splits is in both splits.
#
# load_dataset("FOLDER") sorts files into splits by words in their names: train and training; validation, valid, val and dev; test, testing,
# eval and evaluation. Each split looks for its own words among all files. A name with words of two splits is found twice, and no warning is
# given. As soon as any file has such a word, files without one are in no split at all.
#
# Seen: a folder with train.txt, train_dev.txt and test.txt gives a split "train" with both first files, and a split "validation" with
# train_dev.txt again. A folder with train.txt and valid_test.txt gives equal splits "validation" and "test". A folder with book.txt
# gives "train"; with unit-test-notes.txt beside it, "test" alone, and the book is gone.
#
# Why it matters: settings are chosen on rows that were trained on, or on those of the test set, and the numbers look well. A train-dev set (rows
# of the training distribution that are held out) is usually called just that. Name the files of each split: data_files={"train": ...}.
#
# Exit code 0: as described. 1: the behaviour has changed. 2: the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" &&
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 || exit 2

cd "$folder"
HF_HUB_OFFLINE=1 HF_HOME="$folder/home" "$folder/venv/bin/python" - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log" >&2; exit 1; }
import sys
import warnings
from pathlib import Path

import datasets

datasets.disable_progress_bars()
FOLDERS = {
    ("train.txt", "train_dev.txt", "test.txt"): {
        "train": ["train.txt", "train_dev.txt"],
        "validation": ["train_dev.txt"],
        "test": ["test.txt"],
    },
    ("train.txt", "valid_test.txt"): {
        "train": ["train.txt"],
        "validation": ["valid_test.txt"],
        "test": ["valid_test.txt"],
    },
    ("book.txt",): {"train": ["book.txt"]},
    ("book.txt", "unit-test-notes.txt"): {"test": ["unit-test-notes.txt"]},
}
as_described = True
for number, (files, expected) in enumerate(FOLDERS.items()):
    place = Path(str(number))
    place.mkdir()
    for file in files:
        (place / file).write_text(file)  # its own name is its one row
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = {split: sorted(rows["text"]) for split, rows in datasets.load_dataset(str(place)).items()}
    print(*files, "->", found)
    as_described &= found == {split: sorted(rows) for split, rows in expected.items()} and not said

named = datasets.load_dataset("text", data_files={"train": "0/train.txt", "validation": "0/train_dev.txt"})
as_described &= {split: list(rows["text"]) for split, rows in named.items()} == {
    "train": ["train.txt"],
    "validation": ["train_dev.txt"],
}
sys.exit(not as_described)
PYTHON
