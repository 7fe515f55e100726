"""The laws: each needs no knowledge of the rule, and raises AssertionError where it does not hold."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import bpfree
from fuzz.build import doubles
from fuzz.descriptions import Extra, Model, Noise, Norm, Part, State, walk
from fuzz.passes import (
    Learner,
    Told,
    assert_gradients,
    assert_left,
    assert_outputs,
    learner,
    left,
    note_attached,
    plainly,
    tensors,
    twin,
)
from fuzz.variants import EXACT, VARIANTS, Variant

Check = Callable[[Model, Variant, Told], None]


@dataclass(frozen=True)
class Law:
    """What must hold for a model under a rule.

    Attributes:
        name: Its name.
        check: Raises AssertionError where it does not hold.
        variants: The rules it is for.
        needs: Which models it says something about.
        every: In CI it is tried on every so manyth model: some laws take longer than others.
    """

    name: str
    check: Check
    variants: Mapping[str, Variant]
    needs: Callable[[Model], bool] = lambda model: True
    every: int = 1


def seen_by(variant: Variant, seen: dict[str, Any]) -> dict[str, Any]:
    """What a pass left, without the counts of backward hooks where a rule runs nothing backward."""
    silent = isinstance(variant.rule, bpfree.Shallow | bpfree.PEPITA) or getattr(variant.rule, "of", "") == "weights"
    return {name: value for name, value in seen.items() if not (silent and name.endswith(".seen"))}


# -- 1: outputs --------------------------------------------------------------------------------------------------------


def leave_outputs(model: Model, variant: Variant, told: Told) -> None:
    """Outputs, buffers, attributes and random numbers are those of a twin without the rule, pass after pass."""
    ours = learner(model, variant)
    for number, expected in enumerate(plainly(model)):
        found = ours.step(number)
        assert_outputs(found.outputs, expected.outputs)
        assert_left(seen_by(variant, found.left), seen_by(variant, expected.left))


# -- 2: limits that are backpropagation --------------------------------------------------------------------------------


def reach_backpropagation(model: Model, variant: Variant, told: Told) -> None:
    """Every parameter gets the gradient of a twin without the rule, and attributes are left as it leaves them."""
    if variant.transported:
        variant = replace(variant, rule=bpfree.DFA(feedback=Transport(model)))
    ours = learner(model, variant)
    for number, expected in enumerate(plainly(model)):
        if isinstance(getattr(variant.rule, "feedback", None), Transport):
            variant.rule.feedback.number = number
        found = ours.step(number)
        assert_gradients(found.gradients, expected.gradients)
        assert_left(found.left, expected.left)


class Transport:
    """A projector whose signals are those of backpropagation, found by a twin that no rule was put on."""

    def __init__(self, model: Model) -> None:
        theirs = twin(model)
        probe = learner(model, VARIANTS["BP"])  # only to learn which modules are tapped
        self.number = 0
        self._passes: list[dict[str, Tensor]] = []
        names = list(probe.attachment.taps) if probe.attachment is not None else []
        for number in range(2):
            self._passes.append(_signals(theirs, names, number))

    def __call__(self, error: Tensor, sites: Sequence[bpfree.Site]) -> list[Tensor | None]:
        known = self._passes[self.number]
        return [known[site.name].reshape(-1, site.width) if site.name in known else None for site in sites]


def _signals(theirs: Learner, names: Sequence[str], number: int, *, prepend: bool = False) -> dict[str, Tensor]:
    """dL/dh for every call of every module of ``names``; ``prepend`` looks before other hooks do."""
    outputs: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}
    calls: dict[str, int] = {}

    def watch(name: str) -> Any:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            if torch._C._current_graph_task_id() != -1:
                return
            calls[name] = calls.get(name, 0) + 1
            site = name if calls[name] == 1 else f"{name}#{calls[name]}"
            # Of several tensors the first is tapped.
            output = next((leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)), None)
            if output is not None and output.requires_grad:
                outputs[site] = output
                output.register_hook(lambda gradient: gradients.__setitem__(site, _copy_of(gradient, output)))

        return keep

    handles = [theirs.net.get_submodule(name).register_forward_hook(watch(name), prepend=prepend) for name in names]
    theirs.step(number)
    for handle in handles:
        handle.remove()
    return gradients


def _copy_of(gradient: Tensor | None, output: Tensor) -> Tensor:
    return torch.zeros_like(output) if gradient is None else gradient.clone()


def is_taught_by_its_error(model: Model) -> bool:
    """Whether the whole loss is of one tensor: what else there is, no signal can carry."""
    kept = any(isinstance(part, Extra) for part in walk(model))
    return not kept and model.output != "two"


# -- 3: other ways of the same pass ------------------------------------------------------------------------------------


def agree(model: Model, variant: Variant, other: Variant) -> None:
    """Two ways of attaching one rule give the same gradients and leave the same."""
    plain, ours = learner(model, variant), learner(model, other)
    for number in range(2):
        expected, found = plain.step(number), ours.step(number)
        assert_outputs(found.outputs, expected.outputs)
        assert_gradients(found.gradients, expected.gradients)
        assert_left(found.left, expected.left)


def stream(model: Model, variant: Variant, told: Told) -> None:
    """streaming=True changes no number."""
    agree(model, variant, variant.with_options(streaming=True))


def run_in_threads(model: Model, variant: Variant, told: Told) -> None:
    """threads=2 changes no number."""
    agree(model, variant, variant.with_options(threads=2))


# -- 4: detaching ------------------------------------------------------------------------------------------------------


class _MidwayError(Exception):
    """An error in the middle of a forward pass, which is not the library's."""


