"""Text of a model, token by token: greedy, the k likeliest, and the temperature's distribution."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from bpfree.lab.errors import SettingsError
from bpfree.lab.models import CausalTransformer
from bpfree.lab.tasks.generation import Sampling, continuation, next_token

WORDS, CONTEXT = 40, 12


@pytest.fixture
def model() -> CausalTransformer:
    torch.manual_seed(0)
    made = CausalTransformer((CONTEXT,), WORDS, blocks=2, width=16, heads=2, hidden=32, dropout=0.5)
    for part in (made.tokens, made.positions, made.head):  # so that choices are far from uniform, and change
        nn.init.normal_(part.weight)
    return made


def drawn(logits: Tensor, times: int, **sampling: float) -> Tensor:
    """How often each token comes, as a part of all."""
    generator = torch.Generator().manual_seed(3)
    found = [next_token(logits, Sampling(**sampling), generator) for _ in range(times)]  # type: ignore[arg-type]
    return torch.bincount(torch.tensor(found), minlength=len(logits)) / times


@pytest.mark.parametrize("length", [1, 5, CONTEXT, CONTEXT + 7])
def test_temperature_zero_is_a_loop_by_hand(length: int, model: CausalTransformer) -> None:
    prompt = torch.arange(length) % WORDS
    found = list(continuation(model, prompt, CONTEXT, 20, Sampling(temperature=0)))
    model.eval()
    tokens = prompt.tolist()
    for _ in range(20):
        with torch.no_grad():
            logits = model(torch.tensor([tokens[-CONTEXT:]]))[0, -1]
        tokens.append(max(range(WORDS), key=lambda token: float(logits[token])))
    assert found == tokens[length:]
    assert len(set(found)) > 1


@pytest.mark.parametrize("k", [1, 3, WORDS, 10 * WORDS])
def test_only_the_k_likeliest_come(k: int, model: CausalTransformer) -> None:
    tokens = torch.tensor([5])
    for token in continuation(model, tokens, CONTEXT, 60, Sampling(temperature=3.0, top_k=k)):
        with torch.no_grad():
            logits = model.eval()(tokens[None, -CONTEXT:])[0, -1]
        assert int((logits > logits[token]).sum()) < k
        tokens = torch.cat([tokens, torch.tensor([token])])
    assert len(set(tokens.tolist())) > min(k, 3) / 2


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("k", [None, 4])
def test_tokens_come_as_often_as_the_softmax_says(temperature: float, k: int | None) -> None:
    """Pearson's chi-squared statistic of 4,000 draws: above the bound in one of 100,000 trials."""
    times = 4000
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -0.5, -1.0])
    weights = torch.exp(logits.double() / temperature)
    if k is not None:
        weights[k:] = 0
    expected = times * weights / weights.sum()
    found = times * drawn(logits, times, temperature=temperature, **({} if k is None else {"top_k": k}))
    assert not found[expected == 0].any()
    there = expected > 0
    statistic = float(((found - expected)[there] ** 2 / expected[there]).sum())
    degrees = int(there.sum()) - 1
    # Laurent and Massart 2000: the statistic exceeds this with probability exp(-x).
    x = math.log(1e5)
    assert statistic < degrees + 2 * math.sqrt(degrees * x) + 2 * x


def test_extreme_logits_and_temperatures_draw_the_likeliest() -> None:
    logits = torch.tensor([1e30, -1e30, 3e30])
    for temperature in (1e-300, 1e-3, 1.0):
        assert drawn(logits, 5, temperature=temperature)[2] == 1
    assert drawn(torch.tensor([-math.inf, 0.0]), 20)[0] == 0


def test_a_seed_determines_the_text_and_nothing_else_is_drawn(model: CausalTransformer) -> None:
    prompt = torch.tensor([1, 2])

    def written(seed: int) -> list[int]:
        return list(continuation(model, prompt, CONTEXT, 15, Sampling(seed=seed)))

    model.train()
    before = torch.get_rng_state()
    first = written(0)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    torch.rand(7)
    assert written(0) == first
    assert written(1) != first


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"temperature": math.nan}, {"top_k": 0}, {"seed": -1}])
def test_values_that_mean_nothing(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match=f"--{next(iter(wrong)).replace('_', '-')}"):
        Sampling(**wrong)  # type: ignore[arg-type]
