"""A process that is killed is named by the others; the run goes on from the last checkpoint as if nothing had been."""

import ctypes
import re
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import bpfree.pipeline
from bpfree.errors import OptionError, StateError
from support.scripts import on_ranks
from support.two_ranks import run_on_two_ranks

EXAMPLE = Path(__file__).parents[2] / "docs" / "pipeline_example.py"
STEPS, EVERY = 120, 10
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
PATIENCE = 300
"""Seconds, for a busy machine; far below the process group's timeout of 30 minutes."""

DATA_PARALLEL = """
import torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
import bpfree, bpfree.pipeline
dist.init_process_group("gloo")
model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
bpfree.attach(model, bpfree.DFA())
trained = DistributedDataParallel(model)
with bpfree.pipeline.watched_ranks(0.2):
    for step in range(10**6):
        trained(torch.randn(4, 8)).square().sum().backward()
        if step == 5:
            print("under way", flush=True)
"""


def outputs(processes):
    try:
        return [process.output(PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()


def train(folder, logs):
    words = [f"--folder={folder}", f"--steps={STEPS}", f"--every={EVERY}", "--beat=0.2"]
    return on_ranks(2, EXAMPLE, *words, logs=logs, environment=ONE_THREAD)


def wait_for(happened):
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    processes = train(folder, tmp_path_factory.mktemp("logs"))
    found = outputs(processes)
    assert [process.returncode for process in processes] == [0, 0], found
    return folder


def test_a_killed_stage_is_named_and_the_run_resumes_bit_for_bit(undisturbed, tmp_path, tmp_path_factory):
    logs = tmp_path_factory.mktemp("logs")
    processes = train(tmp_path, logs)
    wait_for(lambda: (tmp_path / f"step-{2 * EVERY:09d}.rank-1-of-2.safetensors").exists())
    processes[1].kill()
    survivor, _ = outputs(processes)
    assert processes[0].returncode != 0
    assert "LostRankError: rank 1 is gone" in survivor
    newest = max(int(path.name[5:14]) for path in tmp_path.glob("*rank-1-of-2.safetensors"))
    resumed = outputs(train(tmp_path, logs))
    begins = {int(re.search(r"goes on from step (\d+)", text)[1]) for text in resumed}
    # No process goes back behind the last checkpoint that both have.
    assert len(begins) == 1
    assert newest - EVERY <= begins.pop() <= newest
    for rank in range(2):
        name = f"step-{STEPS:09d}.rank-{rank}-of-2.safetensors"
        assert (tmp_path / name).read_bytes() == (undisturbed / name).read_bytes()


def test_a_killed_rank_of_a_data_parallel_run_is_named(tmp_path):
    """Rank 0 also holds the store in which the others look."""
    (tmp_path / "train.py").write_text(DATA_PARALLEL)
    processes = on_ranks(2, tmp_path / "train.py", logs=tmp_path, environment=ONE_THREAD)
    wait_for(lambda: all(process.printed.startswith("under way\n") for process in processes))
    processes[0].kill()
    _, survivor = outputs(processes)
    assert processes[1].returncode != 0
    assert "LostRankError: rank 0 is gone; rank 1 cannot go on" in survivor


def test_a_checkpoint_of_other_parts_is_refused(tmp_path):
    model = torch.nn.Linear(2, 2)
    bpfree.pipeline.save_checkpoint(tmp_path, 3, {"module": model})
    with pytest.raises(StateError, match=r"holds \['module'\]; \['model'\] was to be loaded"):
        bpfree.pipeline.load_checkpoint(tmp_path, {"model": model})
    assert bpfree.pipeline.load_checkpoint(tmp_path, {"module": model}) == 3


def test_old_checkpoints_are_dropped(tmp_path):
    for step in (1, 2, 3, 10):
        bpfree.pipeline.save_checkpoint(tmp_path, step, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-000000003.rank-0-of-1.safetensors",
        "step-000000010.rank-0-of-1.safetensors",
    ]


def test_the_checkpoint_just_written_is_never_dropped(tmp_path):
    """Of a run that began anew in the folder of another."""
    for step in (380, 400, 20):
        bpfree.pipeline.save_checkpoint(tmp_path, step, {})
    assert sorted(int(path.name[5:14]) for path in tmp_path.iterdir()) == [20, 400]


def test_a_checkpoint_of_another_number_of_processes_is_no_start_at_0(tmp_path):
    assert bpfree.pipeline.load_checkpoint(tmp_path, {}) == 0
    (tmp_path / "step-000000003.rank-0-of-4.safetensors").touch()
    with pytest.raises(StateError, match="process 0: none, files of a run of 4 processes"):
        bpfree.pipeline.load_checkpoint(tmp_path, {})


def fast_and_slow(rank, folder, folders):
    """Rank 0 saves as fast as it may; rank 1 looks, before it saves a step, what rank 0 has."""
    there = []
    for step in range(1, 6):
        if rank == 1:
            time.sleep(0.3)
            there.append([int(path.name[5:14]) for path in Path(folder).glob("*rank-0-of-2.safetensors")])
        bpfree.pipeline.save_checkpoint(folder, step, {})
    try:
        bpfree.pipeline.load_checkpoint(folders[rank], {})
    except StateError as refused:
        return there, str(refused)


def test_no_process_runs_ahead_of_the_steps_that_all_have(tmp_path):
    apart = [tmp_path / "0", tmp_path / "1"]
    for folder, step in zip(apart, (3, 4), strict=True):
        folder.mkdir()
        for rank in range(2):
            (folder / f"step-{step:09d}.rank-{rank}-of-2.safetensors").touch()
    (_, refused), (there, also) = run_on_two_ranks(fast_and_slow, str(tmp_path), apart)
    # Before rank 1 has saved step k, step k - 1 is the last that it has.
    assert all(step - 1 in steps for step, steps in enumerate(there[1:], start=2))
    assert refused == also
    assert "process 0: steps 3; process 1: steps 4" in refused


def own_failure(rank, paused):
    """One rank is away for a while, and afterwards another fails by itself; what that one raises."""
    try:
        with bpfree.pipeline.watched_ranks(0.3):
            if rank == 1 and paused:
                ctypes.PyDLL(None).sleep(4)  # holding the interpreter: not even the watch runs
            if paused:
                dist.barrier()
            elif rank == 0:
                return None  # the host of the store is the first to leave
            time.sleep(2)
            if rank != paused:
                raise RuntimeError("of its own")
            time.sleep(2)
    except Exception as failure:
        return type(failure).__name__, str(failure)


def test_a_rank_that_only_paused_is_not_blamed_for_what_comes_later():
    failed, _ = run_on_two_ranks(own_failure, True)
    assert failed == ("RuntimeError", "of its own")


def test_the_host_of_the_store_may_leave_first():
    left, failed = run_on_two_ranks(own_failure, False)
    assert left is None
    assert failed == ("RuntimeError", "of its own")


def test_watching_needs_a_process_group():
    with (
        pytest.raises(OptionError, match="init_process_group"),
        bpfree.pipeline.watched_ranks(),
    ):
        pass
