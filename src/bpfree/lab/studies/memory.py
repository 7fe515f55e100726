"""The memory of feedback matrices: one for each tap, or one for all (Launay et al. 2019, table 1)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

import bpfree
from bpfree.lab.settings.model import ModelSettings
from bpfree.lab.time_and_memory import held_bytes

_BYTES = 4  # of a number in single precision


def feedback_memory(
    model: str,
    shape: Sequence[int],
    classes: int,
    init_args: Mapping[str, Any] | None = None,
    taps: Sequence[str] | None = None,
    allocated_classes: int = 10,
) -> dict[str, float]:
    """Compute the bytes of DFA's feedback for a network, and compare them with the bytes that are allocated.

    With N taps of l_i numbers and an error of e numbers, one matrix per tap needs e sum(l_i) numbers, and a shared
    matrix e max(l_i). The l_i come from a forward pass of the model without data. The allocated bytes are measured on
    a real model with fewer classes, because few machines can hold the matrices for 1,000 classes of VGG-16: all
    numbers are proportional to e.

    Args:
        model: A model of the lab by name, or any by import path.
        shape: The shape of one input.
        classes: e.
        init_args: The model's arguments.
        taps: Names or patterns of the taps; None for those that the model suggests.
        allocated_classes: e of the model whose feedback is allocated.

    Returns:
        ``naive_megabytes`` and ``shared_megabytes`` (10^6 bytes), ``ratio`` of the two, ``naive_allocated`` and
        ``shared_allocated``: bytes given out by the allocator relative to those computed for as many classes.
    """
    settings = ModelSettings(model, dict(init_args or {}))
    places = list(taps) if taps else settings.suggestion("taps")
    widths = tap_widths(settings, shape, places)
    computed = {"naive": _BYTES * sum(widths), "shared": _BYTES * max(widths)}  # a number of the error
    result = {f"{name}_megabytes": size * classes / 1e6 for name, size in computed.items()}
    result["ratio"] = computed["naive"] / computed["shared"]
    for name, size in computed.items():
        allocated = allocated_bytes(settings, shape, allocated_classes, places, shared=name == "shared")
        result[f"{name}_allocated"] = allocated / (size * allocated_classes)
    return result


def tap_widths(settings: ModelSettings, shape: Sequence[int], taps: Sequence[str] | None) -> list[int]:
    """Return l_i of every tap of a model, in forward order, without the memory for weights or activations."""
    with torch.device("meta"):
        model = settings.build(shape, 1)
        seen: dict[str, int] = {}
        attachment = bpfree.attach(model, bpfree.BP(), taps=taps)
        for name, module in attachment.taps.items():
            module.register_forward_hook(
                lambda module, args, output, name=name: seen.update({name: math.prod(output.shape[1:])})
            )
        model(torch.empty(1, *shape))
    return list(seen.values())


def allocated_bytes(
    settings: ModelSettings, shape: Sequence[int], classes: int, taps: Sequence[str] | None, *, shared: bool
) -> int:
    """Return the bytes that torch's allocator gives out for DFA's feedback on a real model, and keeps in use."""
    model, x = settings.build(shape, classes), torch.zeros(1, *shape)
    rule = bpfree.DFA(feedback=bpfree.Feedback(shared=shared))
    return held_bytes(lambda: bpfree.attach(model, rule, taps=taps, example_inputs=x))
