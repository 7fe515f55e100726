"""``python -m bpfree.lab.tables.seal FILE ...``: give results of before there were checksums theirs.

Nothing else in the files changes. A file that has a checksum is left as it is; one whose checksum is wrong is named.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from bpfree.errors import BpfreeError
from bpfree.lab.disk.bounded import parse_json
from bpfree.lab.disk.checksums import CHECKSUM, is_whole
from bpfree.lab.disk.files import write_json
from bpfree.lab.errors import DamageError
from bpfree.lab.tables import result


def seal(path: Path) -> bool:
    """Seal one file; returns whether it had no checksum.

    Raises:
        DamageError: It is no JSON of bpfree's, or its checksum is wrong.
        WriteError: It cannot be written.
    """
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DamageError(f"{path} cannot be read ({error}). Mend it first.") from error
    if not isinstance(content, dict):
        raise DamageError(f"{path} is no result of bpfree's. Leave it out.")
    table = content.get("format") == result.FORMAT
    if CHECKSUM in content:
        if table:
            result.records(path)  # which names what is wrong
        elif not is_whole(content):
            raise DamageError(f"{path} is damaged: its checksum is not that of what stands in it.")
        return False
    if table:
        result.write({**content, "name": path.stem}, path.parent)
    else:
        write_json(path, content)
    return True


def main(arguments: Sequence[str]) -> int:
    """Seal files, and say which; the exit status is 1 if one cannot be."""
    wrong = 0
    for path in map(Path, arguments):
        try:
            print(f"{path}: {'sealed' if seal(path) else 'had its checksum'}")
        except BpfreeError as error:
            print(f"bpfree: {error}", file=sys.stderr)
            wrong = 1
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
