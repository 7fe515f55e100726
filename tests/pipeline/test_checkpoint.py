"""Files of checkpoints: what is in them, what damages them, and what a full disk or a kill leaves."""

import errno
import hashlib
import json
import os
import random
import resource
import signal
import struct
from collections import Counter, OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from bpfree.errors import BpfreeWarning, CheckpointError, StateError
from bpfree.pipeline import load_checkpoint, save_checkpoint
from pipeline import damage
from support.scripts import Script
from support.two_ranks import run_on_two_ranks

NAME = damage.NAME


class Kept:
    """A part whose state is what it is given."""

    def __init__(self, state=None):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def assert_same(ours, theirs):
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        assert list(ours) == list(theirs)
        for key in ours:
            assert_same(ours[key], theirs[key])
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    elif isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert ours.stride() == theirs.stride()
        assert ours.equal(theirs) or bool(theirs.isnan().any())
    else:
        assert repr(ours) == repr(theirs)


STATES = {
    "plain values": {
        "a": 1,
        "b": -(2**70),
        "c": 0.1,
        "d": float("inf"),
        "e": float("nan"),
        "f": None,
        "g": True,
        "h": "ä\n",
    },
    "keys of all kinds": {1: "number", "1": "text", None: 0, (2, 3): [1], 0.5: ()},
    "kinds of collections": {"o": OrderedDict(b=1, a=2), "c": Counter({3: 2}), "t": (1, [2, (3,)], {}), "l": []},
    "keys that are alike as texts": {
        1: torch.zeros(2),
        "1": torch.ones(2),
        "a/b": {"c": torch.eye(2)},
        "a": {"b/c": torch.ones(1)},
    },
    "dtypes": {
        str(dtype): torch.tensor([0, 1, 2]).to(dtype)
        for dtype in (torch.float64, torch.bfloat16, torch.float16, torch.int8, torch.uint8, torch.bool, torch.int64)
    },
    "complex": {"a": torch.tensor([1 + 2j, 3 - 4j]), "b": torch.tensor(1j, dtype=torch.complex128).conj()},
    "shapes": {
        "none": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5),
        "view": torch.arange(12.0).view(3, 4).t().contiguous(),
    },
    "formats": {"last": torch.arange(48.0).view(2, 3, 2, 4).to(memory_format=torch.channels_last)},
}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_what_is_loaded_is_what_was_saved(tmp_path, state):
    save_checkpoint(tmp_path, 1, {"part": Kept(state)})
    part = Kept()
    assert load_checkpoint(tmp_path, {"part": part}) == 1
    assert_same(part.state, state)


def test_the_versions_of_modules_are_kept(tmp_path):
    model = nn.BatchNorm1d(2)
    save_checkpoint(tmp_path, 1, {"model": model})
    part = Kept()
    load_checkpoint(tmp_path, {"model": part})
    assert part.state._metadata == model.state_dict()._metadata


def test_a_file_is_what_other_programs_call_safetensors(tmp_path):
    weight = torch.tensor([[1.0, -2.0, 3.5]])
    save_checkpoint(tmp_path, 7, {"model": Kept({"weight": weight, "count": torch.tensor(5)})})
    content = (tmp_path / NAME.format(7)).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    entries, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    assert length % 8 == 0
    begin, end = entries["parts/model/weight"]["data_offsets"]
    assert struct.unpack("<3f", data[begin:end]) == (1.0, -2.0, 3.5)
    assert entries["parts/model/weight"]["dtype"], entries["parts/model/weight"]["shape"] == ("F32", [1, 3])
    begin, end = entries["parts/model/count"]["data_offsets"]
    assert struct.unpack("<q", data[begin:end]) == (5,)
    offsets = [entry["data_offsets"] for name, entry in entries.items() if name != "__metadata__"]
    assert [begin for begin, _ in offsets] == [0, *(end for _, end in offsets[:-1])]
    assert offsets[-1][1] == len(data)
    begin, end = entries["sha256"]["data_offsets"]
    assert data[begin:end] == hashlib.sha256(content[: 8 + length + begin]).digest()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({1, 2}, "a set at 'parts/part/deep/here'"),
        (torch.nn.Linear(1, 1), "a Linear"),
        (print, "a builtin_function_or_method"),
        (torch.eye(2).to_sparse(), "sparse"),
        (torch.empty(2, device="meta"), "without numbers"),
        (torch.zeros(1, dtype=torch.float8_e8m0fnu), "float8_e8m0fnu"),
    ],
)
def test_what_no_checkpoint_can_hold_is_refused_when_it_is_saved(tmp_path, value, says):
    save_checkpoint(tmp_path, 1, {"part": Kept({})})
    with pytest.raises((StateError, CheckpointError), match=says):
        save_checkpoint(tmp_path, 2, {"part": Kept({"deep": {"here": value}})})
    assert [path.name for path in tmp_path.iterdir()] == [NAME.format(1)]


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def target(tmp_path):
    return damage.Target(tmp_path)


