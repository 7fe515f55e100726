"""What fits into a stage, and what is said of what does not."""

from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import bpfree
from bpfree.axes.sites import ErrorRows
from bpfree.errors import AlreadyAttachedError, ErrorPlacementError, OptionError, StageError
from bpfree.pipeline import StageTimes, attach_stage, measure_stage
from bpfree.pipeline.agreement import Agreement, StageSurvey
from bpfree.pipeline.built import built_with, require_alike


def stage(module, index=0, count=2):
    """What attach_stage asks of a PipelineStage, without processes."""
    place = {"is_first": index == 0, "is_last": index == count - 1, "stage_index": index, "num_stages": count}
    return SimpleNamespace(submod=module, device=torch.device("cpu"), group=None, **place)


def layers(*parts):
    return nn.Sequential(*parts)


def settle(attachment, c=3, rows=4):
    Agreement(torch.Size((rows, c)), torch.float32, ErrorRows((rows,), (0,)), c, 8).settle(attachment)


@pytest.mark.parametrize(
    "rule",
    [
        bpfree.BP(),
        bpfree.FA(),
        bpfree.PEPITA(),
        bpfree.ForwardGradient("activations"),
        bpfree.ForwardGradient("weights"),
        bpfree.GrAPE(calibrate=2),
    ],
    ids=str,
)
def test_a_rule_that_needs_the_whole_model_is_refused(rule):
    with pytest.raises(OptionError, match=r"Pipelines take direct rules with feedback: bpfree.DFA\(\)"):
        attach_stage(stage(layers(nn.Linear(2, 8), nn.Tanh())), rule)


def test_layers_behind_the_last_tap_are_named():
    module = layers(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 8))
    attachment = attach_stage(stage(module), bpfree.DFA())
    settle(attachment)
    with pytest.raises(
        StageError, match="stage 0 of 2 does not end in a tap: no signal would reach its layers 2 through"
    ):
        module(torch.randn(4, 2))


def test_a_paused_stage_is_plain_autograd():
    module = layers(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 8))
    attachment = attach_stage(stage(module), bpfree.DFA())
    with attachment.paused():
        module(torch.randn(4, 2)).sum().backward()
        with pytest.raises(StageError, match="the rule of stage 0 of 2 is paused"):
            attachment.take_ticket()
    assert module[0].weight.grad.any()


def test_a_schedule_runs_before_the_first_pass_with_gradients():
    module = layers(nn.Linear(2, 8), nn.Tanh())
    attach_stage(stage(module), bpfree.DFA())
    with torch.no_grad():
        module(torch.randn(4, 2))
    with pytest.raises(StageError, match=r"call its step\(\) or eval\(\) first"):
        module(torch.randn(4, 2))


def test_ddp_around_a_stage_is_refused(one_process):
    wrapped = DistributedDataParallel(layers(nn.Linear(2, 8), nn.Tanh()))
    for module in (wrapped, layers(wrapped, nn.Tanh())):
        with pytest.raises(StageError, match="DistributedDataParallel is around stage 0 of 2"):
            attach_stage(stage(module), bpfree.DFA())


def test_what_lies_behind_the_last_tap_may_have_no_weights():
    module = layers(nn.Linear(2, 8), nn.Tanh(), nn.Flatten())
    attachment = attach_stage(stage(module), bpfree.DFA())
    settle(attachment)
    assert not module(torch.randn(4, 2)).requires_grad
    attachment.take_ticket().backward(torch.randn(4, 3))
    assert module[0].weight.grad.any()


def test_a_stage_without_taps_is_refused_unless_it_is_the_last():
    with pytest.raises(StageError, match="stage 0 of 2 has no tap, so nothing in it would learn"):
        attach_stage(stage(layers(nn.Linear(2, 8))), bpfree.DFA())
    head = layers(nn.Linear(8, 3))
    attach_stage(stage(head, 1), bpfree.DFA())
    head(torch.randn(4, 8)).sum().backward()
    assert head[0].weight.grad.any()


