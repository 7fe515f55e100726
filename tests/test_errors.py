"""Bad input: the named error, what it says, and that nothing half-attached remains."""

import math
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bpfree
from bpfree import errors


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


X = torch.randn(5, 6)


@pytest.mark.parametrize(
    ("model", "rule", "options", "error", "says"),
    [
        (mlp(), bpfree.DFA(), {"taps": "6"}, errors.TapSelectionError, "'6'"),
        (mlp(), bpfree.DFA(), {"taps": nn.GELU}, errors.TapSelectionError, "GELU.*Linear, Tanh"),
        (mlp(), bpfree.DFA(), {"taps": []}, errors.TapSelectionError, "empty"),
        (mlp(), bpfree.DFA(), {"taps": [3]}, errors.TapSelectionError, "3"),
        (mlp(), bpfree.DFA(), {"taps": 3}, errors.TapSelectionError, "3 is neither a module type"),
        (mlp(), bpfree.DFA(), {"taps": nn.Tanh()}, errors.TapSelectionError, r"Tanh\(\) is neither a module type"),
        (mlp(), bpfree.DFA(), {"error_at": 0}, errors.ErrorPlacementError, "error_at=0: the model has no such module"),
        (mlp(), bpfree.DFA(), {"sample_axes": {1: 0}}, errors.OptionError, "names 1, which is no tap"),
        (mlp(), bpfree.DFA(), {"taps": lambda n, m: False}, errors.TapSelectionError, "predicate"),
        (nn.Sequential(nn.Linear(6, 4)), bpfree.DFA(), {}, errors.TapSelectionError, r"bpfree\.Tap\(\)"),
        (mlp(), bpfree.DFA(), {"error_at": "head"}, errors.ErrorPlacementError, "head"),
        (
            mlp(),
            bpfree.DFA(),
            {"error_at": "0", "example_inputs": X},
            errors.ErrorPlacementError,
            "no tap was reached",
        ),
        (mlp(), bpfree.DFA(), {"seed": 2**64}, errors.OptionError, "seed"),
        (mlp(), bpfree.DFA(), {"batch_dims": 0}, errors.OptionError, "batch_dims"),
        (mlp(), bpfree.DFA, {}, errors.OptionError, r"bpfree\.DFA\(\)"),
        (nn.Sequential(nn.Tanh()), bpfree.FA(), {}, errors.UnsupportedLayerError, "Linear and convolution"),
        (mlp(), bpfree.DFA(), {"example_inputs": torch.randn(5, 7)}, RuntimeError, "shapes"),
        (mlp(), bpfree.DFA(), {"example_inputs": X, "batch_dims": 2}, errors.TapShapeError, "batch_dims"),
    ],
)
def test_attach_refuses_and_leaves_nothing(model, rule, options, error, says):
    with pytest.raises(error, match=says):
        bpfree.attach(model, rule, **options)
    assert hooks(model) == 0
    bpfree.attach(model, bpfree.BP()).detach()  # and the model is free for another rule


def test_one_rule_a_model():
    model = mlp()
    with bpfree.attach(model, bpfree.DFA()):
        for second in (model, nn.Sequential(model, nn.Tanh()), model[2:4]):
            with pytest.raises(errors.AlreadyAttachedError, match=r"detach\(\)"):
                bpfree.attach(second, bpfree.FA())
    bpfree.attach(model, bpfree.FA()).detach()


class Embeds(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.one, self.inner, self.two = nn.Linear(6, 4), bpfree.Tap(), nn.Linear(4, 4)
        self.output = output
        self.argmax = Argmax()

    def forward(self, x):
        h = self.inner(self.one(x))
        self.argmax(h)
        return self.output(self.two(h))


class Argmax(nn.Module):
    def forward(self, h):
        return h.argmax(1)


def test_a_tap_without_a_floating_tensor():
    model = Embeds(lambda o: o)
    attachment = bpfree.attach(model, bpfree.DFA(), taps=["inner", "argmax"])
    with pytest.raises(errors.TapOutputError, match=r"'argmax'.*int64"):
        model(X)
    attachment.detach()
    assert hooks(model) == 0
    model(X)


def test_a_model_that_returns_no_floating_tensor():
    model = Embeds(lambda o: {"classes": o.argmax(-1)})
    bpfree.attach(model, bpfree.DFA())
    with pytest.raises(errors.ErrorPlacementError, match=r"dict.*error_at"):
        model(X)


def test_an_output_of_complex_numbers():
    class Waves(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 4), nn.Tanh())
            self.head = nn.Parameter(torch.randn(4, 4, dtype=torch.cfloat))

        def forward(self, x):
            return self.body(x).to(torch.cfloat) @ self.head

    model = Waves()
    bpfree.attach(model, bpfree.DFA())
    with pytest.raises(errors.ErrorPlacementError, match=r"a tensor of torch\.complex64"):
        model(X)


