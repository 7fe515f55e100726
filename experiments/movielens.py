"""Fetch MovieLens-100K as the recipes of click prediction read it, out of the wheel of recbole 1.2.1.

    python experiments/movielens.py ml
    bpfree table launay2020-table2 --scale movielens --data-dir ml

pip fetches the wheel (2 MB) from your package index; ``--wheel FILE`` takes one that is there. The data are GroupLens':
read their terms of use, https://files.grouplens.org/datasets/movielens/ml-100k-README.txt, before you use or pass them
on. They are no part of bpfree.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "recbole==1.2.1"
FOLDER = "recbole/dataset_example/ml-100k"
FILES = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
}
"""The files, each with its SHA-256."""


def download(folder: Path) -> Path:
    """Let pip download the wheel into a folder; return its path."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit(
            f"pip could not download {PACKAGE} (see above). Take --wheel FILE if the wheel lies somewhere."
        )
    return next(folder.glob("*.whl"))


def extract(wheel: Path, folder: Path) -> None:
    """Write the files of a wheel into a folder, if all of them are those that the recipes were run on."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            contents = {name: archive.read(f"{FOLDER}/{name}") for name in FILES}
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise SystemExit(f"{wheel} is not the wheel of {PACKAGE}: {error}.") from error
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != FILES[name]:
            raise SystemExit(
                f"{name} in {wheel} is not that of {PACKAGE}: its SHA-256 is another. Fetch the wheel again."
            )
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)


def main() -> None:
    """Download the wheel unless it is given, and write its files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the files are written")
    parser.add_argument("--wheel", type=Path, help="the wheel, if it lies there already")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        extract(options.wheel or download(Path(place)), options.folder)
    print(f"{', '.join(FILES)} lie in {options.folder}; GroupLens' terms of use hold for them.")


if __name__ == "__main__":
    main()
