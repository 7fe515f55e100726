"""An attached model that is evaluated while it trains, and models that train side by side.

    PYTHONPATH=tests python -m disturbances.threads [--steps 1000] [--nets plain ...] [--evidence FILE]

Each of 30 variants of the rules trains every net three times: alone; beside a thread that evaluates the same model
without a break, under ``no_grad()``; and with a hook in which the model calls itself. Losses, weights, feedback,
gradients and what the evaluations give must be the same, bit for bit. Then models whose rules run estimating passes
train two by two, each in a thread of its own.

The exit status is 1 if anything was disturbed.
"""

from __future__ import annotations

import argparse
import queue
import random
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations_with_replacement

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disturbances.nets import NETS, VARIANTS, Net, batches
from support import evidence
from support.matrix import Row
from support.runs import attach, learned

BATCHES = 8
ESTIMATING = ("GrAPE", "GrAPE, streaming", "FDFA", "LMS", "ForwardGradient, activations", "ForwardGradient, weights")
RATE, DECAY = 0.05, 0.01
"""Of plain SGD."""
GOOD = ("training as alone", "evaluation as alone")


@dataclass
class TrainingRun:
    """A training run, as far as it is.

    Attributes:
        model: What is trained.
        step: How many steps have been taken.
        weights_stand: Held while no weight may change.
        waits: Whether the run waits for that.
        losses: The loss of every step.
        numbers: Its weights, feedback and last gradients at the end.
        outputs: What an unattached twin with the same weights gives on the batch of the evaluations, by step; kept for
            the run alone.
    """

    model: nn.Module
    step: int = 0
    weights_stand: threading.Lock = field(default_factory=threading.Lock)
    waits: bool = False
    losses: list[float] = field(default_factory=list)
    numbers: dict[str, Tensor] = field(default_factory=dict)
    outputs: list[Tensor] = field(default_factory=list)

    def is_as(self, other: TrainingRun) -> bool:
        """Whether losses, weights, feedback and last gradients are the same, bit for bit."""
        same = self.losses == other.losses and self.numbers.keys() == other.numbers.keys()
        return same and all(torch.equal(self.numbers[name], tensor) for name, tensor in other.numbers.items())


def train(
    row: Row, net: Net, steps: int, beside: Callable[[TrainingRun], None] | None = None, *, keep: bool = False
) -> TrainingRun:
    """Train a net; ``beside`` is called when the rule has been attached, and may start a thread."""
    with _BUILDING:  # torch has one generator for all threads
        model, twin = net.build(), net.build()
    attachment = attach(row, model, **net.options)
    optimizer = torch.optim.SGD([*model.parameters(), *attachment.parameters()], lr=RATE, weight_decay=DECAY)
    run, (seen, _) = TrainingRun(model), batches(1)[0]
    if beside is not None:
        beside(run)
    for step in range(steps):
        if keep:
            twin.load_state_dict(model.state_dict())
            with torch.no_grad():
                run.outputs.append(twin(seen))
        x, y = _BATCHES[step % BATCHES]
        optimizer.zero_grad()
        attachment.targets(y)
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        run.losses.append(loss.item())
        run.waits = True
        with run.weights_stand:
            run.waits = False
            optimizer.step()
            run.step += 1
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    run.numbers = learned(model, attachment) | {f"gradient of {name}": grad for name, grad in gradients.items()}
    return run


_BATCHES = batches(BATCHES)
_BUILDING = threading.Lock()