def detach(model: Model, variant: Variant, told: Told) -> None:
    """After detach(), also behind an error in the middle of a pass, the model is one that never had a rule."""
    theirs = twin(model)
    ours = learner(model, variant)
    keys = list(ours.net.state_dict())
    assert keys == list(theirs.net.state_dict()), "state_dict: other keys while attached"
    # What a broken pass has moved on its way is nobody's promise: there it breaks before anything moved.
    place = "parts" if has_moving_state(model) else "head"
    _break_a_pass(ours, place)
    _break_a_pass(theirs, place)
    try:
        ours.step(0)
    finally:
        assert ours.attachment is not None
        ours.attachment.detach()
        assert_restored(ours, theirs)
    theirs.step(0)
    ours.attachment = None
    found, expected = ours.step(1), theirs.step(1)
    assert_outputs(found.outputs, expected.outputs)
    assert_gradients(found.gradients, expected.gradients, "after detach, ")
    assert_left(seen_by(variant, found.left), seen_by(variant, expected.left), "after detach, ")


def _break_a_pass(ours: Learner, place: str) -> None:
    """Let the module ``place`` raise once."""

    def explode(module: nn.Module, args: Any) -> None:
        raise _MidwayError

    handle = ours.net.get_submodule(place).register_forward_pre_hook(explode)
    try:
        ours.forward(0)
    except _MidwayError:
        return
    finally:
        handle.remove()
    raise AssertionError("an error in the middle of the model did not reach its caller")


def assert_restored(ours: Learner, theirs: Learner) -> None:
    """No hook, attribute or key of the rule is on the model."""
    for (name, module), (_, other) in zip(ours.net.named_modules(), theirs.net.named_modules(), strict=True):
        assert vars(module).keys() == vars(other).keys(), f"detach: attributes of {name!r} changed"
        for key, value in vars(module).items():
            if key.endswith("_hooks"):
                before = len(vars(other)[key])
                assert len(value) == before, f"detach: {len(value)} {key} on {name!r}, {before} before"
    assert list(ours.net.state_dict()) == list(theirs.net.state_dict()), "detach: other state_dict keys"


# -- 5: what is not taught is named ------------------------------------------------------------------------------------


def name_untaught(model: Model, variant: Variant, told: Told) -> None:
    """A parameter that backpropagation teaches has a gradient under the rule, or is named."""
    silent = _silently_untaught(model, variant, told, 0)
    for draw in (1, 2):
        # What no signal reaches has no gradient whatever the weights are. Under signs alone a sum may well be zero.
        silent = silent and [name for name in _silently_untaught(model, variant, told, draw) if name in silent]
    assert not silent, f"untaught: no gradient and not a word: {', '.join(silent)}"


