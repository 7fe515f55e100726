"""What the rules cost and compute on one GPU, in one run of a few minutes.

Groups of measurements, in this order: every rule's gradients beside the CPU's; steps relative to backpropagation in
float32, bfloat16 and TF32; streaming's memory; float16 with a GradScaler; segments on CUDA streams; CUDA graphs;
compiled models. The time is divided over them, and the file names what did not fit, what failed, and what this device
cannot do.

    python benchmarks/gpu.py [--seconds 420] [--device cuda] [--quick] [--groups memory streams ...] [--only "DFA*" ...]
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch

from common import results, script
from device import agreement, grad_scaler, memory, steps, streams
from device.budget import Budget
from device.kit import Cell, Kit

GROUPS: dict[str, tuple[Callable[[Kit], Iterator[Cell]], float]] = {
    "agreement": (agreement.agreement, 1),
    "steps": (steps.eager, 5),
    "memory": (memory.memory, 1),
    "GradScaler": (grad_scaler.grad_scaler, 1),
    "streams": (streams.streams, 1),
    "CUDA graphs": (steps.captured, 2),
    "compiled": (steps.compiled, 4),  # last: to compile one large network can take a minute
}
"""The groups, and the weight of each when the time is divided."""


def measure(kit: Kit, groups: list[str], only: list[str] | None, seconds: float) -> Iterator[results.Row]:
    """A row for every cell, measured or not."""
    budget = Budget(seconds, {name: GROUPS[name][1] for name in groups})
    for name in groups:
        budget.begin_group(name)
        cells = [cell for cell in GROUPS[name][0](kit) if script.chosen(cell.row["subject"], only)]
        while cells:
            yield {**cells[0].row, **outcome(cells[0], budget, len(cells))}
            del cells[0]  # and with it the models that only it has used
            gc.collect()


def outcome(cell: Cell, budget: Budget, left: int) -> dict[str, Any]:
    """Measure a cell, or say why it was not measured; ``left`` cells of its group are left with it."""
    if cell.impossible:
        return {"not_run": cell.impossible}
    seconds = budget.begin_cell(left)
    if seconds is None:
        return {"not_run": "the time of its group was used up"}
    try:
        return cell.measure(seconds)
    except Exception as error:  # a device on which nothing was ever tried: what fails is a result too
        return {"failed": f"{type(error).__name__}: {error}".partition("\n")[0]}
    finally:
        budget.end_cell()


def line(row: results.Row) -> str:
    """One row of the printed table."""
    beside = f" / {row['reference']}" if "reference" in row else ""
    return f"| {row['axis']} | {row['net']} | {row['subject']}{beside} | {_told(row)} |"


def _told(row: results.Row) -> str:
    told = [f"{word.replace('_', ' ')}: {row[word]}" for word in ("not_run", "failed") if word in row]
    if "time" in row:
        time = row["time"]
        told.append(f"{time['median']:.3f}, {time['lower']:.3f} to {time['upper']:.3f}")
    told += [f"{key} {row[key] / 2**20:.1f} MiB" for key in ("activation_bytes", "peak_bytes") if key in row]
    told += [f"{key} {row[key]:.1e}" for key in ("distance", "distance_of_cpu") if key in row]
    told += [
        f"{key} {row[key]}" for key in ("agrees", "same_gradients", "skipped", "untouched", "finite") if key in row
    ]
    return "; ".join(told)


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = script.parser(__doc__, "gpu.json")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"), help="the device (default: cuda)")
    parser.add_argument("--seconds", type=float, default=420, help="the time for everything (default: 420)")
    parser.add_argument("--quick", action="store_true", help="networks of no size, to try the script itself")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS), help="what to measure (all)")
    found = parser.parse_args()
    if found.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device. --device cpu --quick runs what a CPU can do of all this.")
    return found


def main() -> None:
    """Measure, print the table, put the rows into the file."""
    script.keep_memory()
    chosen = options()
    torch.set_num_threads(chosen.threads)
    kit = (Kit.quick if chosen.quick else Kit.full)(chosen.device)
    card = torch.cuda.get_device_name(chosen.device) if kit.is_cuda else "none: this is a CPU"
    run = script.run() | {"card": card}
    print(f"Card: {card}\n\n| what | network | subject | outcome |\n| --- | --- | --- | --- |")
    for row in measure(kit, chosen.groups, chosen.only, chosen.seconds):
        print(line(row), flush=True)
        results.write(chosen.out, run, [row])  # at once: a run that is cut short leaves what it has measured


if __name__ == "__main__":
    main()