@pytest.mark.parametrize("options", [{"example_inputs": X}, {"streaming": True}], ids=["at once", "streaming"])
def test_statistics_that_have_no_shape_yet(options):
    model = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.Tanh(), nn.Linear(8, 4))
    with pytest.raises(errors.UnsupportedLayerError, match=r"'1\.running_mean' has no shape yet.*run the model once"):
        bpfree.attach(model, bpfree.DFA(), **options).model(X)


def test_ways_of_different_widths_need_matrices_of_their_own():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, n), nn.Tanh(), nn.Linear(n, 4)) for n in (8, 12))

        def forward(self, x, which):
            return self.experts[which](x)

    model = Experts()
    attachment = bpfree.attach(model, bpfree.DFA())
    model(X, 0)
    with pytest.raises(errors.TapShapeError, match=r"Feedback\(shared=False\)"):
        model(X, 1)
    attachment.detach()
    bpfree.attach(model, bpfree.DFA(feedback=bpfree.Feedback(shared=False)))
    for which in (0, 1):
        model(X, which).sum().backward()


class Dropping(nn.Module):
    """Leaves out the layers that it is told to, as layerdrop does."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2))
        self.head, self.dropped = nn.Linear(6, 4), ()

    def forward(self, x):
        for number, layer in enumerate(self.layers):
            x = x if number in self.dropped else layer(x)
        return self.head(x)


@pytest.mark.parametrize("options", [{}, {"verify": False}, {"streaming": True}, {"window": 2}], ids=str)
@pytest.mark.parametrize("rule", [bpfree.DFA(), bpfree.FDFA(), bpfree.DKP()], ids=str)
def test_a_pass_that_leaves_out_all_taps(rule, options):
    """It is refused as such, and who skips the step trains on as if it had never been."""
    found = []
    for steps in ((None, (1,)), (None, (0, 1), (1,))):
        torch.manual_seed(0)
        model = Dropping()
        bpfree.attach(model, rule, taps="layers.*.1", seed=0, **options)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for dropped in steps:
            model.dropped = dropped or ()
            optimizer.zero_grad()
            if dropped == (0, 1):
                with pytest.raises(errors.ErrorPlacementError, match=r"reached no tap.*earlier passes did.*skip this"):
                    model(X)
                continue
            F.cross_entropy(model(X), torch.arange(5) % 4).backward()
            optimizer.step()
        found.append([parameter.detach() for parameter in model.parameters()])
    if not isinstance(rule, bpfree.FDFA):  # whose perturbations are drawn by the number of the pass
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other)


def test_a_first_pass_that_leaves_out_all_taps():
    model = Dropping()
    model.dropped = (0, 1)
    bpfree.attach(model, bpfree.DFA(), taps="layers.*.1")
    with pytest.raises(errors.ErrorPlacementError, match=r"no tap was reached before the model's output. Name taps"):
        model(X)


@pytest.mark.parametrize(
    "rule",
    [bpfree.DFA(), bpfree.FDFA(), bpfree.ForwardGradient(), bpfree.ForwardGradient("weights"), bpfree.PEPITA()],
    ids=str,
)
def test_error_at_is_not_reached(rule):
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.tanh, self.head, self.other = (
                nn.Linear(6, 4),
                nn.Tanh(),
                nn.Linear(4, 4),
                nn.Linear(4, 4),
            )

        def forward(self, x):
            return self.head(self.tanh(self.one(x)))

    model = Branch()
    bpfree.attach(model, rule, error_at="other")
    with pytest.raises(errors.ErrorPlacementError, match="'other' was not reached"):
        model(X)


def test_error_at_before_a_named_tap():
    model = mlp()
    attachment = bpfree.attach(model, bpfree.DFA(), taps=["1", "3"], error_at="2")
    with pytest.raises(errors.ErrorPlacementError, match="'3' was reached after error_at='2'"):
        model(X)
    attachment.detach()
    # Taps that nobody named are left alone above error_at: what lies there is exact.
    bpfree.attach(model, bpfree.DFA(), error_at="2", example_inputs=X)


class Twin(nn.Module):
    """A Siamese model: one encoder sees both views, and the model returns their distance."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, x, z):
        return self.encoder(x) - self.encoder(z)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("taps", [["encoder.1"], None], ids=["named", "default"])
