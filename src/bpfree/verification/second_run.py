"""Check that a second run of the model gives the same numbers as the first, and changes no state."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bpfree.errors import SecondRunError
from bpfree.forward_mode.own_pass import OwnPass
from bpfree.plan import Plan
from bpfree.rerun.arguments import Call
from bpfree.rerun.fingerprint import Fingerprint
from bpfree.rerun.snapshot import RunSnapshot
from bpfree.rerun.stop import StopForward
from bpfree.verification.finding import Finding

_CHECK = "second run"
_SOURCES = (
    "A second run begins with the state that the first one found: random numbers of torch, numpy and Python, buffers, "
    "and what modules, hooks and arguments keep in attributes, lists, dictionaries and objects. Iterators, files, "
    "clocks, caches of functions and the state of extensions cannot be put back: keep in an attribute what it reads "
    "from there, or choose a rule and a way that run the model once (bpfree.DFA, bpfree.DKP without streaming=True)."
)


def check_second_run(plan: Plan, call: Call) -> list[Finding]:
    """Run the model twice from the state that it has now, without a graph, and compare the outputs of its modules.

    The model, its hooks and the random state are left as they are. No rule may act meanwhile.

    Args:
        plan: The model, its taps and its error's place.
        call: The model's arguments.

    Returns:
        The first module whose output differs, if one does, and the state that could not be put back.
    """
    snapshot = RunSnapshot.now(plan, call)
    kept = snapshot.model.now()
    try:
        runs = [_outputs(plan, call, snapshot) for _ in range(2)]
    except SecondRunError as told:
        return [Finding(_CHECK, plan.error_name or "(model)", str(told), "")]
    names = {module: name for name, module in plan.model.named_modules()}
    found = _compare([[(names.get(module, "?"), output) for module, output in run] for run in runs], set(plan.taps))
    return found + [_not_put_back(name) for name in kept.changed()]


def _outputs(plan: Plan, call: Call, snapshot: RunSnapshot) -> list[tuple[nn.Module, Fingerprint]]:
    """Return fingerprints of the modules' outputs, in the order in which they return, up to the error's place."""
    args, kwargs = call
    seen: list[tuple[nn.Module, Fingerprint]] = []
    keep = partial(_keep, seen, plan.error_module)
    parts = [module for module in plan.modules if module is not plan.model]
    with (
        snapshot.restored(plan.model),
        torch.no_grad(),
        OwnPass(plan.model, plan.state, called=True) as own,
        suppress(StopForward),
        own.hooked(dict.fromkeys(parts, keep)),
    ):
        keep(plan.model, args, plan.model(*args, **kwargs))
    return seen


def _keep(seen: list[tuple[nn.Module, Fingerprint]], last: nn.Module, module: nn.Module, _: Any, output: Any) -> None:
    # In a transform of torch.func numbers have no values: the module behind it is compared.
    comparable = not torch._C._are_functorch_transforms_active()
    if comparable and isinstance(output, Tensor) and output.is_floating_point():
        seen.append((module, Fingerprint.of(output)))
    if module is last:
        raise StopForward


def _compare(runs: Sequence[Sequence[tuple[str, Fingerprint]]], taps: set[str]) -> list[Finding]:
    first, second = runs
    for (name, before), (again, now) in zip(first, second, strict=False):
        where = name or "(model)"
        if name != again:
            return [Finding(_CHECK, where, f"the second run went through {again!r} instead.", _SOURCES)]
        if before.differs_from(now):
            what = "the tap's output" if name in taps else "its output"
            apart = f"apart by {before.distance(now):.1e} of the largest number, above {before.tolerance:.1e}"
            return [Finding(_CHECK, where, f"{what} differs between two runs of the model: {apart}.", _SOURCES)]
    if len(first) != len(second):
        longer = max(first, second, key=len)
        return [Finding(_CHECK, longer[min(map(len, runs))][0], "only one of two runs went through it.", _SOURCES)]
    return []


def _not_put_back(name: str) -> Finding:
    remedy = "Keep what moves in plain attributes or buffers, or leave the model's own way of putting it back out."
    return Finding(_CHECK, name, "what the model keeps there was not put back after a second run.", remedy)
