"""How a benchmark starts: the environment that it needs, the options that all have, the facts that it notes down."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bpfree.lab.process import environment

ROOT = Path(__file__).parents[1]

# By default glibc hands freed gradients back to the system and asks for them again in every step. Which rule's step
# pays for the page faults depends on the layout of the heap: it moved ratios by .1 either way from run to run.
KEEP_MEMORY = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "MALLOC_MMAP_THRESHOLD_": str(2**36),
    "MALLOC_TRIM_THRESHOLD_": str(2**36),
    "MALLOC_TOP_PAD_": str(2**30),
}
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"}


def keep_memory() -> None:
    """Start again with the environment above, which is read when a process begins."""
    if any(os.environ.get(name) is None for name in KEEP_MEMORY):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**KEEP_MEMORY, **os.environ})


def parser(description: str | None, out: str) -> argparse.ArgumentParser:
    """The options that all benchmarks have; ``out`` is the file's name in the folder of results."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--only", nargs="+", metavar="NAME", help="the subjects to measure; * and ? stand for letters")
    found.add_argument("--threads", type=int, default=2, help="torch's threads (default: 2)")
    found.add_argument("--out", type=Path, default=ROOT / "results" / out, help="the file that the rows are put into")
    return found


def chosen(name: str, patterns: list[str] | None) -> bool:
    """Whether ``--only`` asks for the subject of this name."""
    return patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns)


def run() -> dict[str, Any]:
    """What a file of results says about the run that measures now."""
    script = Path(sys.argv[0]).name
    memory = {name: os.environ.get(name, "") for name in KEEP_MEMORY}
    return {
        "command": " ".join([f"python benchmarks/{script}", *map(_quoted, sys.argv[1:])]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": _commit(),
        "environment": environment.describe() | {"bf16_instructions": bf16_instructions()} | memory,
    }


def _quoted(word: str) -> str:
    return f'"{word}"' if " " in word or "*" in word else word


def _commit() -> str:
    """The commit that was measured, and whether tracked files were changed since; empty without git."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def bf16_instructions() -> bool | None:
    """Whether the processor computes with bfloat16; None where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    flags = [line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))]
    return bool(BF16_FLAGS.intersection(flags[0])) if flags else None
