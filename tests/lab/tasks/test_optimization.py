"""Optimizers, clipping, micro-batches and bfloat16: what the weights get in a step."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import bpfree
from bpfree.lab.errors import SettingsError
from bpfree.lab.options.training import CompareOptions, TrainOptions
from bpfree.lab.recipe.schema import SETTINGS
from bpfree.lab.running import runs
from bpfree.lab.running.runs import run
from bpfree.lab.settings import PRESETS, RuleSettings, RunSettings, rule_settings
from bpfree.lab.settings.model import ModelSettings
from bpfree.lab.tables.work import works
from bpfree.lab.tasks.learner import Learner
from bpfree.lab.tasks.optimization import MeanGradients, make_optimizer, micro_batches
from bpfree.lab.time_and_memory import peak_bytes
from support import tiny_lab, tiny_text

PLAIN = ModelSettings("MLP", {"hidden": [16, 16]}).describe()  # without dropout, every pass computes the same


def learner(label: str = "DFA", **changes: Any) -> Learner:
    return runs.learner(tiny_lab.settings(label, **({"model": PLAIN} | changes)), tiny_lab.splits())


def batch(rows: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    train = tiny_lab.splits().train
    return train.x[:rows], train.y[:rows]


def gradients(task: Learner, rows: int = 32) -> dict[str, torch.Tensor]:
    task.gradients(batch(rows))
    named = [*task.model.named_parameters(), *task.attachment.named_parameters()]
    return {name: weight.grad.clone() for name, weight in named if weight.grad is not None}


# -- optimizers --------------------------------------------------------------------------------------------------------


def moved(settings: RuleSettings, pulls: list[float]) -> list[float]:
    """A weight that begins at 0, after a step with each of these gradients."""
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = make_optimizer(settings, [weight])
    found = []
    for pull in pulls:
        weight.grad = torch.full((1,), pull, dtype=torch.float64)
        optimizer.step()
        found.append(float(weight.detach()))
    return found


PULLS = [1.0, -2.0, 0.5, 3.0, -1.0, 2.0, 1.5, 0.25]


@pytest.mark.parametrize(("beta2", "eps"), [(0.999, 1e-8), (0.98, 1e-9), (0.9, 0.5)])
def test_adam_keeps_as_much_of_the_mean_square_as_beta2_says(beta2: float, eps: float) -> None:
    settings = RuleSettings(rule=bpfree.BP(), lr=0.1, beta2=beta2, eps=eps)
    mean = square = weight = 0.0
    expected = []
    for step, pull in enumerate(PULLS, start=1):
        mean, square = 0.9 * mean + 0.1 * pull, beta2 * square + (1 - beta2) * pull**2
        weight -= 0.1 * (mean / (1 - 0.9**step)) / (math.sqrt(square / (1 - beta2**step)) + eps)
        expected.append(weight)
    assert moved(settings, PULLS) == pytest.approx(expected, rel=1e-9)


def test_radam_takes_steps_of_momentum_until_the_variance_is_known() -> None:
    """Algorithm 2 of Liu et al. 2020."""
    settings = RuleSettings(rule=bpfree.BP(), optimizer="RAdam", lr=0.1, beta2=0.98, eps=1e-12)
    mean = square = weight = 0.0
    longest = 2 / (1 - 0.98) - 1
    expected, rectified = [], []
    for step, pull in enumerate(PULLS, start=1):
        mean, square = 0.9 * mean + 0.1 * pull, 0.98 * square + 0.02 * pull**2
        length = longest - 2 * step * 0.98**step / (1 - 0.98**step)
        rectified.append(length > 5)
        adaptive = 1.0
        if length > 5:
            numerator = (length - 4) * (length - 2) * longest
            adaptive = math.sqrt(numerator / ((longest - 4) * (longest - 2) * length) * (1 - 0.98**step) / square)
        weight -= 0.1 * mean / (1 - 0.9**step) * adaptive
        expected.append(weight)
    assert rectified == [False] * 5 + [True] * 3
    assert moved(settings, PULLS) == pytest.approx(expected, rel=1e-6)


# -- clipping ----------------------------------------------------------------------------------------------------------


def norm(found: dict[str, torch.Tensor], names: set[str] | None = None) -> float:
    return math.sqrt(
        sum(float(g.double().square().sum()) for name, g in found.items() if names is None or name in names)
    )


@pytest.mark.parametrize("label", ["BP", "DFA", "FDFA", "PEPITA"])
def test_gradients_longer_than_the_largest_norm_are_scaled_to_it(label: str) -> None:
    free = gradients(learner(label))
    largest = norm(free) / 3
    clipped = gradients(learner(label, clip=largest))
    assert norm(clipped) == pytest.approx(largest, rel=1e-4)
    for name, gradient in free.items():
        torch.testing.assert_close(clipped[name], gradient / 3, rtol=1e-4, atol=1e-8)


def test_shorter_gradients_stay() -> None:
    free = gradients(learner())
    clipped = gradients(learner(clip=1.01 * norm(free)))
    assert all(torch.equal(clipped[name], gradient) for name, gradient in free.items())


def test_kolen_pollacks_b_is_clipped_as_its_w() -> None:
    free, weights = gradients(learner("KP")), {name for name, _ in learner("KP").model.named_parameters()}
    assert set(free) > weights
    largest = norm(free, weights) / 3
    clipped = gradients(learner("KP", clip=largest))
    assert norm(clipped, weights) == pytest.approx(largest, rel=1e-4)
    for name, gradient in free.items():
        torch.testing.assert_close(clipped[name], gradient / 3, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("way", ["rule", "within"])
def test_kolen_pollacks_b_decays_where_its_w_does(way: str) -> None:
    """Of two layers that have a B one decays. W and B have one gradient, so their difference shrinks by the decay."""
    kolen_pollack = bpfree.KolenPollack()
    rule = {"rule": kolen_pollack} if way == "rule" else {"rule": bpfree.DFA(), "window": 2, "within": kolen_pollack}
    settings = RuleSettings(**rule, optimizer="SGD", lr=0.5, momentum=0.0, weight_decay=0.1, decayed=["3"])
    task = learner(rule=settings)
    task.gradients(batch())
    feedback, weights = task.attachment.parts()[0].feedback, task.model.get_submodule

    def gaps() -> dict[str, torch.Tensor]:
        return {name: (weights(name).weight - feedback[name]).detach() for name in feedback}

    start = gaps()
    assert len(start) == 2
    task.optimizer().step()
    for name, gap in gaps().items():
        torch.testing.assert_close(gap, start[name] * (1 - 0.5 * 0.1 if name == "3" else 1))


@pytest.mark.parametrize("rule", [bpfree.DKP(), bpfree.LMS(stepped_by="optimizer")])
def test_feedback_that_an_optimizer_steps_is_not_clipped(rule: bpfree.Rule) -> None:
    given = {"rule": RuleSettings(rule=rule)}
    free, weights = gradients(learner(**given)), {name for name, _ in learner(**given).model.named_parameters()}
    clipped = gradients(learner(clip=norm(free, weights) / 3, **given))
    feedback = set(free) - weights
    assert feedback
    assert all(torch.equal(clipped[name], free[name]) for name in feedback)
    assert norm(clipped, weights) == pytest.approx(norm(free, weights) / 3, rel=1e-4)


@pytest.mark.parametrize("label", ["GrAPE", "FDFA", "LMS"])
def test_feedback_that_steps_by_itself_learns_the_same_under_clipping(label: str) -> None:
    states = []
    for clip in (None, 1e-3):
        task = learner(label, clip=clip)
        for _ in range(3):
            task.gradients(batch())
        states.append(task.attachment.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items() if torch.is_tensor(value))


# -- micro-batches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [32, 21, 3])  # whole, with a smaller last micro-batch, and with fewer of them
@pytest.mark.parametrize(
    "label", ["BP", "Shallow", "FA", "uSF", "frSF", "DFA", "sDFA", "ternary DFA", "DRTP", "KP", "PEPITA"]
)
def test_gradients_of_micro_batches_are_those_of_the_batch(label: str, rows: int) -> None:
    whole, cut = (gradients(learner(label, accumulate=parts), rows) for parts in (1, 4))
    assert whole.keys() == cut.keys()
    largest = max(float(gradient.abs().max()) for gradient in whole.values())
    for name, gradient in whole.items():
        torch.testing.assert_close(
            cut[name], gradient, rtol=1e-4, atol=2e-6 * largest, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("label", ["BP", "DFA"])
def test_so_they_are_in_a_language_model(label: str, tmp_path: Path) -> None:
    text = tiny_text.text(tmp_path)
    eight = text.train.batch(torch.arange(8))
    model = ModelSettings("CausalTransformer", tiny_text.SMALL | {"dropout": 0.0}).describe()
    found, peaks = [], []
    for parts in (1, 2, 8):
        task = runs.learner(tiny_text.settings(label, model=model, accumulate=parts), text)
        task.gradients(eight)
        found.append([weight.grad.clone() for weight in task.model.parameters()])
        peaks.append(peak_bytes(partial(task.gradients, eight), "cpu"))
    assert peaks[2] < peaks[1] < 0.75 * peaks[0]
    for cut in found[1:]:
        for one, other in zip(found[0], cut, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-7)


def test_clipping_sees_the_gradients_of_the_whole_batch() -> None:
    largest = norm(gradients(learner("BP"))) / 3
    whole, cut = (gradients(learner("BP", clip=largest, accumulate=parts)) for parts in (1, 4))
    for name, gradient in whole.items():
        torch.testing.assert_close(cut[name], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("rows", [[8, 8], [8, 3], [3, 8, 5], [1]])
def test_the_mean_of_gradients_weighs_each_row_alike(rows: list[int]) -> None:
    weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    values = torch.randn(sum(rows), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean = MeanGradients([weight, torch.nn.Parameter(torch.zeros(1))])  # the second gets no gradient
    for part in values.split(rows):
        mean.before(len(part))
        (part @ weight).mean().backward()
    mean.finish()
    torch.testing.assert_close(weight.grad, values.mean(0))


def test_micro_batches_are_equal_parts_in_order() -> None:
    x, y = torch.arange(10), torch.arange(10) + 100
    assert [len(part[1]) for part in micro_batches((x, y), 3)] == [4, 4, 2]
    assert [len(part[1]) for part in micro_batches((x, y), 5)] == [2] * 5
    assert [len(part[1]) for part in micro_batches((x[:2], y[:2]), 5)] == [1, 1]
    assert torch.equal(torch.cat([part[0] for part in micro_batches((x, y), 3)]), x)


def test_a_run_in_micro_batches_takes_the_steps_of_one_without(tmp_path: Path) -> None:
    """Eight steps an epoch, of which the last has 16 rows in place of 32."""
    whole, cut = (
        run(tiny_lab.settings("DFA", model=PLAIN, epochs=2, accumulate=parts), tiny_lab.splits(), tmp_path)
        for parts in (1, 4)
    )
    for one, other in zip(whole["epochs"], cut["epochs"], strict=True):
        assert other["step"] == one["step"]
        assert other["train_loss"] == pytest.approx(one["train_loss"], rel=1e-5)
        assert other["eval_loss"] == pytest.approx(one["eval_loss"], rel=1e-5)
    assert cut["settings"]["accumulate"] == 4
    assert "accumulate" not in whole["settings"]


# -- bfloat16 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["BP", "DFA", "FDFA", "GrAPE", "KP"])
def test_bf16_computes_products_in_bfloat16_and_keeps_weights_in_float32(label: str) -> None:
    seen = set[torch.dtype]()
    task = learner(label, precision="bf16")
    layer = next(module for module in task.model.modules() if isinstance(module, torch.nn.Linear))
    layer.register_forward_hook(lambda module, given, output: seen.add(output.dtype))
    found, exact = gradients(task), gradients(learner(label))
    assert seen == {torch.bfloat16}
    tensors = [
        *task.parameters(),
        *(value for value in task.attachment.state_dict().values() if torch.is_tensor(value)),
    ]
    assert not any(tensor.dtype == torch.bfloat16 for tensor in tensors)
    for name, gradient in exact.items():
        assert found[name].dtype == torch.float32
        assert float((found[name] - gradient).norm()) < 0.05 * float(gradient.norm()), name


def test_a_run_in_bf16_ends_near_that_in_float32(tmp_path: Path) -> None:
    text = tiny_text.text(tmp_path / "text")
    exact, rounded = (run(tiny_text.settings(precision=name), text, tmp_path) for name in ("float32", "bf16"))
    assert exact["perplexity"] != rounded["perplexity"] == pytest.approx(exact["perplexity"], rel=0.05)
    assert rounded["settings"]["precision"] == "bf16"


# -- refused by name ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: tiny_lab.settings(clip=0.0), r"--clip 0\.0 must be a positive number"),
        (lambda: tiny_lab.settings(clip=-1.0), r"--clip -1\.0 .*Leave it out"),
        (lambda: tiny_lab.settings(clip=math.inf), "--clip inf"),
        (lambda: tiny_lab.settings(clip=math.nan), "--clip nan"),
        (lambda: tiny_lab.settings(accumulate=0), "--accumulate 0 must be at least 1"),
        (lambda: tiny_lab.settings(accumulate=3), "--accumulate 3: a batch of 32 .*divisor of --batch-size"),
        (lambda: tiny_lab.settings(accumulate=64), "--accumulate 64"),
        (lambda: tiny_lab.settings("PEPITA", precision="bf16"), "--precision bf16: PEPITA.*Take float32"),
        (lambda: RuleSettings(rule=bpfree.BP(), schedule="noam"), r"noam: say .*warmup 4000"),
        (lambda: RuleSettings(rule=bpfree.BP(), schedule="noam", warmup=-5), "noam: say"),
        (lambda: RuleSettings(rule=bpfree.BP(), warmup=100), "warmup 100: schedule cosine has none"),
        (lambda: RuleSettings(rule=bpfree.BP(), beta2=1.0), r"beta2 1\.0 must be"),
        (lambda: RuleSettings(rule=bpfree.BP(), beta2=math.nan), "beta2 nan must be"),
        (lambda: RuleSettings(rule=bpfree.BP(), eps=-1e-9), "eps -1e-09 must be"),
        (lambda: RuleSettings(rule=bpfree.BP(), optimizer="SGD", beta2=0.98), "beta2 and eps: SGD has none"),
        (lambda: TrainOptions(data="cora", accumulate=2).run("DFA", 0, details=False), "a graph cannot be cut"),
        (lambda: TrainOptions(data="cora", precision="bf16").run("DFA", 0, details=False), "--precision bf16: sums"),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        make()


@pytest.mark.parametrize("changes", [{}, {"data": "text", "text": replace(tiny_text.HOW, measured_on="test")}])
def test_learning_rates_are_not_chosen_by_a_test_set(changes: dict[str, Any]) -> None:
    options = CompareOptions(schedule="validation-plateau", **changes)
    with pytest.raises(SettingsError, match=r"validation-plateau .*test set, which must choose nothing"):
        options.run("DFA", 0, details=False)


@pytest.mark.parametrize("changes", [{"validation": 60}, {"data": "text"}])
def test_they_may_be_by_validation_data(changes: dict[str, Any]) -> None:
    settings = CompareOptions(schedule="validation-plateau", **changes).run("DFA", 0, details=False)
    assert settings.rule.schedule == "validation-plateau"


def test_a_run_on_a_test_set_is_refused_too(tmp_path: Path) -> None:
    settings = tiny_lab.settings(rule=replace(PRESETS["DFA"], schedule="validation-plateau"))
    with pytest.raises(SettingsError, match="must choose nothing"):
        run(settings, tiny_lab.splits(), tmp_path)
    assert not list(tmp_path.iterdir())


# -- in recipes and records --------------------------------------------------------------------------------------------


def test_recipes_take_them() -> None:
    names = {"optimizer", "beta2", "eps", "schedule", "warmup", "clip", "accumulate", "precision"}
    assert names <= set(SETTINGS)
    given = {"optimizer": "RAdam", "beta2": 0.98, "eps": 1e-9, "schedule": "noam", "warmup": 40}
    (work,) = works("a cell", {"data": "text", "clip": 0.5, "accumulate": 2, "precision": "bf16", **given}, 1)
    run_settings: RunSettings = work.settings  # type: ignore[union-attr]
    rule = run_settings.rule
    assert (rule.optimizer, rule.beta2, rule.eps, rule.schedule, rule.warmup) == tuple(given.values())
    assert run_settings.describe_step() == {"clip": 0.5, "accumulate": 2, "precision": "bf16"}


def test_what_differs_from_the_default_is_shown() -> None:
    usual = rule_settings("DFA").describe()
    assert {"beta2", "eps", "warmup"}.isdisjoint(usual)
    shown = replace(rule_settings("DFA"), beta2=0.98, eps=1e-9, schedule="noam", warmup=7).describe()
    assert {name: shown[name] for name in ("beta2", "eps", "warmup")} == {"beta2": 0.98, "eps": 1e-9, "warmup": 7}
    assert tiny_lab.settings().describe_step() == {}
