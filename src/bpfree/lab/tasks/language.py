"""Language modelling by any learning rule: the next token, and perplexity."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection

from bpfree.lab.data.text import Text
from bpfree.lab.errors import RunError
from bpfree.lab.settings import RunSettings
from bpfree.lab.tasks.learner import Learner


class LanguageModel(Learner):
    """A model that learns which token comes next from its cross-entropy.

    Args:
        model: Maps tokens ``(N, T)`` to logits ``(N, T, vocabulary)``; those at t may not depend on later tokens.
        run: The rule, its optimizer, where feedback enters, and the seed of the feedback.
        splits: The text.
    """

    def __init__(self, model: nn.Module, run: RunSettings, splits: Text) -> None:
        super().__init__(model, run)
        self._vocabulary = splits.classes

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        """Return the mean cross-entropy of logits ``(N, T, vocabulary)`` and the tokens that follow, ``(N, T)``.

        Raises:
            RunError: The model gives something else.
        """
        if output.shape != (*y.shape, self._vocabulary):
            raise RunError(
                f"the model gives {tuple(output.shape)} for tokens of shape {tuple(y.shape)}; a language model gives "
                f"one logit for each token of the vocabulary: {(*y.shape, self._vocabulary)}."
            )
        return F.cross_entropy(output.flatten(0, 1), y.flatten())

    def values(self, measures: MetricCollection) -> dict[str, float]:
        """Return mean loss, and perplexity: its exponential. Both are per token, whatever the batches."""
        loss = measures["loss"].compute().double()
        # torch's exponential, which has infinity for a loss that has exploded; math's would raise.
        return {"loss": float(loss), "perplexity": float(loss.exp())}