def test_the_last_stage_tells_of_its_error():
    module = layers(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    attachment = attach_stage(stage(module, 1), bpfree.DFA())
    told = []
    attachment.tell(told.append)
    module(torch.randn(4, 8)).mul(2).sum().backward()
    assert torch.equal(told[0], torch.full((4, 3), 2.0))
    attachment.detach()
    module(torch.randn(4, 8)).sum().backward()
    assert len(told) == 1


@pytest.mark.parametrize("parts", [(nn.Linear(8, 3),), (nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))])
def test_a_frozen_last_stage_tells_the_others_of_its_error(parts):
    module = layers(*parts).requires_grad_(False)
    attachment = attach_stage(stage(module, 1), bpfree.DFA())
    told = []
    attachment.tell(told.append)
    module(torch.randn(4, 8)).mul(2).sum().backward()
    assert torch.equal(told[0], torch.full((4, 3), 2.0))


def test_an_unknown_place_of_the_error_matters_in_the_last_stage_alone():
    module = layers(nn.Linear(2, 8), nn.Tanh())
    attach_stage(stage(module), bpfree.DFA(), error_at="below_head").detach()
    with pytest.raises(ErrorPlacementError, match="below_head"):
        attach_stage(stage(module, 1), bpfree.DFA(), error_at="below_head")


def test_a_detached_stage_is_as_it_was():
    module = layers(nn.Linear(2, 8), nn.Tanh())
    attachment = attach_stage(stage(module), bpfree.DFA())
    with pytest.raises(AlreadyAttachedError):
        attach_stage(stage(module), bpfree.DFA())
    attachment.detach()
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert attachment.state_dict().keys() == bpfree.attach(module, bpfree.DFA()).state_dict().keys()


def test_a_prefix_restores_the_names_of_the_whole_model():
    whole = nn.ModuleDict({"encoder": layers(nn.Linear(2, 8), nn.Tanh())})
    attachment = attach_stage(stage(whole["encoder"]), bpfree.DFA(), taps="encoder.*1", prefix="encoder")
    assert list(attachment.taps) == ["encoder.1"]
    last = attach_stage(
        stage(layers(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)), 1), bpfree.DFA(), prefix="top", error_at="top.2"
    )
    assert last.mechanism.plan.error_module is last.model[2]


def test_a_prefix_restores_the_backward_weights_of_the_whole_model():
    def drawn(model, attachment, name):
        model(torch.randn(4, 2))
        return attachment.within.feedback[name]

    encoder = layers(nn.Linear(2, 8), nn.Linear(8, 8), nn.Tanh())
    whole = nn.Sequential(OrderedDict(encoder=encoder, head=nn.Linear(8, 3)))
    attachment = bpfree.attach(whole, bpfree.DFA(), within=bpfree.FA())
    expected = drawn(whole, attachment, "encoder.1")
    attachment.detach()
    attachment = attach_stage(stage(encoder), bpfree.DFA(), prefix="encoder", within=bpfree.FA())
    settle(attachment)
    assert torch.equal(drawn(encoder, attachment, "1"), expected)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"window": 0}, "window=0: a whole number"),
        ({"alternate": 2, "window": 2}, "both make the backward pass deeper"),
        ({"alternate": 2, "alternate_order": "often"}, "alternate_order"),
        ({"alternate": 2, "rule": bpfree.Shallow()}, "sends no signal to the taps that are cut"),
        ({"within": bpfree.DFA()}, "a layerwise rule"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, said):
    with pytest.raises(OptionError, match=said):
        attach_stage(stage(layers(nn.Linear(2, 8), nn.Tanh())), **{"rule": bpfree.DFA(), **options})