class Evaluations:
    """Evaluates a model under training, and counts what comes of it.

    Args:
        outputs: What an evaluation must give, by step.
        seed: That of the pauses between evaluations.
    """

    def __init__(self, outputs: Sequence[Tensor], seed: int) -> None:
        # A queue: what a hook keeps in attributes is put back behind every second run of the model.
        self._found: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._outputs, self._luck = outputs, random.Random(seed)
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, run: TrainingRun) -> None:
        """Evaluate the model of this run from now on, in a thread."""
        self._thread = threading.Thread(target=self._evaluate, args=(run,))
        self._thread.start()

    def end(self) -> None:
        """Wait for the last evaluation."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _evaluate(self, run: TrainingRun) -> None:
        torch.set_num_threads(1)  # a new thread begins with the processor's number, and a GRU then rounds otherwise
        while not self._ended.is_set():
            if run.waits:
                time.sleep(0)
                continue
            with run.weights_stand:
                if run.step < len(self._outputs):
                    self.once(run)
            time.sleep(self._luck.uniform(0, 0.001))

    def once(self, run: TrainingRun) -> None:
        """Evaluate the model, whose weights stand."""
        seen, _ = batches(1)[0]
        try:
            with torch.no_grad():
                output = run.model(seen)
            same = torch.equal(output, self._outputs[run.step]) and not output.requires_grad
            self._found.put("evaluation as alone" if same else "other outputs of an evaluation")
        except Exception as error:
            self._found.put(f"evaluation: {type(error).__name__}: {error}"[:200])

    def hook(self, run: TrainingRun) -> None:
        """Let the model call itself in a hook of its own, in every pass."""
        inside = threading.local()

        def call(*_: object) -> None:
            if not getattr(inside, "now", False):
                inside.now = True
                try:
                    self.once(run)
                finally:
                    inside.now = False

        linear = [module for module in run.model.modules() if isinstance(module, nn.Linear)]
        linear[1].register_forward_hook(call)

    def counts(self) -> Counter[str]:
        """How often what came of an evaluation."""
        return Counter(self._found.get() for _ in range(self._found.qsize()))


def beside_a_thread(row: Row, net: Net, steps: int, alone: TrainingRun) -> Counter[str]:
    """What came of a run beside a thread that evaluates its model."""
    evaluations = Evaluations(alone.outputs, steps)
    try:
        training = outcome(partial(train, row, net, steps, evaluations.begin), alone)
    finally:
        evaluations.end()
    return training + evaluations.counts()


def within_a_hook(row: Row, net: Net, steps: int, alone: TrainingRun) -> Counter[str]:
    """What came of a run whose model calls itself in a hook."""
    evaluations = Evaluations(alone.outputs, steps)
    return outcome(partial(train, row, net, steps, evaluations.hook), alone) + evaluations.counts()


def outcome(run: Callable[[], TrainingRun], alone: TrainingRun) -> Counter[str]:
    """Train, and compare with the run alone."""
    try:
        return Counter(["training as alone" if run().is_as(alone) else "other numbers of a training"])
    except Exception as error:
        return Counter([f"training: {type(error).__name__}: {error}"[:200]])


def disturbed(row: Row, net: Net, steps: int) -> Counter[str]:
    """What came of a run beside a thread, and of one with a hook."""
    alone = train(row, net, steps, keep=True)
    return beside_a_thread(row, net, steps, alone) + within_a_hook(row, net, steps, alone)


def two_by_two(rows: Sequence[Row], nets: Sequence[Net], steps: int) -> list[TrainingRun | BaseException | None]:
    """Train the nets at the same time, each in a thread of its own."""
    found: list[TrainingRun | BaseException | None] = [None] * len(rows)
    start = threading.Barrier(len(rows))

    def work(number: int) -> None:
        torch.set_num_threads(1)
        start.wait()
        try:
            found[number] = train(rows[number], nets[number], steps)
        except BaseException as error:
            found[number] = error

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(rows))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def pair(names: tuple[str, str], nets: tuple[Net, Net], steps: int) -> Counter[str]:
    """What came of two runs side by side."""
    rows = [VARIANTS[name] for name in names]
    alone = [two_by_two([row], [net], steps)[0] for row, net in zip(rows, nets, strict=True)]
    together = two_by_two(rows, nets, steps)
    return sum(map(_compared, together, alone), Counter())


def _compared(run: TrainingRun | BaseException | None, alone: TrainingRun | BaseException | None) -> Counter[str]:
    assert isinstance(alone, TrainingRun), alone

    def done() -> TrainingRun:
        if isinstance(run, BaseException):
            raise run
        assert run is not None
        return run

    return outcome(done, alone)


def trials(nets: Sequence[str], variants: Sequence[str], steps: int) -> Iterator[evidence.Trial]:
    """What is to be tried."""
    for net in nets:
        for variant in variants:
            yield f"{net}, {variant}", steps, partial(disturbed, VARIANTS[variant], NETS[net], steps)
    estimating = [name for name in ESTIMATING if name in variants]
    for names in combinations_with_replacement(estimating, 2):
        both = NETS[nets[0]], NETS[nets[-1]]
        yield f"{names[0]} beside {names[1]}", steps, partial(pair, names, both, steps)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=NETS)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    evidence.add_option(parser)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    sys.setswitchinterval(1e-4)  # seconds: threads take turns far more often than they would
    warnings.simplefilter("ignore")
    asked_for = trials(asked.nets, asked.variants, asked.steps)
    return evidence.make(asked_for, asked.evidence, "python -m disturbances.threads", GOOD)


if __name__ == "__main__":
    raise SystemExit(main())
