"""What one training step costs relative to backpropagation: in each precision, eager, compiled and as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

import bpfree
from common.nets import Net
from common.subjects import Step, Subject
from device.kit import Cell, Kit
from device.timing import timed_within

SUBJECTS = {
    "DFA": Subject(bpfree.DFA()),
    "FDFA": Subject(bpfree.FDFA()),
    "FDFA, rows=.125": Subject(bpfree.FDFA(rows=0.125)),
    "FDFA, alternate=2": Subject(bpfree.FDFA(), alternate=2),
    "FA": Subject(bpfree.FA()),
}
BP = Subject(bpfree.BP())
FLOAT32, TF32, BF16 = "", "TF32 ", "bf16 "
"""The precisions, as they stand in a subject's name."""
EAGER, COMPILED, CAPTURED = "", "compiled ", "CUDA graph "
"""The ways to run a step, likewise."""


def eager(kit: Kit) -> Iterator[Cell]:
    """Every network in every precision."""
    for precision in (FLOAT32, BF16, TF32):
        for net in kit.nets:
            yield from _cells(kit, net, precision, EAGER)


def compiled(kit: Kit) -> Iterator[Cell]:
    """Some networks, compiled."""
    for net in kit.compiled:
        for precision in (FLOAT32, BF16):
            yield from _cells(kit, net, precision, COMPILED)


def captured(kit: Kit) -> Iterator[Cell]:
    """Every network as a CUDA graph of a whole step."""
    for precision in (FLOAT32, BF16):
        for net in kit.nets:
            yield from _cells(kit, net, precision, CAPTURED)


def _cells(kit: Kit, net: Net, precision: str, way: str) -> Iterator[Cell]:
    """Backpropagation beside the same in float32 and eager, and every rule beside backpropagation of its own kind."""
    kind = _Kind(kit, net, precision, way)
    impossible = ""
    if not kit.is_cuda and precision == TF32:
        impossible = "TF32 is a precision of CUDA devices"
    if not kit.is_cuda and way == CAPTURED:
        impossible = "CUDA graphs need a CUDA device"

    def cell(name: str, reference: str, measure: Callable[[float], dict[str, Any]]) -> Cell:
        return Cell({"axis": "step", "net": net.name, "subject": name, "reference": reference}, measure, impossible)

    beside = f"{way}{precision}BP"
    if beside != "BP":
        yield cell(beside, "BP", kind.beside_plain)
    for name, subject in SUBJECTS.items():
        yield cell(f"{way}{precision}{name}", beside, _measure(kind, subject))


def _measure(kind: _Kind, subject: Subject) -> Callable[[float], dict[str, Any]]:
    return lambda seconds: kind.beside_same(subject, seconds)


@dataclass
class _Kind:
    """Steps on one network, in one precision and way; the reference is made once."""

    kit: Kit
    net: Net
    precision: str
    way: str
    reference: tuple[Step, Callable[[], object]] | None = None

    def beside_plain(self, seconds: float) -> dict[str, Any]:
        """Time backpropagation of this kind beside eager backpropagation in float32."""
        plain = BP.on(self.net, self.kit.device)
        step, run = self._own_reference()

        def own() -> object:
            with _precision(self.precision):
                return run()

        return {"time": timed_within(self.kit, own, plain, seconds), "peak_bytes": step.peak_bytes()}

    def beside_same(self, subject: Subject, seconds: float) -> dict[str, Any]:
        """Time a rule beside backpropagation of this kind."""
        _, beside = self._own_reference()
        with _precision(self.precision):
            step, run = self._made(subject)

            def reference() -> None:
                for _ in range(step.period):
                    beside()

            time = timed_within(self.kit, run, reference, seconds)
        return {"time": time, "peak_bytes": step.peak_bytes()}

    def _own_reference(self) -> tuple[Step, Callable[[], object]]:
        if self.reference is None:
            if self.way == COMPILED:
                torch._dynamo.reset()  # it stops compiling where one function has been compiled often
            with _precision(self.precision):
                self.reference = self._made(BP)
        return self.reference

    def _made(self, subject: Subject) -> tuple[Step, Callable[[], object]]:
        """Return a step, and what runs it the way it is to be run."""
        subject = replace(subject, bf16=self.precision == BF16)
        if self.way == COMPILED:
            subject = replace(subject, compiled=True, backend=self.kit.backend)
        step = subject.on(self.net, self.kit.device)
        return step, capture(step) if self.way == CAPTURED else step


def capture(step: Step) -> Callable[[], object]:
    """Return the replay of a CUDA graph of a step, captured as torch's documentation has it."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


@contextmanager
def _precision(name: str) -> Generator[None]:
    """Within this context products of float32 tensors have this precision."""
    before, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("high" if name == TF32 else "highest")
        torch.backends.cudnn.allow_tf32 = name == TF32
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = convolutions