@pytest.mark.parametrize(("kind", "count"), [(damage.flipped, 60), (damage.truncated, 20)])
def test_damage_is_noticed_and_the_older_checkpoint_taken(target, kind, count):
    """``python -m pipeline.damage`` tries 2,500 and 200."""
    chance = random.Random(3)
    assert all(target.is_noticed(kind(target.whole, chance)) for _ in range(count))


@pytest.mark.parametrize("place", [0, 7, 8, 300, -65, -64, -33, -32, -1])
def test_every_part_of_a_file_is_covered(target, place):
    damaged = bytearray(target.whole)
    damaged[place] ^= 128
    assert target.is_noticed(bytes(damaged))


@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"PK\x03\x04" + b"\0" * 500])
def test_what_is_no_such_file_is_damaged(target, content):
    assert target.is_noticed(content)


def test_the_damaged_file_is_kept_and_later_ones_are_trained_again(target):
    damaged = damage.flipped(target.whole, random.Random(1))
    target.is_noticed(damaged)
    assert (target.folder / f"{NAME.format(2)}.damaged").read_bytes() == damaged
    save_checkpoint(target.folder, 2, target.parts)
    assert load_checkpoint(target.folder, target.parts) == 2


def test_without_an_older_one_the_run_does_not_begin_at_0(target):
    for step in (1, 2):
        (target.folder / NAME.format(step)).write_bytes(b"x" * 100)
    with pytest.raises(CheckpointError, match=r"step 2 is damaged.*step 1 is damaged.*none before. Put the files back"):
        load_checkpoint(target.folder, target.parts)
    assert sorted(path.name for path in target.folder.iterdir()) == [NAME.format(1), NAME.format(2)]


def test_a_file_that_cannot_be_read_is_no_end(target):
    target.path.unlink()
    target.path.mkdir()
    with pytest.warns(BpfreeWarning, match="cannot be read: Is a directory"):
        assert load_checkpoint(target.folder, target.parts) == 1


def test_another_models_checkpoint_is_named(target):
    target.parts["module"] = nn.Linear(2, 2)
    with pytest.raises(StateError, match=r"(?s)step-000000002.*'module' does not fit.*Missing key"):
        load_checkpoint(target.folder, target.parts)


def test_hostile_files_with_a_right_checksum_are_refused_by_name(target):
    """``python -m pipeline.damage`` tries 20,000."""
    chance = random.Random(5)
    for _ in range(60):
        assert damage.outcome(target, damage.mutated(target.whole, chance)) in ("refused by name", "loaded")


MEMORY = """
import json, sys, torch
from pathlib import Path
from pipeline import damage
from bpfree.pipeline import load_checkpoint
target = damage.Target(Path(sys.argv[1]))
MOST = 8 * 2**20
def headed(header, data=b"", told=None):
    header = header + b" " * (-len(header) % 8)
    return damage.resealed((told or len(header)).to_bytes(8, "little") + header + data)
def note(structure):
    return json.dumps({"__metadata__": {"bpfree": structure}}).encode()
shaped = b'{"__metadata__":{"bpfree":"0"},"a":{"dtype":"F64","shape":[%s],"data_offsets":[0,%s]}}'
entry = '"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
hostile = [
    headed(b"{}", told=2**63), headed(b"{}", told=2**40), headed(b"{}", told=MOST),
    headed(b"[" + b'{"":0},' * (MOST // 7 - 4) + b"0]"),
    headed(b"[" * (MOST - 8)),
    headed(note('["list"' + ',["list"]' * (MOST // 13) + "]")[:MOST]),
    headed(("{" + ",".join(entry % i for i in range(MOST // 62)) + "}").encode()),
    headed(shaped % (b"1099511627776", b"8796093022208")),
    headed(shaped % (b"0,4611686018427387904", b"0")),
    headed(shaped % (b"9," * 2_000_000 + b"9", b"0")),
]
damage.limit_memory(0)
for content in hostile:
    print(damage.outcome(target, content))
"""


def test_no_file_takes_more_memory_than_is_stated(tmp_path):
    """Beside 512 MiB not even four times its size, of files that ask for terabytes."""
    (tmp_path / "memory.py").write_text(MEMORY)
    (tmp_path / "kept").mkdir()
    run = Script(tmp_path / "memory.py", str(tmp_path / "kept"), log=tmp_path / "log.txt")
    assert run.output(120).split("\n")[:-1] == ["refused by name"] * 10
    assert run.returncode == 0


# -- a full disk, a kill -----------------------------------------------------------------------------------------------


