"""The estimating pass against Jacobians from autograd."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bpfree
from bpfree.feedback.spatial import cosine_modes
from bpfree.forward_mode.estimate import Estimator
from bpfree.forward_mode.perturbations import Draw, perturbation
from bpfree.mechanisms.direct.mechanism import DirectMechanism
from bpfree.rerun.snapshot import preserved

CLASSES = 3
TIMES = 20
"""Draws of an estimate in one pass."""


def mlp(width=9, depth=3, activation=nn.Tanh):
    sizes = [5, *[width] * depth]
    layers = [part for i in range(depth) for part in (nn.Linear(sizes[i], width), activation())]
    return nn.Sequential(*layers, nn.Linear(width, CLASSES))


def convnet():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Dropout(0.3),
        nn.Conv2d(4, 3, 3, stride=2, padding="valid", padding_mode="circular"), nn.Tanh(),
        nn.Flatten(), nn.Linear(3, CLASSES),
    )  # fmt: skip


class Attended(nn.Module):
    """One tap, self-attention over the tokens, another tap."""

    def __init__(self):
        super().__init__()
        self.first, self.qkv, self.head = nn.Linear(4, 4), nn.Linear(4, 12), nn.Linear(4, CLASSES)
        self.tap1, self.tap2 = bpfree.Tap(), bpfree.Tap()

    def forward(self, x):
        h = self.tap1(torch.tanh(self.first(x)))
        q, k, v = self.qkv(h).unsqueeze(1).chunk(3, -1)
        h = self.tap2(h + F.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1))
        return self.head(h)


class Twice(nn.Module):
    """One layer and tap reached three times."""

    def __init__(self):
        super().__init__()
        self.cell, self.tap, self.head = nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, CLASSES)

    def forward(self, x):
        for _ in range(3):
            x = self.tap(self.cell(x))
        return self.head(x)


def observed(model, x, seed=4, perturbations="normal", modes=None, **options):
    """Everything about one estimating pass behind one forward pass, and the attachment's sites."""
    rule = bpfree.FDFA(perturbations=perturbations, feedback=bpfree.Feedback(shared=False, modes=modes))
    attachment = bpfree.attach(model, rule, **options)
    model(x)
    mechanism = attachment.mechanism
    with preserved(model):
        estimator = Estimator(mechanism.plan, perturbations, rule.feedback.form)
        start = estimator.begin(((x,), {}), keep=True)
        response = estimator.run(((x,), {}), start, mechanism.sites, seed)
        seen = response.observation(mechanism.sites[0].error.of(response.tangents[0][""], CLASSES), mechanism.sites)
    attachment.detach()
    return seen, mechanism.sites


def jacobians(model, x, sites):
    """d output / d tap as autograd has it: one ``(output numbers, tap numbers)`` matrix a tap, nothing cut."""
    outputs = []
    names = dict(model.named_modules())
    modules = dict.fromkeys(names[site.module] for site in sites)

    def keep(module, args, output):
        # What an in-place operation behind the tap overwrites is a copy.
        outputs.append(output)
        return output.clone()

    handles = [module.register_forward_hook(keep) for module in modules]
    with preserved(model):  # which empties the list again
        output = model(x)
        kept = list(outputs)
    for handle in handles:
        handle.remove()
    rows = [torch.autograd.grad(number, kept, retain_graph=True) for number in output.flatten()]
    return [torch.stack([row[tap].flatten() for row in rows]) for tap in range(len(kept))]


SUBJECTS = {
    "tanh": (mlp, (6, 5)),
    "relu in place": (lambda: mlp(activation=lambda: nn.ReLU(inplace=True)), (6, 5)),
    "convolution": (convnet, (4, 2, 8, 8)),
    "one tap three times": (Twice, (6, 5)),
}


@pytest.mark.parametrize("kind", ["normal", "rademacher"])
@pytest.mark.parametrize("name", SUBJECTS)
def test_the_change_is_the_jacobians_times_the_perturbations(double, name, kind):
    build, shape = SUBJECTS[name]
    model, x = build(), torch.randn(shape)
    seen, sites = observed(model, x, perturbations=kind)
    assert [site.name for site in seen.sites] == [site.name for site in sites]
    expected = sum(J @ v.flatten() for J, v in zip(jacobians(model, x, sites), seen.perturbations, strict=True))
    torch.testing.assert_close(seen.change.flatten(), expected, rtol=1e-12, atol=1e-12)


def test_fused_attention_steps_aside_for_the_estimating_pass_alone(double):
    model, x = Attended(), torch.randn(2, 6, 4)
    used = []
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            used.append(func.overloadpacket)
            return func(*args, **(kwargs or {}))

    bpfree.attach(model, bpfree.FDFA(), batch_dims=2)
    for _ in range(3):
        with Watch():
            model(x).sum().backward()
    # The rule's own passes keep it; one more was the attempt that failed.
    assert used.count(fused) >= 3