def _silently_untaught(model: Model, variant: Variant, told: Told, draw: int) -> list[str]:
    ours = learner(model, variant, draw)
    # Feedback that begins at zero has numbers behind the first pass, unless dropout leaves nothing: then try others.
    for number in range(1 + 4 * draw):
        ours.step(number)
    expected = plainly(model, draw)[1].gradients
    largest = max([float(g.abs().max()) for g in expected.values() if g is not None and g.numel()] or [0.0])
    found = ours.step(1).gradients
    names = [
        name
        for name, gradient in expected.items()
        if gradient is not None and gradient.numel() and float(gradient.abs().max()) > 1e-9 * largest
    ]
    untaught = [name for name in names if _is_zero(found[name])]
    if not untaught:
        return []
    assert ours.attachment is not None
    remarks = _remarks(ours.attachment, told)
    return [name for name in untaught if not _is_named(name, remarks)]


def _is_zero(gradient: Tensor | None) -> bool:
    return gradient is None or not bool(gradient.any())


def _remarks(attachment: bpfree.Attachment, told: Told) -> list[str]:
    """The lines of the table that say what is not taught, and what was warned of."""
    lines = str(attachment).splitlines()
    return [line for line in lines if re.search(r"\b([Nn]o|not|[Nn]othing|[Uu]ntaught|none)\b", line)] + told.messages


def _is_named(name: str, remarks: Sequence[str]) -> bool:
    if name.startswith("outside."):
        return any("argument" in line for line in remarks)
    owner = name.rpartition(".")[0]
    # A layer, one that holds it, or the parameter itself.
    while owner:
        if any(re.search(rf"(?<![\w.]){re.escape(owner)}(?![\w])(?!\.\d)", line) for line in remarks):
            return True
        owner = owner.rpartition(".")[0]
        if owner.count(".") < 1:
            break
    return False


# -- 6, 7, 8: passes do not disturb each other -------------------------------------------------------------------------


def accumulate(model: Model, variant: Variant, told: Told) -> None:
    """The gradients of two passes add up."""
    apart, together = learner(model, variant), learner(model, variant)
    first, second = apart.step(0).gradients, apart.step(1).gradients
    together.step(0)
    found = together.step(1, keep=True).gradients
    assert_gradients(found, {name: _add(first[name], second[name]) for name in first}, "accumulated, ")


def _add(one: Tensor | None, two: Tensor | None) -> Tensor | None:
    if one is None or two is None:
        return two if one is None else one
    return one + two


def evaluate(model: Model, variant: Variant, told: Told) -> None:
    """An evaluation between two passes gives the model's own outputs and changes nothing."""
    ours, control, theirs = learner(model, variant), learner(model, variant), twin(model)
    for one in (ours, control, theirs):
        one.step(0)
    before = left(ours.net)
    for one in (ours, theirs):
        one.net.eval()
    with torch.no_grad():
        found, expected = tensors(ours.forward(1)[0]), tensors(theirs.forward(1)[0])
    ours.net.train()
    assert_outputs(found, expected)
    after = left(ours.net)
    for name in [name for name in after if "random numbers" in name or ".penalty" in name]:
        del after[name], before[name]
    assert_left(after, before, "evaluation, ")
    assert_gradients(ours.step(1).gradients, control.step(1).gradients, "after an evaluation, ")


def copies(model: Model, variant: Variant, told: Told) -> None:
    """A copy of model and attachment, made before or behind the first pass, trains as they do."""
    _compare_copies(copy.deepcopy, model, variant)


def pickles(model: Model, variant: Variant, told: Told) -> None:
    """Model and attachment, pickled before or behind the first pass, train as they do."""
    _compare_copies(lambda held: pickle.loads(pickle.dumps(held)), model, variant)


def _compare_copies(make_copy: Callable[[Any], Any], model: Model, variant: Variant) -> None:
    ours, theirs = learner(model, variant), twin(model)
    for number in range(2):
        if not _can_be_copied(make_copy, theirs):
            return
        subject, attachment = make_copy((ours.subject, ours.attachment))
        note_attached(attachment)
        _compare(ours, Learner(subject, attachment, ours.numbered), number)
        theirs.step(number)


def _can_be_copied(make_copy: Callable[[Any], Any], theirs: Learner) -> bool:
    """Whether the model itself can be: not where it keeps tensors with a graph, or functions without a name."""
    try:
        make_copy(theirs.subject)
    except (RuntimeError, AttributeError, pickle.PicklingError):
        return False
    return True


def _compare(ours: Learner, copied: Learner, number: int) -> None:
    expected, found = ours.step(number), copied.step(number)
    assert_outputs(found.outputs, expected.outputs)
    assert_gradients(found.gradients, expected.gradients, "of a copy, ")
    assert_left(found.left, expected.left, "of a copy, ")


