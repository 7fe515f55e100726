"""Text from a language model: one token after another, each drawn from what the model gives for the next."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bpfree.lab.data.text import Vocabulary
from bpfree.lab.errors import SettingsError

_KEPT = 16  # tokens before the next one, which its text may depend on
_HALF = "\ufffd"  # what stands for bytes that are no letter, maybe not yet


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The way in which the next token is drawn.

    Args:
        temperature: Logits are divided by it; 0 takes the likeliest token.
        top_k: Only so many of the likeliest tokens are drawn from; None for all.
        seed: Determines what is drawn.
    """

    temperature: float = 1.0
    top_k: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise SettingsError(f"--temperature {self.temperature} must be 0 or a positive number.")
        if self.top_k is not None and self.top_k < 1:
            raise SettingsError(f"--top-k {self.top_k} must be at least 1.")
        if not 0 <= self.seed < 2**63:
            raise SettingsError(f"--seed {self.seed} must lie between 0 and {2**63 - 1}.")


def next_token(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Draw a token.

    Args:
        logits: The model's logits of the next token, ``(vocabulary,)``.
        sampling: How it is drawn.
        generator: A CPU generator; greedy choices draw nothing.
    """
    logits = logits.detach().to("cpu", torch.float64)
    if sampling.temperature == 0:
        return int(logits.argmax())
    if sampling.top_k is not None and sampling.top_k < len(logits):
        kept = logits.topk(sampling.top_k)
        place = _drawn(kept.values, sampling.temperature, generator)
        return int(kept.indices[place])
    return _drawn(logits, sampling.temperature, generator)


def _drawn(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    # The largest becomes 0 first: divided by a tiny temperature, it would be infinite.
    probabilities = ((logits - logits.max()) / temperature).softmax(0)
    return int(torch.multinomial(probabilities, 1, generator=generator))


def continuation(model: nn.Module, prompt: Tensor, context: int, count: int, sampling: Sampling) -> Iterator[int]:
    """Yield the tokens that a model writes behind a prompt.

    The model runs in evaluation mode and without gradients, and is left in the mode that it was in. Nothing is drawn
    from torch's own random state.

    Args:
        model: Maps tokens ``(N, T)`` to logits ``(N, T, vocabulary)``.
        prompt: int64 ``(n,)``, at least one token.
        context: The model sees so many tokens at most: the last ones.
        count: The number of tokens to write.
        sampling: How they are drawn.
    """
    generator = torch.Generator().manual_seed(sampling.seed)
    device = next((weight.device for weight in model.parameters()), prompt.device)
    seen = prompt.to(device)
    for _ in range(count):
        seen = seen[-context:]
        token = next_token(_last_logits(model, seen), sampling, generator)
        seen = torch.cat([seen, seen.new_tensor([token])])
        yield token


@torch.no_grad()
def _last_logits(model: nn.Module, tokens: Tensor) -> Tensor:
    training = model.training
    model.eval()
    try:
        logits: Tensor = model(tokens[None])[0, -1]
    finally:
        model.train(training)
    return logits


def text_pieces(vocabulary: Vocabulary, prompt: Tensor, tokens: Iterable[int]) -> Iterator[str]:
    """Yield the text of tokens as they come; a letter that several tokens make is yielded when it is whole.

    Args:
        vocabulary: From tokens to text.
        prompt: The tokens before them, at least one: some tokenizers write the first word of a text in another way.
        tokens: The tokens.
    """
    seen = prompt[-_KEPT:]
    shown = text = vocabulary.decode_text(seen)
    for token in tokens:
        seen = torch.cat([seen, torch.tensor([token])])
        text = vocabulary.decode_text(seen)
        if not text.endswith(_HALF):
            yield text[len(shown) :]
            seen = seen[-_KEPT:]
            shown = text = vocabulary.decode_text(seen)
    if text != shown:  # it ends within a letter
        yield text[len(shown) :]
