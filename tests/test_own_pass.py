"""What the library does to a model for one pass is met in that pass alone: not by other threads, nor by inner calls."""

import copy
import pickle
import queue
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bpfree
from bpfree.forward_mode.by_hand import ByHand
from bpfree.forward_mode.own_pass import OwnPass
from support.rule_contract import assert_equal

N, WIDTH, C = 8, 6, 4
ESTIMATING = [
    bpfree.GrAPE(),
    bpfree.FDFA(),
    bpfree.LMS(),
    bpfree.ForwardGradient("activations"),
    bpfree.ForwardGradient("weights"),
]
by_rule = pytest.mark.parametrize("rule", ESTIMATING, ids=str)


def in_a_thread(work):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(60)


class Acting(nn.Module):
    """Does something whenever it is run, be it the first time or again."""

    act = None

    def forward(self, x):
        if Acting.act is not None:
            act, Acting.act = Acting.act, None
            try:
                act()
            finally:
                Acting.act = act
        return x


@pytest.fixture(autouse=True)
def nothing_acts():
    yield
    Acting.act = None


class Headed(nn.Module):
    """The error is taken below a layer, and one layer is run twice."""

    def __init__(self):
        super().__init__()
        self.first, self.acting = nn.Linear(WIDTH, WIDTH), Acting()
        self.shared = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())
        self.head, self.above = nn.Linear(WIDTH, C), nn.Linear(C, C)

    def forward(self, x):
        h = self.shared(self.first(x[:, 0]))
        return self.above(self.head(self.shared(self.acting(h))))