@pytest.mark.parametrize("options", [{}, {"streaming": True}, {"window": 2}], ids=str)
def test_an_errors_module_that_is_called_twice(options, taps, verify):
    model = Twin()
    bpfree.attach(model, bpfree.DFA(), taps=taps, error_at="encoder.2", verify=verify, **options)
    with pytest.raises(errors.ErrorPlacementError, match=r"'encoder\.2' was reached twice.*[Aa]ttach the rule to"):
        model(X, X + 1)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("rule", [bpfree.ForwardGradient("weights"), bpfree.PEPITA()], ids=str)
def test_an_errors_module_that_is_called_twice_without_a_graph(rule):
    model = Twin()
    bpfree.attach(model, rule, error_at="encoder.2")
    with pytest.raises(errors.ErrorPlacementError, match=r"'encoder\.2' was reached twice"):
        model(X, X + 1)


def test_a_rule_on_the_part_that_is_called_twice():
    """What the message advises: each call is a pass of its own, and the layers get the sum of both."""
    torch.manual_seed(0)
    model, z = Twin(), X + 1
    attachment = bpfree.attach(model.encoder, bpfree.DFA(), taps=["1"], error_at="2")
    apart = model(X, z)
    apart.square().sum().backward()
    B = attachment.feedback.matrix(attachment.mechanism.sites[0])
    with torch.no_grad():
        expected = torch.zeros(8, 6)
        for view, e in ((X, 2 * apart), (z, -2 * apart)):
            h = model.encoder[:2](view)
            expected += (e @ B * (1 - h * h)).T @ view
    torch.testing.assert_close(model.encoder[0].weight.grad, expected)


def test_a_tap_must_not_cut_the_output_layer_off():
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4), nn.LogSoftmax(1))
    bpfree.attach(model, bpfree.DFA(), taps=nn.Linear)
    with pytest.raises(errors.ErrorPlacementError, match="nothing that learns lies between the last tap, '2'"):
        model(X)


def test_a_second_backward_on_a_used_record():
    model = mlp()
    bpfree.attach(model, bpfree.DFA())
    total = model(X).sum()  # a sum saves nothing, so that ours is the first node to notice
    total.backward()
    with pytest.raises(errors.UsedRecordError, match="already used"):
        total.backward()


def test_a_changed_shape_at_a_tap():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu, self.head = nn.ReLU(), nn.LazyLinear(3)
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.head(self.relu(x * self.scale)[:, :4])

    model = Wide()
    bpfree.attach(model, bpfree.DFA(), example_inputs=torch.randn(2, 6))
    with pytest.raises(errors.TapShapeError, match=r"at most 6 features.*3 and 9"):
        model(torch.randn(2, 9))


def test_images_of_another_size():
    """One number a channel serves every size, as the message says: B is the same at each position."""

    def attached(**options):
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 4, 1), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
        model = nn.Sequential(*layers)
        return model, bpfree.attach(model, bpfree.DFA(feedback=bpfree.Feedback(**options)), seed=0)

    model, _ = attached()
    model(torch.randn(2, 3, 6, 6))
    with pytest.raises(errors.TapShapeError, match=r"144 features.*256.*Feedback\(modes=1\) serves every size"):
        model(torch.randn(2, 3, 8, 8))
    model, attachment = attached(modes=1)
    for size in (6, 8, 1, 3, 9):
        x = torch.randn(2, 3, size, size)
        model.zero_grad()
        output = model(x)
        output.square().sum().backward()
        B = attachment.feedback["shared"] * attachment.rule.feedback.scale(4, 4, 5)
        signal = (2 * output.detach() @ B / size)[:, :, None, None]  # of one over the root of the positions
        with torch.no_grad():
            d = signal * (1 - model[:2](x).square())
        torch.testing.assert_close(model[0].weight.grad[..., 0, 0], torch.einsum("nchw,nkhw->ck", d, x))


def test_taps_that_are_no_maps_hear_nothing_of_images():
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.Tanh(), nn.Linear(8, 3))
    attachment = bpfree.attach(model, bpfree.DFA(), example_inputs=X)
    model[1], model[3] = nn.Linear(6, 9), nn.Linear(9, 3)
    with pytest.warns(bpfree.BpfreeWarning, match="has changed"), pytest.raises(errors.TapShapeError) as told:
        model(X)
    assert "modes" not in str(told.value)
    attachment.detach()


