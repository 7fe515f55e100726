"""What is computed for tables without training, against mathematics."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

import bpfree
from bpfree.lab.settings.model import ModelSettings
from bpfree.lab.studies.feedback_update import cosine_after
from bpfree.lab.studies.forward_gradient import forward_gradient_cosine
from bpfree.lab.studies.memory import feedback_memory, tap_widths


def test_the_memory_of_feedback_is_that_of_the_layers_sizes() -> None:
    # Simonyan and Zisserman's configuration D on 224 x 224: channels and edges behind each convolution or its pooling.
    behind = [(64, 224), (64, 112), (128, 112), (128, 56), (256, 56), (256, 56), (256, 28)]
    behind += [(512, 28), (512, 28), (512, 14), (512, 14), (512, 14), (512, 7)]
    sizes = [channels * edge**2 for channels, edge in behind] + [4096, 4096]
    vgg = ModelSettings("VGG16", {"form": 224})
    assert tap_widths(vgg, [3, 224, 224], vgg.suggestion("taps")) == sizes
    # Before the poolings every convolution of a block has the block's edge.
    before = [64 * 224**2] * 2 + [128 * 112**2] * 2 + [256 * 56**2] * 3 + [512 * 28**2] * 3 + [512 * 14**2] * 3
    assert tap_widths(vgg, [3, 224, 224], ["conv?_?.act", "fc?.act"]) == [*before, 4096, 4096]


def test_what_is_computed_is_what_is_allocated() -> None:
    found = feedback_memory("CNN", [3, 32, 32], 10, allocated_classes=7)
    sizes = [32 * 15 * 15, 64 * 7 * 7, 64 * 3 * 3, 128]
    assert found["naive_megabytes"] == pytest.approx(4 * 10 * sum(sizes) / 1e6)
    assert found["shared_megabytes"] == pytest.approx(4 * 10 * max(sizes) / 1e6)
    assert found["ratio"] == pytest.approx(sum(sizes) / max(sizes))
    assert found["naive_allocated"] == found["shared_allocated"] == 1


DRAWS, WIDTH = [1, 8, 64], 128


@pytest.fixture(scope="module")
def cosines() -> list[dict[str, float]]:
    """Of one hidden layer and one sample, for 40 seeds."""
    return [forward_gradient_cosine(1, 1, DRAWS, seed, WIDTH) for seed in range(40)]


@pytest.mark.parametrize("draws", DRAWS)
def test_the_cosine_of_a_forward_gradient_is_that_of_random_directions(
    cosines: list[dict[str, float]], draws: int
) -> None:
    # One hidden layer, one sample: the estimate is (g . u) u behind ReLU, whose derivative keeps k of the n directions.
    # With g and u cut to those k, K averages have |ĝ|^2 = |g|^2 (1 + (k + 1) / K) and g . ĝ = |g|^2 in the mean; the
    # part of g . u that ReLU cuts away is missing in the gradient as well, and is noise: |g_n|^2 / |g_k|^2 times k / K.
    found = statistics.fmean(each[f"draws {draws}"] for each in cosines)
    kept = WIDTH / 2
    predicted = 1 / math.sqrt(1 + (2 * kept + 1) / draws)
    assert found == pytest.approx(predicted, abs=0.06)


def test_more_samples_and_fewer_layers_make_a_forward_gradient_better() -> None:
    def cosine(depth: int, batch: int) -> float:
        return statistics.fmean(forward_gradient_cosine(depth, batch, [20], seed, 32)["draws 20"] for seed in range(5))

    assert cosine(2, 4) < cosine(2, 256)
    assert cosine(8, 256) < cosine(2, 256)


def test_orthogonal_gradients_gain_nothing_from_a_batch() -> None:
    # Gradient and noise of the mean over N samples both fall as 1 / sqrt(N) where no two samples agree.
    found = [
        statistics.fmean(forward_gradient_cosine(1, batch, [8], s, 64, centred=True)["draws 8"] for s in range(20))
        for batch in (1, 16)
    ]
    assert found[1] == pytest.approx(found[0], rel=0.2)


def test_equation_6_as_printed_turns_nothing() -> None:
    generator = torch.Generator().manual_seed(3)
    matrix, gradient = torch.randn(2, 4, 4, generator=generator, dtype=torch.float64)
    begin = float((matrix * gradient).sum() / (matrix.norm() * gradient.norm()))
    assert cosine_after(0, 3)["cosine"] == pytest.approx(begin)
    assert cosine_after(200, 3, literal=True)["cosine"] == pytest.approx(begin, abs=1e-12)


def test_noise_makes_a_matrix_wander_and_not_align() -> None:
    found = [cosine_after(300, seed, literal=True, noise=0.05)["cosine"] for seed in range(40)]
    # A random direction in 16 dimensions: mean 0, standard deviation 1/4.
    assert statistics.fmean(found) == pytest.approx(0, abs=3 * 0.25 / math.sqrt(40))
    assert statistics.stdev(found) == pytest.approx(0.25, abs=0.1)


@pytest.mark.parametrize("size", [4, 7])
def test_the_gradient_step_follows_its_flow(size: int) -> None:
    # In the limit of small steps c' = (1 - c)(1 - c^2), whatever the size.
    step, steps = 1e-3, 1500
    begin = flow = cosine_after(0, 5, size=size)["cosine"]
    for _ in range(steps):
        flow += step * (1 - flow) * (1 - flow**2)
    assert cosine_after(steps, 5, step=step, size=size)["cosine"] == pytest.approx(flow, abs=2e-3)
    assert flow > begin + 0.3


def test_the_update_is_that_of_the_rule_in_training() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4))
    rule = bpfree.GrAPE(step=0.05, estimate="batch")
    attachment = bpfree.attach(model, rule, seed=0, example_inputs=torch.zeros(2, 6))
    (name,) = [key for key in dict(attachment.feedback.named_buffers()) if "1" in key]
    before = attachment.feedback[name].clone()
    seen: list[torch.Tensor] = []
    direction = bpfree.GrAPE.direction
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpfree.GrAPE, "direction", lambda self, B, G: seen.append(G) or direction(self, B, G))
        torch.nn.functional.cross_entropy(model(torch.randn(32, 6)), torch.randint(4, (32,))).backward()
    (G,) = seen
    moved = before - 0.05 * direction(rule, before, G)
    expected = moved * before.norm() / moved.norm()
    assert torch.allclose(attachment.feedback[name], expected, atol=1e-6)
