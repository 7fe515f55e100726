"""A short text that a language model writes during training, for its record and report."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bpfree.lab.data.text import Text
from bpfree.lab.tasks.generation import Sampling, continuation, text_pieces

_PROMPT, _WRITTEN = 16, 48
_SAMPLING = Sampling(temperature=0.8, seed=0)


def sampled_text(model: nn.Module, text: Text) -> dict[str, Any]:
    """Continue the beginning of the evaluated text by 48 tokens, drawn with a fixed temperature and seed.

    The prompt has 16 tokens, or half of a shorter context. The generator is one of its own: training goes on as if
    nothing had been drawn.

    Returns:
        ``prompt`` and ``text`` as they are read, ``temperature`` and ``seed``.
    """
    context = text.train.context
    first, _ = text.evaluation.batch(torch.tensor([0]))
    prompt = first[0, : max(1, min(_PROMPT, context // 2))]
    written = continuation(model, prompt, context, _WRITTEN, _SAMPLING)
    return {
        "prompt": text.vocabulary.decode_text(prompt),
        "text": "".join(text_pieces(text.vocabulary, prompt, written)),
        "temperature": _SAMPLING.temperature,
        "seed": _SAMPLING.seed,
    }