class Attentive(nn.Module):
    """A layer whose fast path is taken where nothing learns."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(WIDTH, 2, 12, dropout=0.0, batch_first=True)
        self.acting, self.tanh, self.head = Acting(), nn.Tanh(), nn.Linear(WIDTH, C)

    def forward(self, x):
        h = self.encoder(self.acting(self.encoder(x)))
        return self.head(self.tanh(h.mean(1)))


class Fused(nn.Module):
    """Attention by a fused kernel, which has no forward-mode derivative."""

    def __init__(self):
        super().__init__()
        self.lift, self.tanh, self.acting = nn.Linear(WIDTH, 3 * WIDTH), nn.Tanh(), Acting()
        self.head = nn.Linear(WIDTH, C)

    def forward(self, x):
        q, k, v = self.acting(self.tanh(self.lift(x))).unsqueeze(1).chunk(3, -1)
        return self.head(F.scaled_dot_product_attention(q, k, v).mean((1, 2)))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.acting = nn.GRU(WIDTH, WIDTH, batch_first=True), Acting()
        self.tanh, self.head = nn.Tanh(), nn.Linear(WIDTH, C)

    def forward(self, x):
        return self.head(self.tanh(self.cell(self.acting(self.cell(x)[0]))[0][:, -1]))


NETS = {"headed": (Headed, {"error_at": "head"}), "attentive": (Attentive, {}), "fused": (Fused, {}),
        "recurrent": (Recurrent, {})}  # fmt: skip


def net(kind):
    torch.manual_seed(0)
    return kind().eval()


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(N, 3, WIDTH, generator=generator), torch.randint(0, C, (N,), generator=generator)


def trained(kind, rule, options, act=None):
    """Two steps, with ``act(model)`` in the middle of every run of the model."""
    model, (x, y) = net(kind), batch()
    attachment = bpfree.attach(model, rule, seed=3, **options)
    optimizer = torch.optim.SGD([*model.parameters(), *attachment.parameters()], lr=0.0)
    Acting.act = None if act is None else lambda: act(model)
    for _ in range(3):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    Acting.act = None
    return [*(p.grad for p in model.parameters()), *attachment.buffers()]


@pytest.mark.parametrize("how", ["thread", "itself"])
@pytest.mark.parametrize("name", NETS)
@by_rule
def test_an_evaluation_in_the_middle_of_any_run_changes_nothing_and_is_not_changed(rule, name, how):
    torch.set_num_threads(1)
    (kind, options), (x, _) = NETS[name], batch()
    other = x.flip(0)
    with torch.no_grad():
        expected = net(kind)(other)
    outputs = queue.SimpleQueue()  # what a model keeps in attributes is put back behind a second run

    def evaluate(model):
        torch.set_num_threads(1)
        with torch.no_grad():
            outputs.put(model(other))

    act = (lambda model: in_a_thread(lambda: evaluate(model))) if how == "thread" else evaluate
    assert_equal(trained(kind, rule, options, act), trained(kind, rule, options))
    found = [outputs.get() for _ in range(outputs.qsize())]
    assert len(found) >= 3
    assert all(torch.equal(output, expected) for output in found)


@by_rule
def test_a_copy_that_another_thread_makes_in_the_middle_of_a_pass_is_a_plain_model(rule):
    x, _ = batch()
    copies = queue.SimpleQueue()

    def keep(model):
        copies.put(in_a_thread(lambda: copy.deepcopy(model.cell)))
        copies.put(in_a_thread(lambda: pickle.loads(pickle.dumps(model.cell))))

    trained(Recurrent, rule, {}, keep)
    cell = net(Recurrent).cell
    for _ in range(copies.qsize()):
        twin = copies.get()
        assert type(twin) is nn.GRU
        assert type(twin._parameters) is dict
        with torch.no_grad():
            assert torch.equal(twin(x)[0], cell(x)[0])


def test_the_list_of_a_recurrent_layers_weights_is_there_at_every_moment():
    model, (x, y) = net(Recurrent), batch()
    bpfree.attach(model, bpfree.ForwardGradient("weights"))
    ended, begun = threading.Event(), threading.Event()

    def read():
        while not ended.is_set():
            assert len(model.cell._flat_weights) == 4
            begun.set()

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        assert begun.wait(300)
        for _ in range(100):
            F.cross_entropy(model(x), y).backward()
        ended.set()
        reading.result(300)
    assert type(model.cell) is nn.GRU


def test_alignment_is_measured_beside_a_thread_that_evaluates():
    (x, y), measured = batch(), []
    for act in (None, lambda model: in_a_thread(lambda: evaluate(model)), lambda model: evaluate(model)):

        def evaluate(model):
            with torch.no_grad():
                model(x.flip(0))

        model = net(Headed)
        attachment = bpfree.attach(model, bpfree.DFA(), seed=3, error_at="head")
        Acting.act = None if act is None else lambda model=model, act=act: act(model)
        measured.append(str(bpfree.alignment(attachment, lambda model=model: F.cross_entropy(model(x), y))))
    assert measured[0] == measured[1] == measured[2]


# -- the parts -----------------------------------------------------------------------------------------------------


def test_hooks_act_in_their_own_pass_alone():
    layer, seen = nn.Linear(2, 2), []
    model, x = nn.Sequential(layer), torch.zeros(1, 2)
    behind, before = (lambda *given: seen.append("behind")), (lambda *given: seen.append("before"))
    with OwnPass(model) as own, own.hooked({layer: behind}), own.hooked({layer: before}, before=True):
        model(x)  # of somebody else
        in_a_thread(lambda: model.forward(x))
        assert seen == []
        model.forward(x)
        assert seen == ["before", "behind"]
        assert own.is_this
        with pytest.raises(RuntimeError):
            model(torch.zeros(1, 3))
        assert own.is_this  # again, though the call inside has failed
    model.forward(x)
    assert len(seen) == 2
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_an_interrupted_call_inside_leaves_no_mode_off():
    def interrupt(*_):
        raise KeyboardInterrupt

    model, x = nn.Sequential(nn.Linear(2, 2)), torch.zeros(1, 2)
    handle = model[0].register_forward_hook(interrupt)
    with ByHand():
        with OwnPass(model), pytest.raises(KeyboardInterrupt):
            model(x)
        assert torch._C._len_torch_function_stack() == 1
    assert torch._C._len_torch_function_stack() == 0
    handle.remove()
