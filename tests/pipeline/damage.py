"""Damage checkpoints of a stage at random, and count what is noticed.

    PYTHONPATH=tests nice -n 19 python -m pipeline.damage [--flips 2500] [--truncations 200] [--mutations 20000]
                                                          [--evidence FILE]

*Flips* and *truncations* are of the newest of two checkpoints: every one must be noticed, named, and the older one
taken, number by number. *Mutations* are of one that carries the right checksum all the same, as a hostile file would:
each must load or be refused by name, in the memory that is allowed.

The exit status is 1 if anything was otherwise.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import resource
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

import bpfree
from bpfree.errors import BpfreeError
from bpfree.pipeline import load_checkpoint, save_checkpoint
from support import evidence

NAME = "step-{:09d}.rank-0-of-1.safetensors"
ALLOWED = 512 * 2**20
"""Bytes that loading may take beside four times the file's size."""
NOTICED = "named, and the older checkpoint taken"
GOOD = (NOTICED, "refused by name", "loaded")


def parts():
    """A module with its optimizer and its attachment, one step old."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.BatchNorm1d(4), nn.Linear(4, 2))
    attachment = bpfree.attach(model, bpfree.DFA())
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    return {"module": model, "optimizer": optimizer, "attachment": attachment}


def numbers(of):
    return [parameter.detach().clone() for parameter in of["module"].parameters()]


class Target:
    """A folder with the checkpoints of two steps."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.parts = folder, parts()
        save_checkpoint(folder, 1, self.parts)
        self.older = numbers(self.parts)
        self.change()
        save_checkpoint(folder, 2, self.parts)
        self.path = folder / NAME.format(2)
        self.whole = self.path.read_bytes()

    def change(self) -> None:
        with torch.no_grad():
            for parameter in self.parts["module"].parameters():
                parameter.add_(1)

    def is_noticed(self, damaged: bytes) -> bool:
        """Whether a newest file of these bytes is named, and the older one taken."""
        self.path.write_bytes(damaged)
        self.change()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            step = load_checkpoint(self.folder, self.parts)
        named = any(self.path.name in str(one.message) for one in told)
        return step == 1 and named and all(map(torch.equal, numbers(self.parts), self.older))


def flipped(whole: bytes, chance: random.Random) -> bytes:
    damaged = bytearray(whole)
    damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def truncated(whole: bytes, chance: random.Random) -> bytes:
    return whole[: chance.randrange(len(whole))]


def resealed(content: bytes) -> bytes:
    """A file of this content as its one process would have sealed it."""
    checksum = hashlib.sha256(content).digest()
    return content + checksum + hashlib.sha256(checksum).digest()


def mutated(whole: bytes, chance: random.Random) -> bytes:
    """Another content, mostly in the header, with a right checksum; its length is mostly told as it is."""
    length = int.from_bytes(whole[:8], "little")
    header, data = whole[8 : 8 + length], whole[8 + length : -64]
    header = (garbled if chance.random() < 0.5 else restructured)(header, chance)
    told = len(header) if chance.random() < 0.9 else chance.choice([0, 2, 2**62, 2**64 - 1, length])
    return resealed(told.to_bytes(8, "little") + header + data)


def garbled(text: bytes, chance: random.Random) -> bytes:
    """Bytes of the text changed, taken out, repeated, or strange ones in their place."""
    header = bytearray(text)
    for _ in range(chance.randint(1, 4)):
        at, begin = chance.randrange(len(header)), chance.randrange(len(header))
        kind = chance.randrange(4)
        if kind == 0:
            header[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del header[at : at + chance.randint(1, 40)]
        elif kind == 2:
            header[at:at] = header[begin : begin + chance.randint(1, 200)]
        else:
            header[at : at + 1] = chance.choice(STRANGE_TEXTS)
    return bytes(header)


def restructured(text: bytes, chance: random.Random) -> bytes:
    """A header that is JSON, with strange values in it or in the structure that it holds."""
    header = json.loads(text)
    structure = json.loads(header["__metadata__"]["bpfree"])
    for _ in range(chance.randint(1, 3)):
        nodes = list(_places(chance.choice([header, structure])))
        holder, key = chance.choice(nodes)
        if chance.random() < 0.3:
            del holder[key]
        else:
            holder[key] = chance.choice(STRANGE_VALUES)
        if not isinstance(header.get("__metadata__"), dict):
            return json.dumps(header).encode()
    header["__metadata__"]["bpfree"] = json.dumps(structure)
    return json.dumps(header).encode()


def _places(node):
    """Where in nested lists and dictionaries something stands: what holds it, and under which key."""
    for key in node if isinstance(node, dict) else range(len(node)):
        yield node, key
        if isinstance(node[key], dict | list):
            yield from _places(node[key])


STRANGE_VALUES = [
    None,
    True,
    -1,
    0,
    2**62,
    2**80,
    1e300,
    math.nan,
    "",
    "tensor",
    "F64",
    "x" * 1000,
    [],
    {},
    [0],
    ["tensor"],
]
STRANGE_TEXTS = [b"[" * 20_000, b"{}", b"NaN", b'"', b"\\", b"\xff", b"\x00", b"9" * 5_000, b'["list"]', b"-1", b"1e9"]


def outcome(target: Target, content: bytes) -> str:
    """What loading a folder with this file alone ends in; an exception that is not ours is raised."""
    target.path.write_bytes(content)
    (target.folder / NAME.format(1)).unlink(missing_ok=True)
    try:
        load_checkpoint(target.folder, target.parts)
    except BpfreeError as refused:
        return "refused by name" if target.path.name in str(refused) else "refused without the file's name"
    return "loaded"


def limit_memory(size: int) -> None:
    """Let this process take no more than what loading a file of ``size`` bytes may."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + 4 * size + ALLOWED
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def newest_damaged(damage: Callable[[bytes, random.Random], bytes], count: int, seed: int) -> Counter[str]:
    """Damage the newest of two checkpoints so often; counts what came of it."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        target = Target(Path(folder))
        noticed = sum(target.is_noticed(damage(target.whole, chance)) for _ in range(count))
    return +Counter({NOTICED: noticed, "not noticed, or not the older one taken": count - noticed})


def hostile_files(count: int, seed: int) -> Counter[str]:
    """Load so many hostile files in limited memory; counts what came of it."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        target = Target(Path(folder))
        limit_memory(len(target.whole))
        return Counter(outcome(target, mutated(target.whole, chance)) for _ in range(count))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=2500)
    parser.add_argument("--truncations", type=int, default=200)
    parser.add_argument("--mutations", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    evidence.add_option(parser)
    options = parser.parse_args()
    trials = [
        ("flips", options.flips, partial(newest_damaged, flipped, options.flips, options.seed)),
        ("truncations", options.truncations, partial(newest_damaged, truncated, options.truncations, options.seed)),
        (
            "mutations with a right checksum",
            options.mutations,
            partial(hostile_files, options.mutations, options.seed),
        ),
    ]
    return evidence.make(trials, options.evidence, "python -m pipeline.damage", GOOD)


if __name__ == "__main__":
    raise SystemExit(main())