def test_a_tap_without_the_errors_batch():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.tanh, self.head = nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.tanh(self.one(x)).mean(0, keepdim=True))

    model = Pooled()
    bpfree.attach(model, bpfree.DFA())
    with pytest.raises(errors.TapShapeError, match=r"'tanh'.*\(5, 4\).*\(1, 2\)"):
        model(X)


class Crossing(nn.Module):
    """A block that hands on two streams; the first has four rows for each sample."""

    def __init__(self, pack):
        super().__init__()
        self.one, self.two, self.pack = nn.Linear(6, 4), nn.Linear(6, 4), pack

    def forward(self, x):
        return self.pack(torch.tanh(self.one(x.repeat_interleave(4, 0))), torch.tanh(self.two(x)))


class Crossed(nn.Module):
    def __init__(self, pack):
        super().__init__()
        self.block, self.head = Crossing(pack), nn.Linear(4, 3)

    def forward(self, x):
        found = self.block(x)
        many, one = found.values() if isinstance(found, dict) else (found[0], found[-1])
        return self.head(one + many.unflatten(0, (-1, 4)).mean(1))


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(
    ("pack", "says", "other"),
    [
        (lambda many, one: (many, one), r"a tuple.*at 0 was taken: taps={'block': 1}", 1),
        (lambda many, one: (many, None, one), r"a tuple.*at 0 was taken: taps={'block': 2}", 2),
        (lambda many, one: {"many": many, "one": one}, r"a dict.*at 'many' was taken: taps={'block': 'one'}", "one"),
    ],
    ids=["tuple", "with None", "dictionary"],
)
def test_a_tap_of_several_tensors_says_which_was_taken(pack, says, other, verify):
    model = Crossed(pack)
    attachment = bpfree.attach(model, bpfree.DFA(), taps="block", verify=verify)
    with pytest.raises(errors.TapShapeError, match=r"'block' has the shape \(20, 4\).*hands on " + says):
        model(X)
    attachment.detach()
    bpfree.attach(model, bpfree.DFA(), taps={"block": other}, verify=verify)
    model(X).sum().backward()  # as the message says
    assert model.block.two.weight.grad is not None


def test_a_tap_of_one_tensor_says_nothing_of_others():
    class Pooled(Crossed):
        def forward(self, x):
            return self.head(self.block(x)[0].unflatten(0, (-1, 4)).mean(1))

    model = Pooled(lambda many, one: (many, many.argmax(1)))
    bpfree.attach(model, bpfree.DFA(), taps="block")
    with pytest.raises(errors.TapShapeError) as told:
        model(X)
    assert "hands on" not in str(told.value)


def test_a_tap_without_features():
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 0), nn.Tanh(), nn.Linear(0, 2))
    bpfree.attach(model, bpfree.DFA())
    with pytest.raises(errors.TapShapeError, match=r"'3' has the shape \(5, 0\): it has no features"):
        model(X)


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (None, r"attachment\.targets\(y\)"),
        (torch.tensor([0, 1, 2, 3, 4]), r"classes 0 to 4.*DRTP takes the error at the logits: leave error_at out"),
        (torch.zeros(5, 3), r"\(5, 3\)"),
        (torch.zeros(5), "integers"),
    ],
)
def test_targets_missing_or_wrong(targets, says):
    model = mlp()
    attachment = bpfree.attach(model, bpfree.DRTP())
    output = model(X)
    if targets is not None:
        attachment.targets(targets)
    with pytest.raises(errors.TargetsError, match=says):
        F.cross_entropy(output, torch.zeros(5, dtype=torch.long)).backward()
    attachment.targets(torch.zeros(5, 4))
    model(X).sum().backward()  # the next step is unharmed


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_error_reaches_no_weight(bad):
    model = mlp()
    bpfree.attach(model, bpfree.DFA())
    with pytest.raises(errors.NonFiniteError, match="diverging"):
        (model(X).sum() * bad).backward()
    assert all(parameter.grad is None for parameter in model[:4].parameters())


def test_targets_that_are_no_tensor():
    attachment = bpfree.attach(mlp(), bpfree.DRTP())
    with pytest.raises(errors.TargetsError, match="list"):
        attachment.targets([0, 1])