def test_stages_of_different_steps_do_not_train_together():
    def of_step(index, step, passes=0):
        module = layers(nn.Linear(8, 8), nn.Tanh(), *([nn.Linear(8, 3)] if index else []))
        attachment = attach_stage(stage(module, index), bpfree.FDFA(), alternate=2)
        attachment.mechanism.alternation.numbers["step"] = step
        attachment.mechanism.averages.numbers["passes"] = passes
        return attachment

    require_alike([built_with(of_step(0, 3)), built_with(of_step(1, 3))])
    frozen = of_step(0, 0)
    frozen.model.requires_grad_(False)
    require_alike([built_with(frozen), built_with(of_step(1, 3))])
    with pytest.raises(StageError, match="have come to 2 and 3 steps of alternating cuts"):
        require_alike([built_with(of_step(0, 3)), built_with(of_step(1, 2))])
    with pytest.raises(StageError, match="have come to 8 and 12 passes of learned feedback"):
        require_alike([built_with(of_step(0, 3, 12)), built_with(of_step(1, 3, 8))])


def survey(names=("1",), error=None):
    return StageSurvey(list(names), [torch.Size((4, 8))] * len(names), error)


def test_stages_must_have_names_of_their_own():
    own = bpfree.DFA(feedback=bpfree.Feedback(shared=False))
    attachment = attach_stage(stage(layers(nn.Linear(2, 8), nn.Tanh())), own)
    last = survey(names=["3"], error=(torch.Size((4, 3)), torch.float32))
    agreed = Agreement.of([survey(), last], attachment)
    assert (agreed.c, agreed.widest, agreed.rows.axes) == (3, 8, (0,))
    with pytest.raises(StageError, match="several stages have a tap '1'"):
        Agreement.of([survey(), survey(error=last.error)], attachment)
    with pytest.raises(ErrorPlacementError, match="the last stage gave no tensor"):
        Agreement.of([survey(), survey(names=["3"])], attachment)


def projector(factor):
    return lambda error, sites: [factor * error @ torch.ones(3, site.width) for site in sites]


def test_a_projector_of_ones_own_is_the_same_rule_in_every_process():
    """Each process has a function of its own, at an address of its own."""
    first = attach_stage(stage(layers(nn.Linear(2, 8), nn.Tanh())), bpfree.DFA(feedback=projector(2)))
    last = attach_stage(stage(layers(nn.Linear(8, 3)), 1), bpfree.DFA(feedback=projector(2)))
    require_alike([built_with(first), built_with(last)])


def test_a_measured_stage_is_left_as_it_was():
    module = layers(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Tanh())
    module[0].weight.grad = torch.ones(8, 8)
    buffers = [buffer.clone() for buffer in module.buffers()]
    inputs, random = torch.randn(4, 8), torch.get_rng_state()
    times = measure_stage(module, inputs, bpfree.DFA(), error=torch.ones(4, 3), repeats=2)
    assert isinstance(times, StageTimes)
    assert times.input_gradient == 0  # nobody wants one
    assert torch.equal(module[0].weight.grad, torch.ones(8, 8))
    assert module[0].bias.grad is None
    assert all(map(torch.equal, module.buffers(), buffers))
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(part._forward_hooks for part in module)
    with pytest.raises(OptionError, match="give error= for a stage before the last"):
        measure_stage(module, inputs, bpfree.DFA())


def test_a_stage_that_learns_from_targets_is_measured():
    module, y = layers(nn.Linear(8, 8), nn.Tanh()), torch.tensor([0, 1, 2, 0])
    times = measure_stage(module, torch.randn(4, 8), bpfree.DRTP(), error=torch.ones(4, 3), targets=y, repeats=1)
    assert times.local > 0


@pytest.mark.parametrize("rows", [1.0, 0.5])
@pytest.mark.parametrize("place", [{"error": torch.ones(4, 3)}, {"loss": lambda output: output.square().mean()}])
def test_estimating_passes_of_a_stage_are_measured(place, rows):
    module = layers(*[part for _ in range(3) for part in (nn.Linear(8, 8), nn.Tanh())])
    if "loss" in place:
        module.append(nn.Linear(8, 3))
    inputs = torch.randn(4, 8, requires_grad=True)
    times = measure_stage(module, inputs, bpfree.FDFA(rows=rows), alternate=2, repeats=2, **place)
    assert min(times.estimate, times.local, times.input_gradient) > 0
    assert measure_stage(module, inputs, bpfree.DFA(), window=2, repeats=2, **place).estimate == 0
