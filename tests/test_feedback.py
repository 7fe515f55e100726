"""How feedback matrices are drawn, scaled, shared and stored."""

import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bpfree
from bpfree.mechanisms.direct import layouts
from support.by_hand import assert_same


def attached(feedback, widths=(30, 50, 20), c=10, seed=0):
    sizes = (8, *widths)
    parts = [part for pair in zip(sizes, widths, strict=False) for part in (nn.Linear(*pair), nn.Tanh())]
    model = nn.Sequential(*parts, nn.Linear(widths[-1], c))
    rule = bpfree.DFA(feedback=feedback)
    return model, bpfree.attach(model, rule, seed=seed, example_inputs=torch.randn(2, 8))


def test_memory_is_that_of_the_widest_tap():
    _, shared = attached(bpfree.Feedback())
    _, own = attached(bpfree.Feedback(shared=False))
    _, none = attached(bpfree.Feedback(stored=False))
    assert sum(b.numel() for b in shared.buffers()) == 10 * 50
    assert sum(b.numel() for b in own.buffers()) == 10 * (30 + 50 + 20)
    assert list(none.buffers()) == []


@pytest.mark.parametrize(("distribution", "variance"), [("normal", 1.0), ("uniform", 1 / 3)])
@pytest.mark.parametrize("density", [1.0, 0.25])
def test_entries_have_the_moments_of_their_distribution(distribution, variance, density):
    n = 400_000
    U = bpfree.Feedback(distribution=distribution, density=density).draw(torch.empty(40, n // 40), seed=1).double()
    # Fourth moments: normal 3, uniform 1/5; a mask at `density` divides them by it. Bounds are 5 standard errors.
    fourth = {"normal": 3.0, "uniform": 1 / 5}[distribution] / density
    assert abs(U.mean()) < 5 * math.sqrt(variance / n)
    assert abs(U.square().mean() - variance) < 5 * math.sqrt((fourth - variance**2) / n)
    assert abs((U != 0).double().mean() - density) <= 5 * math.sqrt(density * (1 - density) / n)
    if distribution == "uniform":
        assert U.abs().max() <= 1 / math.sqrt(density)


@pytest.mark.parametrize("normalization", ["launay2019", "launay2020"])
def test_normalized_signals_have_the_printed_size(normalization):
    # Row norms: launay2019 sum over n of 1/(n c) = 1/c in expectation; launay2020 (1/3) sum over n of 1/n = 1/3.
    _, attachment = attached(bpfree.Feedback(normalization=normalization), widths=(2000, 900), c=10)
    for site in attachment.mechanism.sites:
        squares = attachment.feedback.matrix(site).square().sum(1).mean()
        assert squares == pytest.approx({"launay2019": 1 / 10, "launay2020": 1 / 3}[normalization], rel=0.05)


def test_defaults_take_the_distribution_of_the_normalization():
    for normalization, bounded in [
        ("launay2019", False),
        ("launay2020", True),
        ("launay2020-code", True),
        ("none", False),
    ]:
        U = bpfree.Feedback(normalization=normalization).draw(torch.empty(10, 1000), seed=0)
        assert (U.abs().max() <= 1) == bounded


def test_a_narrow_matrix_is_a_prefix_of_a_wide_one():
    feedback = bpfree.Feedback(density=0.5)
    wide = feedback.draw(torch.empty(3, 9000), seed=5)
    assert torch.equal(feedback.draw(torch.empty(3, 5000), seed=5), wide[:, :5000])
    assert torch.equal(feedback.draw(torch.empty(3, 4096), seed=5, first=4096), wide[:, 4096:8192])
    assert not torch.equal(feedback.draw(torch.empty(3, 5000), seed=6), wide[:, :5000])


@pytest.mark.parametrize("shared", [True, False])
def test_regenerated_feedback_is_the_stored_one(shared):
    x, y = torch.randn(6, 8), torch.randint(0, 10, (6,))
    grads = []
    for stored in (True, False):
        torch.manual_seed(2)
        model, _ = attached(bpfree.Feedback(shared=shared, stored=stored, density=0.5), widths=(30, 5000, 20), seed=4)
        F.cross_entropy(model(x), y).backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    assert_same(grads[1], grads[0], tolerance=1e-5)


def test_precisions_share_their_numbers():
    feedback = bpfree.Feedback(normalization="launay2019")
    single = feedback.draw(torch.empty(10, 20), seed=1)
    assert torch.equal(feedback.draw(torch.empty(10, 20, dtype=torch.float64), seed=1).float(), single)


def test_equal_widths_share_one_signal_tensor_that_lives_no_longer_than_needed():
    _, attachment = attached(bpfree.Feedback(), widths=(30, 30, 20))
    signals = attachment.feedback(torch.randn(4, 10), attachment.mechanism.sites)
    narrow, second, first = signals[2], signals[1], signals[0]
    assert first is second
    assert first.data_ptr() != narrow.data_ptr()
    kept = weakref.ref(first)
    del first, second
    assert kept() is None, "all taps have had it, so nothing should hold it"


@pytest.mark.parametrize("feedback", [bpfree.Feedback(), bpfree.Feedback(shared=False)], ids=["shared", "own"])
def test_a_convolutional_step_takes_no_more_memory_than_backpropagation(feedback):
    # Signals of all widths at once would add a sixth on this network.
    from bpfree.lab.models.cnn import CNN
    from bpfree.lab.time_and_memory import peak_bytes

    x, y = torch.randn(16, 3, 32, 32), torch.randint(0, 10, (16,))

    def peak(rule):
        model = CNN((3, 32, 32), 10)
        bpfree.attach(model, rule, example_inputs=x)
        F.cross_entropy(model(x), y).backward()
        model.zero_grad()
        return peak_bytes(lambda: F.cross_entropy(model(x), y).backward())

    assert peak(bpfree.DFA(feedback=feedback)) <= 1.02 * peak(bpfree.BP())


@pytest.fixture(params=["one signal", "all at once", "just in time", "streaming"])
def delivered(request, monkeypatch):
    """The widths of a net whose signals are made in this way, and the options of ``attach``."""
    if request.param == "just in time":  # however small they are
        monkeypatch.setattr(layouts, "_FEW", 0)
    return (30, 30, 30) if request.param == "one signal" else (30, 50, 20), {"streaming": request.param == "streaming"}


def hooked_gradient(delivered, hook, change=lambda loss: loss):
    """The gradient of the layer below tap 3, whose output ``hook`` gets in the forward pass, before the rule's hook."""
    widths, options = delivered
    torch.manual_seed(3)
    model, attachment = attached(bpfree.Feedback(), widths=widths)
    attachment.detach()
    model[3].register_forward_hook(lambda module, args, out: hook(out))
    bpfree.attach(model, bpfree.DFA(), **options)
    x, y = torch.randn(6, 8), torch.randint(0, 10, (6,))
    change(F.cross_entropy(model(x), y)).backward()
    return model[2].weight.grad


def test_another_consumer_of_a_tap_keeps_its_gradient(delivered):
    if delivered[1]["streaming"]:
        pytest.skip("streaming refuses what keeps a graph")

    # An auxiliary loss on a hidden activation, taken by a hook that came before the rule's.
    def gradient(with_output, with_auxiliary):
        seen = []
        return hooked_gradient(
            delivered, seen.append, lambda loss: with_output * loss + with_auxiliary * seen[-1].square().mean()
        )

    both = gradient(1.0, 1.0)
    torch.testing.assert_close(both, gradient(1.0, 0.0) + gradient(0.0, 1.0))
    assert gradient(0.0, 1.0).abs().max() > 0


def test_a_hook_of_the_models_on_a_taps_output_sees_its_signal(delivered):
    def halved(out):
        if out.requires_grad:
            out.register_hook(lambda signal: 0.5 * signal)

    plain = hooked_gradient(delivered, lambda out: None)
    assert plain.abs().max() > 0
    torch.testing.assert_close(hooked_gradient(delivered, halved), 0.5 * plain)


class QuantizedProjector(nn.Module):
    """A simulated co-processor: a random matrix of its own, 8-bit read-out."""

    def __init__(self, c, width):
        super().__init__()
        self.register_buffer("medium", torch.randn(c, width))

    def forward(self, error, sites):
        signals = error @ self.medium
        step = signals.abs().max() / 127
        signals = (signals / step).round() * step
        return [signals[:, : site.width] for site in sites]


@pytest.mark.parametrize("shared", [True, False])
def test_a_matrix_that_is_gone_is_drawn_again_and_one_that_does_not_fit_is_refused(shared):
    """Between two passes of one shape, too, the matrices may change."""
    model, attachment = attached(bpfree.Feedback(shared=shared))
    x, feedback = torch.randn(2, 8), attachment.feedback
    for _ in range(2):
        model(x).sum().backward()
    before = {name: feedback[name].clone() for name in feedback}
    name = next(iter(before))
    del feedback[name]
    model(x).sum().backward()
    torch.testing.assert_close(feedback[name], before[name], rtol=0, atol=0)
    feedback[name] = torch.randn(10, 7)
    with pytest.raises(bpfree.errors.StateError, match=r"shape \(10, 7\)"):
        model(x)


def test_a_module_projects_and_is_saved_with_the_attachment():
    projector = QuantizedProjector(10, 50)
    model, attachment = attached(projector)
    F.cross_entropy(model(torch.randn(4, 8)), torch.randint(0, 10, (4,))).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    saved = [value for value in attachment.state_dict().values() if value.shape == (10, 50)]
    assert len(saved) == 1
    assert torch.equal(saved[0], projector.medium)
    assert "QuantizedProjector" in str(attachment)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda e, sites: [e], "1 signals for "),
        (lambda e, sites: (e for _ in sites), r"has shape \(4, 10\); \(4, \d+\) is needed"),
        (lambda e, sites: [e.new_zeros(len(e), site.width).numpy() for site in sites], "ndarray, not a tensor"),
    ],
)
def test_a_projector_with_wrong_shapes_is_told(wrong, says):
    model, _ = attached(wrong)
    with pytest.raises(bpfree.errors.TapShapeError, match=says):
        model(torch.randn(4, 8)).sum().backward()