def test_a_single_output_takes_targets_as_they_are():
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    attachment = bpfree.attach(model, bpfree.DRTP(reduction="sum"), example_inputs=X)
    y = torch.tensor([0, 1, 1, 0, 1])
    attachment.targets(y)
    model(X).sum().backward()
    with torch.no_grad():
        h = model[:2](X)
    d = y[:, None] * attachment.feedback.matrix(attachment.mechanism.sites[0])
    torch.testing.assert_close(model[0].weight.grad, (d * (1 - h**2)).T @ X)


def test_layerwise_states_that_do_not_fit():
    def attached(width, start=0):
        # A net with a Flatten in front has other names for its layers.
        layers = [nn.Flatten()] * start + [nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 4)]
        model = nn.Sequential(*layers)
        return model, bpfree.attach(model, bpfree.FA())

    model, saved = attached(8)
    model(X)
    with pytest.raises(errors.StateError, match="does not have: 2"):
        attached(8, start=1)[1].load_state_dict(saved.state_dict())
    wide, other = attached(9)
    other.load_state_dict(saved.state_dict())
    with pytest.raises(
        errors.StateError, match=r"layer '2' are a tensor of shape \(4, 8\), its weights have shape \(4, 9\)"
    ):
        wide(X).sum().backward()


@pytest.mark.parametrize(
    "rule",
    [bpfree.DFA(feedback=bpfree.Feedback(shared=False)), bpfree.DKP(), bpfree.LMS(stepped_by="optimizer")],
    ids=str,
)
def test_a_state_with_other_taps_is_refused_before_the_first_pass(rule):
    def attached(start=0):
        model = nn.Sequential(*[nn.Flatten()] * start, nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
        return model, bpfree.attach(model, rule, seed=start)

    model, saved = attached()
    F.cross_entropy(model(X), torch.arange(5) % 4).backward()
    with pytest.raises(errors.StateError, match="for taps that this model does not have: 1"):
        attached(start=1)[1].load_state_dict(saved.state_dict())
    assert attached()[1].load_state_dict(saved.state_dict()).missing_keys == []


@pytest.mark.parametrize(
    "rule",
    [bpfree.FA(), bpfree.KolenPollack(), bpfree.WeightMirror(), bpfree.FDFA(), bpfree.LMS(stepped_by="optimizer")],
    ids=str,
)
def test_modules_may_have_slashes_in_their_names(rule):
    def attached():
        torch.manual_seed(0)
        body = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
        model = nn.Sequential(OrderedDict({"a/b~1": body}))
        return model, bpfree.attach(model, rule)

    model, saved = attached()
    for _ in range(2):
        F.cross_entropy(model(X), torch.arange(5) % 4).backward()
    other = attached()[1]
    other.load_state_dict(saved.state_dict())
    assert list(other.feedback) == list(saved.feedback)
    assert all(name.startswith("a/b~1.") for name in other.feedback)
    assert all(torch.equal(other.feedback[name], saved.feedback[name]) for name in other.feedback)


def test_states_that_do_not_fit():
    def attached(rule, width=8, c=4):
        model = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, c))
        return model, bpfree.attach(model, rule)

    model, dfa = attached(bpfree.DFA())
    model(X)
    state = dfa.state_dict()
    with pytest.raises(errors.StateError, match=r"DFA\(.*this attachment runs FA"):
        attached(bpfree.FA())[1].load_state_dict(state)
    with pytest.raises(errors.StateError, match=r"launay2020.*launay2019"):
        attached(bpfree.DFA(feedback=bpfree.Feedback("launay2019")))[1].load_state_dict(state)
    with pytest.raises(errors.StateError, match="not that of an attachment"):
        attached(bpfree.DFA())[1].load_state_dict({})
    # Known shapes: at once. Unknown ones: in the first forward pass.
    wide, known = attached(bpfree.DFA(), width=9)
    wide(X)
    before = known.feedback["shared"].clone()
    with pytest.raises(errors.StateError, match=r"\(4, 8\).*\(4, 9\)"):
        known.load_state_dict(state)
    assert torch.equal(known.feedback["shared"], before)
    wide, unknown = attached(bpfree.DFA(), width=9)
    unknown.load_state_dict(state)
    with pytest.raises(errors.StateError, match="tap '1'"):
        wide(X)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: bpfree.DFA(error="signs"), "'sign'"),
        (lambda: bpfree.DFA(reduction="none"), "'mean'"),
        (lambda: bpfree.DFA(error="ternary", threshold=-1), "threshold"),
        (lambda: bpfree.DRTP(reduction="avg"), "reduction"),
        (lambda: bpfree.FA("gauss"), "distribution"),
        (lambda: bpfree.SignSymmetry("frozen"), "magnitude"),
        (lambda: bpfree.DFA(error="ternary", threshold="x"), "threshold='x' must be a number, 0 or more"),
        (lambda: bpfree.Feedback(density=None), r"density=None is not in \(0, 1\]"),
        (lambda: bpfree.GrAPE(step="x"), "step='x' must be positive"),
        (lambda: bpfree.attach(torch.relu, bpfree.DFA()), r"must be a torch\.nn\.Module"),
    ],
)
def test_rules_refuse_options_that_mean_nothing(make, says):
    with pytest.raises(errors.OptionError, match=says):
        make()


