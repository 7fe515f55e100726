"""The files of a text: which of a folder's files are its parts."""

from __future__ import annotations

from pathlib import Path

from bpfree.lab.errors import DataError

_NAMES = ("{}.txt", "wiki.{}.tokens", "wiki.{}.raw")
_PARTS = {"train": ("train",), "validation": ("valid", "validation"), "test": ("test",)}
"""Part -> what files call it. The archives of WikiText have ``wiki.valid.tokens``, its mirrors ``validation`` too."""

LAYOUT = (
    "the files train, valid and test, each .txt, UTF-8, one sentence or paragraph a line; or WikiText's "
    "wiki.train.tokens (or .raw) and so on; each may be packed, .gz"
)


def find(folder: Path, part: str) -> Path:
    """Return the file of one part, ``"train"``, ``"validation"`` or ``"test"``.

    Raises:
        DataError: There is none, or more than one.
    """
    names = [form.format(name) + end for name in _PARTS[part] for form in _NAMES for end in ("", ".gz")]
    found = [name for name in names if (folder / name).is_file()]
    if len(found) > 1:
        raise DataError(f"{folder} holds {' and '.join(found)}: which of them is meant? Remove the other.")
    if found:
        return folder / found[0]
    usual = _PARTS[part][0]
    raise DataError(f"{usual}.txt (or {usual}.txt.gz) is missing in {folder}. {_hint(folder, part)}")


def _hint(folder: Path, part: str) -> str:
    """Say what a folder must hold, and what to do with one that holds something like it."""
    if any(folder.glob("*.parquet")) or any(folder.glob("*.arrow")) or (folder / "dataset_dict.json").is_file():
        return f"It holds a data set of the package datasets: give --text.dataset {folder} in place of --data-dir."
    below = [path for path in sorted(folder.glob("*/")) if any(path.glob(f"*{_PARTS[part][0]}*"))]
    if below:
        return f"Is {below[0]} meant? A text's folder holds {LAYOUT}."
    return f"A text's folder holds {LAYOUT}."