def test_attention_is_differentiated_exactly(double):
    model, x = Attended(), torch.randn(2, 6, 4)
    seen, sites = observed(model, x, batch_dims=2)
    expected = sum(J @ v.flatten() for J, v in zip(jacobians(model, x, sites), seen.perturbations, strict=True))
    torch.testing.assert_close(seen.change.flatten(), expected, rtol=1e-12, atol=1e-12)


def estimates(model, x, draws, kind="normal", **options):
    """G of every tap for ``draws`` seeds, shape ``(draws, c, m)``."""
    rule = bpfree.FDFA(perturbations=kind, feedback=bpfree.Feedback(shared=False, modes=options.pop("modes", None)))
    attachment = bpfree.attach(model, rule, **options)
    mechanism: DirectMechanism = attachment.mechanism
    estimator, found = Estimator(mechanism.plan, kind, rule.feedback.form), []
    # Every row has perturbations of its own: the same batch several times over is as many draws in one pass.
    repeated = x.repeat(TIMES, *[1] * (x.dim() - 1))
    model(repeated)
    for seed in range(draws // TIMES):
        start = estimator.begin(((repeated,), {}), keep=True)
        response = estimator.run(((repeated,), {}), start, mechanism.sites, seed)
        seen = response.observation(mechanism.sites[0].error.of(response.tangents[0][""], CLASSES), mechanism.sites)
        rows = seen.change.unflatten(0, (TIMES, -1))
        found.append([rows.mT @ v.unflatten(0, (TIMES, -1)) / rows.shape[1] for v in seen.perturbations])
    model(x)
    attachment.detach()
    return [torch.cat(parts) for parts in zip(*found, strict=True)], mechanism.sites


def mean_jacobian(J, rows, c):
    """The mean over rows of the diagonal blocks of ``J``, shape ``(c, n)``, and the mean of their squared norms."""
    blocks = J.reshape(rows, c, rows, -1)
    own = torch.stack([blocks[b, :, b] for b in range(rows)])
    return own.mean(0), own.square().sum((1, 2)).mean()


def assert_unbiased(draws, expected):
    """Every entry's mean lies within 5 standard errors of what is expected.

    An entry of the mean of R draws is normal to good approximation, so one in 1.7 million would lie outside by chance.
    """
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - expected).abs() <= 5 * error + 1e-12).all()
    # The bound is tight enough to mean something.
    assert error.norm() < 0.3 * expected.norm()


@pytest.mark.parametrize("kind", ["normal", "rademacher"])
def test_the_estimate_is_unbiased(double, kind):
    model, x = mlp(), torch.randn(8, 5)
    found, sites = estimates(model, x, 3000, kind)
    for draws, J in zip(found, jacobians(model, x, sites), strict=True):
        assert_unbiased(draws, mean_jacobian(J, 8, CLASSES)[0])


def test_the_estimate_is_unbiased_on_a_convolution(double):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Conv2d(2, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))
    x = torch.randn(8, 1, 6, 6)
    found, sites = estimates(model, x, 3000)
    exact = jacobians(model, x, sites)
    for draws, J in zip(found, exact, strict=True):
        assert_unbiased(draws, mean_jacobian(J, 8, CLASSES)[0])
    # Low rank in space: the same on the span of the modes. Channel-shared is one mode.
    for modes in (1, 3):
        found, _ = estimates(model, x, 2000, modes=modes)
        for draws, J, site in zip(found, exact, sites, strict=True):
            basis = cosine_modes(site.features[1:], modes)
            expected = mean_jacobian(J, 8, CLASSES)[0].reshape(CLASSES, site.features[0], -1) @ basis.T
            assert_unbiased(draws, expected.flatten(1))


def test_shared_over_tokens_the_estimate_is_the_mean_diagonal_block(double):
    model, x = Attended(), torch.randn(3, 4, 4)
    found, sites = estimates(model, x, 3000, batch_dims=2)
    for draws, J in zip(found, jacobians(model, x, sites), strict=True):
        assert_unbiased(draws, mean_jacobian(J, 12, CLASSES)[0])


def test_the_noise_of_the_estimate_follows_its_law(double):
    """E|G - J|^2 = n sum_k |J_k|^2 / N for normal perturbations, up to the spread of J over samples."""
    model, x = mlp(width=40, depth=3), torch.randn(16, 5)
    found, sites = estimates(model, x, 400)
    exact = [mean_jacobian(J, 16, CLASSES) for J in jacobians(model, x, sites)]
    total = sum(square for _, square in exact)
    for draws, (J, _), site in zip(found, exact, sites, strict=True):
        measured = float((draws - J).square().sum((1, 2)).mean())
        assert measured == pytest.approx(float(site.width * total / 16), rel=0.15)


