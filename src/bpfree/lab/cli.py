"""The command ``bpfree``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bpfree.lab.extras import missing


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 0, 1 for an error that is explained, 130 after Ctrl-C."""
    try:
        # Imported here: what the commands need comes with an extra, and may not be there.
        from bpfree.lab import commands

        return commands.main(arguments)
    except ModuleNotFoundError as error:
        said = missing(error)
        if said is None:
            raise
        print(f"bpfree: {said}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