def take_losses_apart(model: Model, variant: Variant, told: Told) -> None:
    """Two losses give the same gradients whether they are added up or sent back one after another."""
    ours, together = learner(model, variant), learner(model, variant)
    for one in (ours, together):
        one.step(0)  # feedback that begins at zero has numbers behind it
    expected = together.step(1).gradients
    assert_gradients(ours.step_apart(1).gradients, expected, "losses apart, ")


# -- other ways to call it, and modules that are replaced ------------------------------------------------------------

CANONICAL = {
    "keyword": "positional",
    "reversed": "ordered",
    "nested": "ordered",
    "forward": "positional",
    "method": "positional",
}
"""What is the same, said in the plainest way."""


def call_it_otherwise(model: Model, variant: Variant, told: Told) -> None:
    """However the same arguments reach the model, it learns the same."""
    plain, ours = learner(replace(model, call=CANONICAL[model.call]), variant), learner(model, variant)
    for number in range(2):
        assert_gradients(ours.step(number).gradients, plain.step(number).gradients)


def replace_modules(model: Model, variant: Variant, told: Told) -> None:
    """A module that is replaced by one with the same weights behind the first pass learns as the one before."""
    ours, control, fresh = learner(model, variant), learner(model, variant), twin(model)
    for one in (ours, control):
        one.step(0)
    fresh.net.load_state_dict(ours.net.state_dict())
    ours.subject.net.parts = fresh.subject.net.parts
    assert_gradients(ours.step(1).gradients, control.step(1).gradients, "of a replaced module, ")


# -- 9: rows -----------------------------------------------------------------------------------------------------------


def keep_rows_apart(model: Model, variant: Variant, told: Told) -> None:
    """Another target for one sample changes the signals of that sample alone."""
    theirs = twin(model)
    names = [name for name, module in theirs.net.named_modules() if not list(module.children()) and name]
    masks = _sample_masks(model, names)
    if masks is None or not _is_row_wise(_two_targets(lambda: twin(model), names), masks):
        return
    ours = _two_targets(lambda: learner(model, variant), names)
    wrong = _leaks(ours, masks)
    assert not wrong, f"rows: another target for one sample changed the signals of others at {', '.join(wrong)}"


def _two_targets(make_one: Callable[[], Learner], names: Sequence[str]) -> list[dict[str, Tensor]]:
    """The gradients at the outputs of modules, before and after the first sample's target was changed."""
    found = []
    for change in (False, True):
        one = make_one()
        classes = one.subject.batches[0].classes
        if change:
            place = _first_sample(one.subject.description, classes)
            place.copy_((place + 1) % 3)
        one.step(1)  # in its first pass an attachment looks at itself
        # Before the rule's hooks, which cut.
        found.append(_signals(one, names, 0, prepend=True))
    return found


def _first_sample(model: Model, classes: Tensor) -> Tensor:
    return classes[:, 0] if model.input == "time" and classes.dim() == 2 else classes[0]


def _sample_masks(model: Model, names: Sequence[str]) -> dict[str, Tensor] | None:
    """For every call of every module, where its output depends on the first sample's input."""
    found = []
    for change in (False, True):
        one = twin(model)
        batch = one.subject.batches[0]
        x = batch.args[0] if batch.args else batch.kwargs["x"]
        x = x["x"] if isinstance(x, dict) else x
        if not x.is_floating_point():
            return None
        if change:
            (x[:, 0] if model.input == "time" else x[0]).add_(0.5)
        found.append(_outputs(one, names))
    before, after = found
    return {name: before[name] != after[name] for name in before if after[name].shape == before[name].shape}


def _outputs(one: Learner, names: Sequence[str]) -> dict[str, Tensor]:
    outputs: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            calls = sum(known == name or known.startswith(f"{name}#") for known in outputs)
            if isinstance(output, Tensor):
                outputs[name if not calls else f"{name}#{calls + 1}"] = output.detach().clone()

        return keep

    handles = [one.net.get_submodule(name).register_forward_hook(watch(name), prepend=True) for name in names]
    with torch.no_grad():
        one.forward(0)
    for handle in handles:
        handle.remove()
    return outputs


def _is_row_wise(signals: list[dict[str, Tensor]], masks: Mapping[str, Tensor]) -> bool:
    return not _leaks(signals, masks)


