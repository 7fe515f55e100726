"""Training radiance fields: DFA beside BP, streaming's memory, beside a plain loop, beside nerf-pytorch's step.

    python benchmarks/rendering.py [--only "DFA" ...] [--rays 1024] [--pairs 20] [--nerf-pytorch DIR]

The last comparison needs a folder with the code of krrish94/nerf-pytorch (its package ``nerf`` and ``config``).
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import bpfree
from bpfree.lab.data.scenes import Cameras, Scene, Views
from bpfree.lab.models import NeRF, NeRFReleased
from bpfree.lab.options.training import TrainOptions
from bpfree.lab.running.runs import learner
from bpfree.lab.settings.model import ModelSettings
from bpfree.lab.tasks import VIEWS
from bpfree.lab.tasks.views import ViewSynthesis
from bpfree.lab.time_and_memory import paired_ratio
from common import results, script
from common.nerf_pytorch import nerf_pytorch_step
from common.subjects import Step

NETS: dict[str, Callable[[], NeRF]] = {
    "8 x 256": lambda: NeRF(fine_samples=0),
    "4 x 128": lambda: NeRFReleased(fine_samples=0),
}
"""One pass of 64 points a ray."""
XL = "XL: 8 x 256 and 8 x 512"
RELEASED = "two of 4 x 128"
SIDE = 100
PARTS = 16
"""The parts of a step's rays (``--accumulate``): what a layer gives for one of them fits into a processor's cache."""


def made_up(views: int = 20) -> Scene:
    """Views of noise, from cameras at one place: what is in a picture does not change a step's time."""
    generator = torch.Generator().manual_seed(0)
    poses = torch.eye(3, 4, dtype=torch.float64).repeat(views, 1, 1)
    poses[:, 2, 3] = 4
    size = torch.full((views, 2), float(SIDE), dtype=torch.float64)
    pixels = torch.randint(0, 256, (views, SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)
    seen = Views(pixels, Cameras(poses, 1.4 * size, size / 2, SIDE, SIDE, 2.0, 6.0), 1.0)
    return Scene("noise", seen, seen.choose(torch.arange(1)), "validation")


def step_of(model: NeRF, rule: bpfree.Rule, rays: Tensor, colours: Tensor, *, streaming: bool = False) -> Step:
    """Forward, loss and backward of a model of whose nets each has the rule."""
    attachments = model.attach(rule, streaming=streaming)
    model.train()

    def forward_backward() -> None:
        (model(rays) - colours[:, None]).square().mean((0, 2)).sum().backward()

    return Step(model, forward_backward, attachment=attachments["coarse"])


def direct(scene: Scene, rays: int, pairs: int) -> Iterator[results.Row]:
    """DFA's step beside backpropagation's, one net, the same rays."""
    batch = scene.train.batch(torch.arange(rays))
    for name, build in NETS.items():
        dfa, bp = (step_of(build(), rule, *batch) for rule in (bpfree.DFA(), bpfree.BP()))
        ratio = paired_ratio(dfa, bp, repeats=pairs)
        yield _row(name, "DFA", "BP", rays, time=asdict(ratio), flops_ratio=dfa.flops() / bp.flops())


def streaming(scene: Scene, rays: int) -> Iterator[results.Row]:
    """What a step of the large model takes in memory beside weights and batch, by streaming DFA and by BP."""
    batch = scene.train.batch(torch.arange(rays))
    steps = {
        "streaming DFA": step_of(NeRF(fine_width=512), bpfree.DFA(), *batch, streaming=True),
        "DFA": step_of(NeRF(fine_width=512), bpfree.DFA(), *batch),
        "BP": step_of(NeRF(fine_width=512), bpfree.BP(), *batch),
    }
    taken = {}
    for name, step in steps.items():
        step()  # what is made in a first step, such as feedback, is no part of the others
        taken[name] = {"peak_bytes": step.peak_bytes(), "activation_bytes": step.activation_bytes()}
    for name in ("streaming DFA", "DFA"):
        beside = {f"{part}_reference": count for part, count in taken["BP"].items()}
        yield _row(XL, f"memory, {name}", "BP", rays, **taken[name], **beside)


def lab_step(scene: Scene, rule: str, rays: int, threads: int, parts: int = 1) -> Callable[[], object]:
    """The lab's training step, its rays in so many parts: drawing rays and the optimizer included."""
    options = TrainOptions(
        data="blender",
        rule=rule,
        model=ModelSettings("NeRFReleased"),
        batch_size=rays,
        accumulate=parts,
        threads=threads,
        alignment="never",
        lr=5e-4,
    )
    settings = options.run(rule, 0, details=False)
    task: Any = learner(settings, scene)
    optimizer = task.optimizer()
    task.train()
    feed = ViewSynthesis.feed(settings, scene, VIEWS)
    drawn = itertools.chain.from_iterable(itertools.repeat(feed.train))

    def step() -> None:
        optimizer.zero_grad()
        task.gradients(next(drawn))
        optimizer.step()

    return step


def plain_step(scene: Scene, rays: int) -> Callable[[], object]:
    """What somebody would write without the lab: all rays in memory, random ones of them, Adam."""
    packed, colours = scene.train.batch(torch.arange(len(scene.train)))
    model = NeRFReleased().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)

    def step() -> None:
        index = torch.randint(0, len(packed), (rays,))
        shown, truth = model(packed[index]), colours[index]
        loss = F.mse_loss(shown[:, 0], truth) + F.mse_loss(shown[:, 1], truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def beside_loops(scene: Scene, options: argparse.Namespace) -> Iterator[results.Row]:
    """Loops of others beside the lab's: how much longer they take for as many rays."""
    loops = {"plain loop by BP": lambda: plain_step(scene, options.rays)}
    if options.nerf_pytorch is not None:
        loops["nerf-pytorch's step by BP"] = lambda: nerf_pytorch_step(options.nerf_pytorch, scene, options.rays)
    for subject, build in loops.items():
        for rule, parts in itertools.product(("BP", "DFA"), (1, PARTS)):
            if not script.chosen(subject, options.only):
                continue
            lab = lab_step(scene, rule, options.rays, options.threads, parts)
            ratio = paired_ratio(build(), lab, repeats=options.pairs)
            name = f"lab by {rule}" if parts == 1 else f"lab by {rule}, in {parts} parts"
            yield _row(RELEASED, subject, name, options.rays, time=asdict(ratio))


def _row(net: str, subject: str, reference: str, rays: int, **measured: Any) -> results.Row:
    return {"net": net, "subject": subject, "reference": reference, "rays": rays, **measured}


HEADER = """\
| net | subject | beside | time ratio | rays a second (subject, beside) | peak memory ratio | of it without gradients |
| --- | --- | --- | --- | --- | --- | --- |"""


def line(row: results.Row) -> str:
    """One row of the printed table."""
    cells = ["", "", "", ""]
    if time := row.get("time"):
        rates = (row["rays"] / time[f"{side}_seconds"] for side in ("subject", "reference"))
        cells[0] = f"{time['median']:.3f} [{time['lower']:.3f}, {time['upper']:.3f}]"
        cells[1] = ", ".join(f"{rate:,.0f}" for rate in rates)
    if "peak_bytes" in row:
        cells[2:] = (f"{row[p] / row[f'{p}_reference']:.3f}" for p in ("peak_bytes", "activation_bytes"))
    return f"| {row['net']} | {row['subject']} | {row['reference']} | {' | '.join(cells)} |"


def measured(options: argparse.Namespace) -> Iterator[results.Row]:
    """Yield what was measured."""
    scene = made_up()
    if script.chosen("DFA", options.only):
        yield from direct(scene, options.rays, options.pairs)
    if script.chosen("memory", options.only):
        yield from streaming(scene, options.rays // 4)
    yield from beside_loops(scene, options)


def main() -> None:
    """Measure, print the table, put the rows into the file."""
    script.keep_memory()
    parser = script.parser(__doc__, "rendering.json")
    parser.add_argument("--rays", type=int, default=1024, help="of a step; a quarter for memory (default: 1,024)")
    parser.add_argument("--pairs", type=int, default=20, help="pairs of steps a row (default: 20)")
    parser.add_argument("--nerf-pytorch", type=Path, metavar="DIR", help="its code; without it that row is left out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    run = script.run()
    if options.nerf_pytorch is None:
        print("nerf-pytorch's step is left out: name the folder of its code by --nerf-pytorch.", file=sys.stderr)
    print(HEADER)
    for row in measured(options):
        print(line(row), flush=True)
        results.write(options.out, run, [row])


if __name__ == "__main__":
    main()
