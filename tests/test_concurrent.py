"""Segments on several threads: the numbers of one thread."""

import copy
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import bpfree
from bpfree import errors
from bpfree.mechanisms.direct import threads as threads_module
from bpfree.mechanisms.direct.threads import ThreadChoice
from support.rule_contract import Subject, assert_equal, assert_rule_serves
from support.scripts import Script

N, C, DEPTH = 8, 4, 6


def mlp():
    torch.manual_seed(0)
    layers = [part for _ in range(DEPTH) for part in (nn.Linear(6, 6), nn.Dropout(0.2), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(6, C))


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(N, 6, generator=generator), torch.randint(0, C, (N,), generator=generator)


def trained(rule, threads, *, wants_gradient=False):
    model, (x, y) = mlp(), batch()
    attachment = bpfree.attach(model, rule, seed=3, threads=threads)
    optimizer = torch.optim.SGD([*model.parameters(), *attachment.parameters()], lr=0.1)
    x.requires_grad_(wants_gradient)
    torch.manual_seed(5)
    for _ in range(3):
        optimizer.zero_grad()
        attachment.targets(y)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return [*model.parameters(), *attachment.buffers(), *(p.grad for p in model.parameters()), x.grad]


@pytest.mark.parametrize("threads", [2, 3, None])
@pytest.mark.parametrize(
    "rule",
    [
        bpfree.DFA(),
        bpfree.DFA(feedback=bpfree.Feedback(shared=False)),
        bpfree.DRTP(),
        bpfree.Shallow(),
        bpfree.FDFA(),
        bpfree.DKP(),
        bpfree.ForwardGradient("activations"),
    ],
    ids=str,
)
def test_the_numbers_are_those_of_one_thread(double, rule, threads):
    torch.set_num_threads(2)
    assert_equal(trained(rule, threads), trained(rule, 1))


@pytest.mark.filterwarnings("ignore:an argument of the model")
def test_inputs_that_want_a_gradient_get_it(double):
    found = trained(bpfree.DFA(), 2, wants_gradient=True)
    assert found[-1] is not None
    assert_equal(found, trained(bpfree.DFA(), 1, wants_gradient=True))


def test_segments_do_run_at_the_same_time():
    """Two segments wait for each other: on one thread they would wait for ever."""
    model, (x, y) = mlp(), batch()
    bpfree.attach(model, bpfree.DFA(), threads=2)
    meeting = threading.Barrier(2, timeout=300)

    def meet(_):
        meeting.wait()

    F.cross_entropy(model(x), y).backward()  # in turns: it finds out what segments share
    for layer in (model[0], model[3]):
        layer.weight.register_post_accumulate_grad_hook(meet)
    F.cross_entropy(model(x), y).backward()
    assert not meeting.broken


class Residual(nn.Module):
    """Paths lead around the cuts, and a layer is shared."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Linear(6, 6), nn.Linear(6, C)
        self.block = nn.Sequential(nn.Linear(6, 6), nn.Tanh())

    def forward(self, x):
        h = self.first(x)
        for _ in range(3):
            h = h + self.block(h)
        return self.head(h)


class Checkpointed(nn.Module):
    """Every layer runs again in the backward pass, and sets the random state of the whole process for that."""

    def __init__(self):
        super().__init__()
        self.layers, self.head = nn.ModuleList(mlp()[:-1]), nn.Linear(6, C)

    def forward(self, x):
        for start in range(0, len(self.layers), 3):
            linear, dropout, tanh = self.layers[start : start + 3]
            x = tanh(checkpoint(lambda h, f=linear, g=dropout: g(f(h)).sin(), x, use_reentrant=False))
        return self.head(x)


@pytest.mark.parametrize("build", [Residual, Checkpointed])
def test_what_is_not_separate_runs_in_turns(double, build):
    x, y = batch()
    found = []
    for threads in (2, 1):
        model = build()
        attachment = bpfree.attach(model, bpfree.DFA(), threads=threads, seed=1)
        torch.manual_seed(5)
        for _ in range(3):
            F.cross_entropy(model(x), y).backward()
        found.append([parameter.grad for parameter in model.parameters()])
        assert ("paths lead around the cuts, or layers are shared or checkpointed" in str(attachment)) == (threads == 2)
    assert_equal(*found)


class Stem(nn.Module):
    """What the first layer gives is added behind every tap."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Linear(6, 6), nn.Linear(6, C)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3))

    def forward(self, x):
        h = self.first(x)
        for block in self.blocks:
            h = h + block(h)
        return self.head(h)


def test_what_is_unfrozen_may_lie_around_the_cuts(double):
    """With the first layer frozen nothing around the cuts has a graph, and segments are separate."""
    x, y = batch()
    found = []
    for threads in (2, 1):
        model = Stem()
        bpfree.attach(model, bpfree.DFA(), threads=threads, seed=1)
        model.first.requires_grad_(False)
        F.cross_entropy(model(x), y).backward()
        model.first.requires_grad_(True)
        F.cross_entropy(model(x), y).backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert_equal(*found)


def test_a_thread_that_begins_late_leaves_the_number_of_threads_alone(monkeypatch):
    torch.set_num_threads(4)
    begin = threading.Event()
    pool = ThreadPoolExecutor(1)
    monkeypatch.setattr(threads_module, "_pool", lambda threads: SimpleNamespace(submit=late))

    def late(work):
        return pool.submit(lambda: begin.wait(0.5) or work())

    leaf = torch.ones(3, requires_grad=True)
    threads_module._run([(leaf * 2, torch.ones(3))], threads=2)
    with ThreadPoolExecutor(1) as new:
        # A new thread takes the number that the process has.
        assert new.submit(torch.get_num_threads).result() == 4


def test_an_exception_in_a_segment_reaches_the_caller():
    model, (x, y) = mlp(), batch()
    bpfree.attach(model, bpfree.DFA(), threads=2)
    F.cross_entropy(model(x), y).backward()
    threads = torch.get_num_threads()

    def fail(_):
        raise ZeroDivisionError("from a hook")

    model[3].weight.register_post_accumulate_grad_hook(fail)
    with pytest.raises(ZeroDivisionError, match="from a hook"):
        F.cross_entropy(model(x), y).backward()
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("alone", "together", "expected"), [(2.0, 1.0, True), (1.0, 2.0, False)])
def test_the_faster_way_is_kept(alone, together, expected):
    torch.set_num_threads(2)
    choice = ThreadChoice(None)
    choice.found("tap", separate=True)
    ways = []
    for _ in range(40):
        ways.append(choice.concurrent("tap"))
        choice.measured(ways[-1], together if ways[-1] else alone)
    assert ways[0] is False  # both are tried, in turns
    assert ways[1] is True
    assert set(ways[20:]) == {expected}


