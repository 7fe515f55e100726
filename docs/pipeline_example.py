"""Train a network by DFA on two processes, each with half of the layers; resume where a stopped run left off.

Run it with ``torchrun --nproc-per-node 2 docs/pipeline_example.py --folder runs/pipeline``.
"""

import argparse

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.pipelining import PipelineStage

import bpfree
from bpfree import pipeline

MICRO_BATCHES = 4


def stage_module(rank: int) -> nn.Sequential:
    """This process's slice of the network; slices keep the names of the whole, and so its feedback."""
    torch.manual_seed(0)
    layers = [part for _ in range(4) for part in (nn.Linear(64, 64), nn.Tanh())]
    whole = nn.Sequential(*layers, nn.Linear(64, 10))
    return whole[4:] if rank else whole[:4]


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The batch of one step: the class of a point is the largest of its first ten numbers."""
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(step))
    return x, x[:, :10].argmax(dim=1)


def main() -> None:
    """Train, and save a checkpoint now and then."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, help="where the checkpoints are")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--every", type=int, default=20, help="steps from checkpoint to checkpoint")
    parser.add_argument("--beat", type=float, default=1.0, help="seconds between two signs of life")
    options = parser.parse_args()

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    module = stage_module(rank)
    stage = PipelineStage(module, rank, 2, torch.device("cpu"))
    attachment = pipeline.attach_stage(stage, bpfree.DFA(), seed=0)
    optimizer = torch.optim.Adam(module.parameters(), 1e-3)
    schedule = pipeline.ScheduleAsynchronous(attachment, MICRO_BATCHES, F.cross_entropy, optimizer=optimizer)
    parts = {"module": module, "optimizer": optimizer, "attachment": attachment}

    begin = pipeline.load_checkpoint(options.folder, parts)
    print(f"rank {rank} goes on from step {begin}", flush=True)
    with pipeline.watched_ranks(options.beat):
        for step in range(begin, options.steps):
            x, y = batch(step)
            if rank == 0:
                schedule.step(x)
            else:
                losses: list[torch.Tensor] = []
                schedule.step(target=y, losses=losses)
                if step % 50 == 0:
                    print(f"step {step}: loss {torch.stack(losses).mean():.3f}", flush=True)
            if (step + 1) % options.every == 0:
                schedule.flush()  # before saving: nothing is under way
                pipeline.save_checkpoint(options.folder, step + 1, parts)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