def _leaks(signals: list[dict[str, Tensor]], masks: Mapping[str, Tensor]) -> list[str]:
    before, after = signals
    wrong = []
    for name in before:
        if name in after and name in masks and masks[name].shape == before[name].shape:
            others = ~masks[name]
            change = ((before[name] - after[name]) * others).abs()
            # Entries that do not depend on the sample by chance (a ReLU at zero) get its signal all the same.
            rows = others.flatten(1).all(1) if others.dim() > 1 else others
            change = change[rows] if rows.any() else change[:0]
            if change.numel() and float(change.max()) > 1e-9 * float(before[name].abs().max() + 1e-30):
                wrong.append(name)
    return wrong


def is_separable(model: Model) -> bool:
    """Whether samples lie along the first axis, and the loss is a sum over them whose weights no target changes."""
    return model.loss != "masked" and model.input in ("flat", "tokens", "image")


# -- 10: the library's own report --------------------------------------------------------------------------------------


def verify(model: Model, variant: Variant, told: Told) -> None:
    """bpfree.verify() finds nothing wrong that the model's own training passes do not tell, and leaves no trace."""
    ours = learner(model, variant)
    args, kwargs = ours.subject.batches[0].given()
    assert ours.attachment is not None
    ours.attachment.targets(ours.subject.batches[0].classes)
    before = left(ours.net)
    with doubles():
        report = bpfree.verify(ours.attachment, *args, **kwargs)
    assert_left(left(ours.net), before, "verify, ")
    wrong = [finding for finding in report.findings if finding.wrong]
    if wrong:
        ours.step(0)
        raise AssertionError(f"found by verify alone: {wrong[0]}")


DIRECT = {name: variant for name, variant in VARIANTS.items() if variant.is_direct and variant.is_plain}
STREAMS = {name: variant for name, variant in DIRECT.items() if getattr(variant.rule, "of", "") != "weights"}
THREADED = {name: variant for name, variant in STREAMS.items() if "within" not in variant.options}


LINEAR = {
    name: variant
    for name, variant in VARIANTS.items()
    if not isinstance(variant.rule, bpfree.PEPITA | bpfree.DRTP) and getattr(variant.rule, "error", "exact") == "exact"
}
"""Rules whose gradients follow the loss."""


def has_hidden_state(model: Model) -> bool:
    """Whether something stays on the model that is no buffer."""
    return any(_is_hidden(part) for part in walk(model))


def _is_hidden(part: Part) -> bool:
    kind = getattr(part, "kind", "")
    return (
        isinstance(part, State)
        or kind in ("count", "backward", "backward_scaled")
        or (isinstance(part, Noise) and kind == "generator")
    )


def has_moving_state(model: Model) -> bool:
    """Whether a forward pass moves anything on the model."""
    norms = any(isinstance(part, Norm) or getattr(part, "kind", "") == "spectral" for part in walk(model))
    return norms or has_hidden_state(model)


LAWS = {
    law.name: law
    for law in (
        Law("outputs", leave_outputs, VARIANTS),
        Law("backpropagation", reach_backpropagation, {n: v for n, v in EXACT.items() if not v.transported}, every=3),
        Law(
            "transport",
            reach_backpropagation,
            {n: v for n, v in EXACT.items() if v.transported},
            is_taught_by_its_error,
            every=3,
        ),
        Law("streaming", stream, STREAMS, every=3),
        Law("threads", run_in_threads, THREADED, every=4),
        Law("detach", detach, VARIANTS, every=3),
        Law("untaught", name_untaught, {n: v for n, v in VARIANTS.items() if n != "Shallow"}, every=3),
        Law("accumulation", accumulate, VARIANTS, every=4),
        Law("evaluation", evaluate, VARIANTS, lambda model: not has_hidden_state(model), every=4),
        Law("copies", copies, VARIANTS, every=4),
        Law("pickles", pickles, VARIANTS, every=6),
        Law("losses", take_losses_apart, LINEAR, lambda model: model.output == "two"),
        Law("calls", call_it_otherwise, VARIANTS, lambda model: model.call in CANONICAL),
        Law("replacing", replace_modules, VARIANTS, lambda model: not has_moving_state(model), every=3),
        Law("rows", keep_rows_apart, DIRECT, is_separable, every=4),
        Law("verify", verify, VARIANTS, every=4),
    )
}
"""All laws by name."""
