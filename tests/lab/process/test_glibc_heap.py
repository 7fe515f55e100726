"""Freed memory stays with the process."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

ROUNDS, MIB = 12, 64
SCRIPT = f"""
import json, resource, sys
import torch
from bpfree.lab.process.glibc_heap import keep_freed_memory

if "keep" in sys.argv:
    keep_freed_memory()

def pages(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        torch.ones({MIB} * 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

pages(3)
print(json.dumps(pages({ROUNDS})))
"""


def pages(*arguments: str) -> int:
    """How many pages the system gives a process that takes and frees the same memory several times."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=True)
    found: int = json.loads(done.stdout)
    return found


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_what_was_freed_is_taken_again_without_asking_the_system() -> None:
    given = pages()
    assert given >= ROUNDS * MIB // 2  # the fewest pages that so much memory can be of: 2 MiB each
    # Another block may have come to lie where the first one was: one round, or two.
    assert pages("keep") <= given / 4