def test_with_one_thread_there_is_nothing_to_choose():
    choice = ThreadChoice(None)
    choice.found("tap", separate=True)
    assert choice.concurrent("tap") is False


def test_a_second_backward_pass_is_told():
    model, (x, _) = mlp(), batch()
    bpfree.attach(model, bpfree.DFA(), threads=2)
    output = model(x)
    output.sum().backward(retain_graph=True)
    with pytest.raises(errors.UsedRecordError, match="Run the model again"):
        output.sum().backward()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_has_threads_of_its_own(tmp_path):
    code = (
        "import os, torch, bpfree\n"
        "from torch import nn\n"
        "model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 4))\n"
        "bpfree.attach(model, bpfree.DFA(), threads=2)\n"
        "def learn(): [model(torch.ones(3, 6)).sum().backward() for _ in range(3)]\n"
        "learn()\n"
        "child = os.fork()\n"
        "if child: raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "learn()\n"
        "os._exit(7)\n"
    )
    # In a process of its own: a fork of the tests' would have their threads' locks.
    (tmp_path / "forking.py").write_text(code)
    script = Script(tmp_path / "forking.py", log=tmp_path / "log.txt")
    printed = script.output(120)
    assert script.returncode == 7, printed


def test_the_contract():
    x, y = batch()
    subject = Subject(
        lambda: torch.manual_seed(0) and nn.Sequential(*mlp()[-6:]),
        lambda m: m(x),
        lambda m: F.cross_entropy(m(x), y),
        y,
        {"threads": 2},
    )
    assert_rule_serves(subject, bpfree.DFA())


def test_a_copy_of_the_model_runs():
    model, (x, y) = mlp(), batch()
    bpfree.attach(model, bpfree.DFA(), threads=2)
    twin = copy.deepcopy(model)
    for net in (model, twin):
        torch.manual_seed(2)
        F.cross_entropy(net(x), y).backward()
    for ours, copied in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(copied.grad, ours.grad)


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        (bpfree.DFA(), {"threads": 0}, "at least one"),
        (bpfree.FA(), {"threads": 2}, "plain segments of direct rules"),
        (bpfree.DFA(), {"threads": 2, "window": 2}, "plain segments of direct rules"),
        (bpfree.DFA(), {"threads": 2, "streaming": True}, "plain segments of direct rules"),
        (bpfree.ForwardGradient("weights"), {"threads": 2}, "for segments"),
    ],
)
def test_what_cannot_run_at_once_is_refused(rule, options, message):
    with pytest.raises(errors.OptionError, match=message):
        bpfree.attach(mlp(), rule, **options)