def test_a_full_disk_loses_nothing_at_any_moment(target):
    """The system itself cuts the file off, at 50 sizes."""
    whole = {path.name: path.read_bytes() for path in target.folder.iterdir()}
    ends = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for moment in range(50):
            resource.setrlimit(resource.RLIMIT_FSIZE, (moment * len(target.whole) // 50, ends[1]))
            with pytest.raises(CheckpointError, match=r"step-000000003.*could not be written.*as they were"):
                save_checkpoint(target.folder, 3, target.parts)
            resource.setrlimit(resource.RLIMIT_FSIZE, ends)
            assert {path.name: path.read_bytes() for path in target.folder.iterdir()} == whole
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, ends)
        signal.signal(signal.SIGXFSZ, heard)
    save_checkpoint(target.folder, 3, target.parts)
    assert load_checkpoint(target.folder, target.parts) == 3


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_is_full_at_the_very_end_loses_nothing(target, monkeypatch, call):
    whole = {path.name: path.read_bytes() for path in target.folder.iterdir()}

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(CheckpointError, match="No space left on device"):
            save_checkpoint(target.folder, 3, target.parts)
    assert {path.name: path.read_bytes() for path in target.folder.iterdir()} == whole


def test_what_a_kill_has_left_is_swept(tmp_path):
    """That of other ranks too, if those are not there any more; nothing else."""
    left = [f"{NAME.format(3)}.partial", "step-000000004.rank-3-of-4.safetensors.partial"]
    for name in (*left, "notes.partial"):
        (tmp_path / name).write_bytes(b"x")
    assert load_checkpoint(tmp_path, {}) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["notes.partial"]


# -- two processes -----------------------------------------------------------------------------------------------------


def stopped(rank, folder):
    """Every case gets a folder of its own, with steps 1 and 2 saved by both."""
    import warnings

    found = {}

    def begin(name):
        own, part = Path(folder) / name, Kept({"number": torch.tensor(float(rank))})
        for step in (1, 2):
            part.state["number"] += 10
            save_checkpoint(own, step, {"part": part})
        return own, part, own / f"step-000000002.rank-{rank}-of-2.safetensors"

    def end(name, own, part):
        torch.distributed.barrier()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                step = load_checkpoint(own, {"part": part})
            except (CheckpointError, StateError) as refused:
                step = f"{type(refused).__name__}: {refused}"
        torch.distributed.barrier()
        left = sorted(path.name for path in own.iterdir() if f"rank-{rank}" in path.name)
        found[name] = step, part.state["number"].item(), [str(one.message) for one in told], left

    own, part, path = begin("newest of rank 1 damaged")
    if rank == 1:
        path.write_bytes(path.read_bytes()[:-1])
    end("newest of rank 1 damaged", own, part)

    own, part, path = begin("of two saves")
    before = path.read_bytes()
    part.state["number"] += 100
    save_checkpoint(own, 2, {"part": part})
    if rank == 0:
        path.write_bytes(before)
    end("of two saves", own, part)

    own, part, path = begin("no step is whole")
    (path if rank else own / "step-000000001.rank-0-of-2.safetensors").write_bytes(b"")
    end("no step is whole", own, part)

    own, part, path = begin("one disk is full")
    ends = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == 1:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, ends[1]))
    try:
        save_checkpoint(own, 3, {"part": part})
    except CheckpointError as full:
        found["full"] = str(full)
    resource.setrlimit(resource.RLIMIT_FSIZE, ends)
    end("one disk is full", own, part)

    own, part, path = begin("one process has another part")
    end("one process has another part", own, part if rank else Kept({"number": torch.tensor(0.0)}))
    try:
        load_checkpoint(own, {"part" if rank else "other": part})
    except (StateError, CheckpointError) as refused:
        found["parts"] = type(refused).__name__, str(refused)
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return run_on_two_ranks(stopped, str(tmp_path_factory.mktemp("both")))


def test_all_processes_go_back_to_the_same_step(both):
    for rank, found in enumerate(both):
        step, number, told, left = found["newest of rank 1 damaged"]
        assert (step, number) == (1, 10.0 + rank)
        assert len(told) == 1
        assert "step 2 is damaged (process 1: " in told[0]
        assert "step-000000002.rank-1-of-2.safetensors: its checksum" in told[0]
        assert "went back to step 1" in told[0]
        assert left == [f"step-00000000{s}.rank-{rank}-of-2.safetensors{end}" for s, end in ((1, ""), (2, ".damaged"))]


def test_files_of_two_saves_are_no_checkpoint(both):
    for rank, found in enumerate(both):
        step, number, told, _ = found["of two saves"]
        assert (step, number) == (1, 10.0 + rank)
        assert all(f"step-000000002.rank-{of}-of-2.safetensors has another end" in told[0] for of in range(2))


def test_no_process_begins_anew_where_another_one_has_no_whole_file(both):
    for found in both:
        step, _, told, left = found["no step is whole"]
        assert step.startswith("CheckpointError: the checkpoint of step 2 is damaged (process 1: ")
        assert ", the checkpoint of step 1 is damaged (process 0: " in step
        assert not told
        assert not any(name.endswith(".damaged") for name in left)


def test_one_full_disk_is_told_in_all_processes(both):
    for rank, found in enumerate(both):
        assert "step-000000003.rank-1-of-2.safetensors could not be written" in found["full"]
        assert found["full"].startswith("process 1: ") == (rank == 0)
        step, number, told, left = found["one disk is full"]
        assert (step, number, told) == (2, 20.0 + rank, [])
        assert left == [f"step-00000000{s}.rank-{rank}-of-2.safetensors" for s in (1, 2)]


def test_what_one_process_cannot_load_none_does(both):
    (zero, says), (one, also) = (found["parts"] for found in both)
    assert (zero, one) == ("StateError", "CheckpointError")
    assert "holds ['part']; ['other'] was to be loaded" in says
    assert says in also