@pytest.mark.parametrize("feedback", [3, "shared", QuantizedProjector, bpfree.Feedback], ids=str)
def test_feedback_that_cannot_project_is_refused(feedback):
    with pytest.raises(bpfree.errors.OptionError, match="neither a bpfree"):
        attached(feedback)


@pytest.mark.parametrize(
    "options",
    [
        {"normalization": "launay"},
        {"distribution": "gauss"},
        {"density": 0.0},
        {"density": 1.5},
        {"modes": 1.5},
        {"spread": 1.5},
        {"max_bytes": 0},
    ],
    ids=str,
)
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(bpfree.errors.OptionError, match=next(iter(options))):
        bpfree.Feedback(**options)


def segmenter():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 1))


BIG = torch.zeros(1, 3, 128, 128)  # B would have 5 x 128 x 128 times 8 x 128 x 128 numbers, 40 GiB


@pytest.mark.parametrize("rule", [bpfree.DFA, bpfree.FDFA, bpfree.DKP], ids=lambda rule: rule.__name__)
def test_feedback_too_large_is_refused_before_it_is_allocated(rule):
    with pytest.raises(bpfree.errors.FeedbackSizeError, match=r"40.00 GiB.*'(all|1)' 40.00 GiB \(81920 x 131072\)"):
        bpfree.attach(segmenter(), rule(), example_inputs=BIG)


