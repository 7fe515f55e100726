"""What a step takes in memory as networks get deeper, by the device's allocator: the stored graph and streaming."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import bpfree
from common.nets import MLP
from common.subjects import Subject
from device.kit import Cell, Kit

SUBJECTS = {
    "BP": Subject(bpfree.BP()),
    "DFA": Subject(bpfree.DFA()),
    "streaming DFA": Subject(bpfree.DFA(), streaming=True),
    "streaming FDFA": Subject(bpfree.FDFA(), streaming=True),
}


def memory(kit: Kit) -> Iterator[Cell]:
    """Every subject at every depth."""
    for net in kit.deep:
        for name, subject in SUBJECTS.items():
            yield Cell({"axis": "memory", "net": net.name, "subject": name}, _counted(kit, net, subject))


def _counted(kit: Kit, net: MLP, subject: Subject) -> Callable[[float], dict[str, Any]]:
    def measure(seconds: float) -> dict[str, Any]:
        step = subject.on(net, kit.device)
        step()  # what is made in a first step is no part of the others
        step()
        return {"peak_bytes": step.peak_bytes(), "activation_bytes": step.activation_bytes()}

    return measure
