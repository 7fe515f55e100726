"""A loop of one's own under accelerate: it trains as without, in checkpoints it resumes bit for bit."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bpfree
from support.rule_contract import assert_equal

pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("ignore")]
accelerate = pytest.importorskip("accelerate", reason="needs accelerate: pip install bpfree[transformers]")

CLIP, ACCUMULATED, HALF, STEPS = 0.1, 2, 4, 8


@pytest.fixture(autouse=True)
def _own_state():
    """An Accelerator's settings are the whole process's: every test begins and ends without."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))


def batches():
    generator = torch.Generator().manual_seed(5)
    y = torch.arange(8 * STEPS) % 3
    return DataLoader(TensorDataset(torch.randn(len(y), 6, generator=generator), y), batch_size=8)


def prepared(rule, seed=0, **options):
    """The accelerator, what it has prepared, and the attachment."""
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATED, **options)
    model = net()
    attachment = bpfree.attach(model, rule, seed=seed)
    optimizer = torch.optim.Adam([*model.parameters(), *attachment.parameters()], lr=0.01)
    model, optimizer, loader = accelerator.prepare(model, optimizer, batches())
    accelerator.register_for_checkpointing(attachment)
    return accelerator, model, optimizer, loader, attachment


def train(accelerator, model, optimizer, loader, attachment, first=0, last=STEPS):
    for number, (x, y) in enumerate(loader):
        if first <= number < last:
            with accelerator.accumulate(model):
                attachment.targets(y)
                accelerator.backward(F.cross_entropy(model(x), y))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), CLIP)
                optimizer.step()
                optimizer.zero_grad()


def by_hand(rule):
    model = net()
    attachment = bpfree.attach(model, rule)
    optimizer = torch.optim.Adam([*model.parameters(), *attachment.parameters()], lr=0.01)
    for number, (x, y) in enumerate(batches()):
        attachment.targets(y)
        (F.cross_entropy(model(x), y) / ACCUMULATED).backward()
        if (number + 1) % ACCUMULATED == 0:
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
    return model, attachment


RULES = [bpfree.DFA(), bpfree.DRTP(), bpfree.GrAPE(), bpfree.FA(), bpfree.KolenPollack(), bpfree.DKP()]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_it_trains_as_a_loop_without_it(rule):
    model, attachment = by_hand(rule)
    accelerator, ours, *others, theirs = prepared(rule)
    train(accelerator, ours, *others, theirs)
    assert_equal(ours.state_dict().values(), model.state_dict().values())
    assert_equal(theirs.state_dict().values(), attachment.state_dict().values())
    assert not torch.equal(model[0].weight, net()[0].weight)


@pytest.mark.parametrize("rule", [bpfree.GrAPE(), bpfree.KolenPollack(), bpfree.DKP()], ids=str)
def test_a_run_that_loads_its_state_is_the_uninterrupted_one(rule, tmp_path):
    whole = prepared(rule)
    train(*whole)
    half = prepared(rule)
    train(*half, last=HALF)
    half[0].save_state(str(tmp_path))
    resumed = prepared(rule, seed=1)
    resumed[0].load_state(str(tmp_path))
    train(*resumed, first=HALF)
    assert_equal(resumed[1].state_dict().values(), whole[1].state_dict().values())
    assert_equal(resumed[-1].state_dict().values(), whole[-1].state_dict().values())


def test_under_mixed_precision_the_error_still_goes_straight_to_every_tap():
    accelerator, model, _, loader, attachment = prepared(bpfree.DFA(), mixed_precision="bf16")
    x, y = next(iter(loader))
    output = model(x)
    assert output.dtype == torch.float32  # accelerate's doing
    accelerator.backward(F.cross_entropy(output, y) * ACCUMULATED)
    error = (output.softmax(1) - F.one_hot(y, 3)).detach() / len(y)
    B = attachment.feedback["shared"]
    with attachment.paused():
        below = model[:2](x)
        h = torch.tanh(model[2](below))
    expected = ((error @ B) * (1 - h**2)).T @ below
    assert F.cosine_similarity(model[2].weight.grad.flatten(), expected.flatten(), dim=0) > 0.999