@pytest.mark.parametrize("error_at", ["3", ""])
def test_a_lone_tap_where_the_error_is_taken_is_named(error_at: str) -> None:
    head = [nn.Identity(), nn.Linear(4, 3)] if error_at else []
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), bpfree.Tap(), *head)
    attachment = bpfree.attach(model, bpfree.DFA(), taps=["2"], error_at=error_at)
    with pytest.raises(errors.ErrorPlacementError, match="only tap that was reached, '2', stands where the error is"):
        attachment.model(torch.randn(5, 4)).sum().backward()


def fail(module, args, output):
    raise KeyError("of the user's hook")


OF_EVERY_KIND = [
    bpfree.DFA(),
    bpfree.FDFA(),
    bpfree.DKP(),
    bpfree.FA(),
    bpfree.PEPITA(),
    bpfree.ForwardGradient("weights"),
]


@pytest.mark.parametrize("rule", OF_EVERY_KIND, ids=str)
def test_an_error_in_a_hook_on_the_model_is_the_only_one(rule, recwarn):
    """Torch still calls the hooks behind it, and warns of what they raise: none of ours does."""
    model = mlp()
    model.register_forward_hook(fail)
    bpfree.attach(model, rule, verify=False)
    with pytest.raises(KeyError, match="of the user's hook"):
        model(X)
    assert not [warning for warning in recwarn if "always_call" in str(warning.message)]


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("rule", [bpfree.DFA(), bpfree.FDFA(), bpfree.DKP()], ids=str)
def test_a_refusal_at_the_models_output_is_the_only_one(rule, verify, recwarn):
    model = Embeds(lambda o: {"classes": o.argmax(-1)})
    bpfree.attach(model, rule, verify=verify)
    with pytest.raises(errors.ErrorPlacementError, match="dict"):
        model(X)
    assert not [warning for warning in recwarn if "always_call" in str(warning.message)]


@pytest.mark.parametrize("rule", OF_EVERY_KIND, ids=str)
def test_a_pass_while_another_error_is_handled_is_a_pass_as_all_others(rule):
    found = []
    for handled in (False, True):
        torch.manual_seed(0)
        model = mlp()
        bpfree.attach(model, rule, seed=0)
        for _ in range(2):
            try:
                if handled:
                    raise MemoryError
                output = model(X)
            except MemoryError:  # as where a batch that was too large is run anew, in parts
                output = model(X)
            F.cross_entropy(output, torch.arange(5) % 4).backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("rule", [bpfree.DFA(), bpfree.PEPITA()], ids=str)
def test_what_is_refused_at_the_end_of_a_pass_is_so_while_another_error_is_handled(rule):
    model = nn.ModuleDict({"body": mlp(), "other": nn.Linear(6, 4)})
    model.forward = lambda x: model["body"](x)
    bpfree.attach(model, rule, error_at="other")
    try:
        raise MemoryError
    except MemoryError:
        with pytest.raises(errors.ErrorPlacementError, match="'other' was not reached"):
            model(X)


@pytest.mark.parametrize(
    "rule",
    [
        *(bpfree.DFA(), bpfree.FDFA(), bpfree.FA(), bpfree.WeightMirror()),
        *(bpfree.PEPITA(), bpfree.ForwardGradient("weights")),
    ],
    ids=str,
)
@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.filterwarnings("ignore:an argument of the model wants a gradient")
def test_a_transform_of_torch_func_is_refused_by_name(rule, is_known):
    model, x = mlp(), torch.randn(5, 6)
    expected = torch.func.jacrev(model)(x)
    attachment = bpfree.attach(model, rule)
    if is_known:
        model(x).square().sum().backward()
    with pytest.raises(errors.LoopError, match=r"transform of torch\.func"):
        torch.func.jacrev(model)(x)
    with attachment.paused():
        torch.testing.assert_close(torch.func.jacrev(model)(x), expected)
    model(x).square().sum().backward()  # the next pass is as all others