@pytest.mark.parametrize(
    ("feedback", "options"),
    [
        (bpfree.Feedback(modes=1), {}),
        (bpfree.Feedback(shared=False, modes=1), {}),
        (bpfree.Feedback(), {"sample_axes": {"error": (0, 2, 3), "*": (0, 2, 3)}}),
    ],
    ids=["one number a channel", "own", "an error for each position"],
)
def test_what_the_refusal_advises_serves(feedback, options):
    model = segmenter()
    bpfree.attach(model, bpfree.DFA(feedback=feedback), **options)
    F.cross_entropy(model(BIG), torch.zeros(1, 128, 128, dtype=torch.long)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_limit_is_the_users():
    widths = (30, 50, 20)
    every = 10 * sum(widths) * 4
    for feedback, size in [
        (bpfree.Feedback(shared=False, max_bytes=every), every),
        (bpfree.Feedback(max_bytes=10 * 50 * 4), 10 * 50 * 4),
        (bpfree.Feedback(shared=False, max_bytes=None), every),
        (bpfree.Feedback(stored=False, max_bytes=1), 0),
    ]:
        _, attachment = attached(feedback, widths)
        assert sum(buffer.numel() * 4 for buffer in attachment.buffers()) == size
    for feedback in (bpfree.Feedback(shared=False, max_bytes=every - 1), bpfree.Feedback(max_bytes=1999)):
        with pytest.raises(bpfree.errors.FeedbackSizeError, match="max_bytes=None lifts"):
            attached(feedback, widths)


def test_a_running_average_counts_as_a_second_matrix():
    def learns(rule):
        bpfree.attach(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), rule, example_inputs=torch.ones(2, 4))

    learns(bpfree.FDFA(feedback=bpfree.Feedback(shared=False, max_bytes=72)))
    learns(bpfree.GrAPE(feedback=bpfree.Feedback(shared=False, max_bytes=144)))
    with pytest.raises(bpfree.errors.FeedbackSizeError):
        learns(bpfree.GrAPE(feedback=bpfree.Feedback(shared=False, max_bytes=143)))