@pytest.mark.parametrize("beta", [0.05, 0.2])
def test_the_steady_cosine_follows_its_law(double, beta):
    """1/sqrt(1 + rho), rho = beta/(2 - beta) n sum_k |J_k|^2 / (N |J_l|^2), for an exponential average."""
    model, x = mlp(width=40, depth=3), torch.randn(32, 5)
    attachment = bpfree.attach(model, bpfree.FDFA(beta=beta, debiased=False), example_inputs=x)
    sites = attachment.mechanism.sites
    with attachment.paused():
        exact = [mean_jacobian(J, 32, CLASSES) for J in jacobians(model, x, sites)]
    cosines = []
    for step in range(int(30 / beta)):
        model(x).sum().backward()
        if step * beta > 6:
            B = [attachment.feedback.matrix(site).flatten() for site in sites]
            cosines.append([F.cosine_similarity(b, J.flatten(), 0) for b, (J, _) in zip(B, exact, strict=True)])
    total = sum(square for _, square in exact)
    for index, (J, _) in enumerate(exact):
        rho = beta / (2 - beta) * 40 * total / (32 * J.square().sum())
        measured = float(torch.tensor([cosine[index] for cosine in cosines]).mean())
        assert measured == pytest.approx(float(1 / torch.sqrt(1 + rho)), rel=0.15)


@pytest.mark.parametrize("kind", ["normal", "rademacher"])
@pytest.mark.parametrize("rows", [3, 300])
def test_what_writes_to_a_tangent_in_place_leaves_its_perturbation_alone(kind, rows):
    draw = Draw((rows, 200), kind, 7, torch.float32, torch.device("cpu"))
    make, numbers = draw.keep()
    assert torch.equal(make(), draw.make())
    numbers.mul_(2)
    assert torch.equal(make(), draw.make())


def test_rademacher_perturbations_are_fair_signs():
    drawn = perturbation((1000, 99), "rademacher", torch.empty(0), torch.Generator().manual_seed(0))
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(drawn.mean())) < 5 / math.sqrt(99_000)
    columns = drawn.T @ drawn / 1000
    assert float((columns - torch.eye(99)).abs().max()) < 6 / math.sqrt(1000)


def packed(rule, model, x):
    """How many tensors autograd saves in one step's forward pass."""
    count = 0

    def pack(tensor):
        nonlocal count
        count += 1
        return tensor

    attachment = bpfree.attach(model, rule, example_inputs=x)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x).sum()
    attachment.detach()
    return count


def test_nothing_of_the_estimate_is_saved_for_a_backward_pass():
    x = torch.randn(4, 2, 8, 8)
    assert packed(bpfree.GrAPE(), convnet(), x) == packed(bpfree.DFA(), convnet(), x)


def test_the_pass_leaves_no_trace_in_statistics_and_random_numbers():
    states = []
    for rule in (bpfree.DFA(), bpfree.GrAPE()):
        torch.manual_seed(1)
        model, x = convnet(), torch.randn(4, 2, 8, 8)
        with bpfree.attach(model, rule):
            model(x).sum().backward()
        states.append([*model.buffers(), torch.rand(3)])
    for ours, theirs in zip(*states, strict=True):
        assert torch.equal(ours, theirs)


def test_a_layer_without_a_forward_derivative_is_named():
    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.act, self.head = nn.Linear(4, 16), nn.Tanh(), nn.Linear(9, CLASSES)
            self.resample = Resample()

        def forward(self, x):
            return self.head(self.resample(self.act(self.first(x))))

    class Resample(nn.Module):
        def forward(self, h):
            grid = torch.linspace(-1, 1, 18).reshape(1, 3, 3, 2).expand(len(h), -1, -1, -1)
            return F.grid_sample(h.reshape(-1, 1, 4, 4), grid, align_corners=False).flatten(1)

    model = Folded()
    bpfree.attach(model, bpfree.FDFA())
    with pytest.raises(bpfree.errors.ForwardDerivativeError, match=r"'resample' \(Resample\).*taps=.*bpfree\.DKP"):
        model(torch.randn(2, 4))
    assert bpfree.attach(Folded(), bpfree.DKP(), example_inputs=torch.randn(2, 4))


class Louder(nn.Module):
    """The k-th pass gives k times its output."""

    def __init__(self):
        super().__init__()
        self.below, self.tap, self.head = nn.Linear(4, 1), nn.Tanh(), nn.Linear(1, CLASSES)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x):
        self.passes += 1
        return self.head(self.tap(self.below(x))) * self.passes


def test_the_pass_that_is_estimated_is_the_one_that_ran(double):
    # One feature and random signs: v v = 1, so that G is the Jacobian itself.
    model = Louder()
    attachment = bpfree.attach(model, bpfree.FDFA(beta=1.0, debiased=False), taps=["tap"])
    for k in (1, 2, 3):
        model(torch.randn(5, 4)).sum().backward()
        torch.testing.assert_close(attachment.feedback["tap:1"], model.head.weight.detach() * k)
