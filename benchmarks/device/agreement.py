"""Every rule's gradients on the device and on the CPU, both beside the CPU's in double precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bpfree
from common.nets import Net
from device.kit import Cell, Kit

RULES: dict[str, bpfree.Rule] = {
    "BP": bpfree.BP(),
    "DFA": bpfree.DFA(),
    "DRTP": bpfree.DRTP(),
    "Shallow": bpfree.Shallow(),
    "GrAPE": bpfree.GrAPE(),
    "FDFA": bpfree.FDFA(),
    "LMS": bpfree.LMS(),
    "DKP": bpfree.DKP(),
    "FA": bpfree.FA(),
    "uSF": bpfree.SignSymmetry("uniform"),
    "KolenPollack": bpfree.KolenPollack(),
    "WeightMirror": bpfree.WeightMirror(),
    "PEPITA": bpfree.PEPITA(),
    "ForwardGradient weights": bpfree.ForwardGradient("weights", "rademacher"),
    "ForwardGradient activations": bpfree.ForwardGradient("activations", "rademacher"),
}
TAUGHT = 2
"""The passes from which feedback learns on the CPU before it is compared."""
ALLOWED = 10.0
"""A device may be as many times further from double precision than the CPU is."""

State = dict[str, Tensor]


def agreement(kit: Kit) -> Iterator[Cell]:
    """Every rule on every small network."""
    for net in kit.small:
        for name, rule in RULES.items():
            draws = isinstance(rule, bpfree.ForwardGradient) and kit.device.type != "cpu"
            impossible = "it draws its perturbations on the device, where other numbers come" if draws else ""
            row = {"axis": "agreement", "net": net.name, "subject": name, "reference": f"{name} on the CPU, float64"}
            yield Cell(row, _compared(kit, net, rule), impossible)


def _compared(kit: Kit, net: Net, rule: bpfree.Rule) -> Callable[[float], dict[str, Any]]:
    def measure(seconds: float) -> dict[str, Any]:
        cpu, state = torch.device("cpu"), _taught(net, rule)
        exact = _gradients(net, rule, state, cpu, torch.float64)
        there, here = (_gradients(net, rule, state, device, torch.float32) for device in (kit.device, cpu))
        distance, of_cpu = _distance(there, exact), _distance(here, exact)
        return {"distance": distance, "distance_of_cpu": of_cpu, "agrees": distance <= ALLOWED * of_cpu}

    return measure


def _taught(net: Net, rule: bpfree.Rule) -> State:
    """Return a rule's state on the CPU after some passes: feedback that begins at zero would compare nothing."""
    model, (x, y) = net.build(), net.data()
    attachment = bpfree.attach(model, rule, example_inputs=x)
    for _ in range(TAUGHT):
        _backward(model, attachment, x, y)
    for matrix in attachment.parameters():  # those that wait for an optimizer
        nn.init.normal_(matrix, std=0.1)
    return dict(attachment.state_dict())


def _gradients(net: Net, rule: bpfree.Rule, state: State, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return all gradients of one pass, on the CPU and in double precision."""
    model, (x, y) = net.build().to(device, dtype), net.data()
    x, y = x.to(device, dtype), y.to(device)
    attachment = bpfree.attach(model, rule, example_inputs=x)
    attachment.load_state_dict(state)
    with attachment.fixed():
        _backward(model, attachment, x, y)
    found = [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]
    return torch.cat([gradient.flatten().cpu().double() for gradient in found])


def _backward(model: nn.Module, attachment: bpfree.Attachment, x: Tensor, y: Tensor) -> None:
    model.zero_grad()
    attachment.targets(y)
    F.cross_entropy(model(x), y).backward()


def _distance(found: Tensor, exact: Tensor) -> float:
    """Return the relative distance of two vectors."""
    return float((found - exact).norm() / exact.norm())
