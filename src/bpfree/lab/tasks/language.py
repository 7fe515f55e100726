"""Language modelling by any learning rule: the next token, and perplexity."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection

from bpfree.lab.data.batches import Streams
from bpfree.lab.data.text import NOT_COUNTED, Text
from bpfree.lab.errors import RunError
from bpfree.lab.models.hugging_face import CausalLM
from bpfree.lab.settings import RunSettings
from bpfree.lab.tasks.feed import Feed, sampled
from bpfree.lab.tasks.learner import Learner
from bpfree.lab.tasks.sampled_text import sampled_text
from bpfree.lab.tasks.task import Task


class LanguageModel(Learner):
    """A model that learns which token comes next from its cross-entropy.

    Args:
        model: Maps tokens ``(N, T)`` to logits ``(N, T, vocabulary)``; those at t may not depend on later tokens.
        run: The rule, its optimizer, where feedback enters, and the seed of the feedback.
        splits: The text.
    """

    def __init__(self, model: nn.Module, run: RunSettings, splits: Text) -> None:
        if isinstance(model, CausalLM):
            model.check_vocabulary(splits.vocabulary)
        super().__init__(model, run)
        self._vocabulary = splits.classes
        self._sampled = splits if run.details else None
        self._rest, self._words = splits.rest(), splits.words
        self._evaluated = len(splits.evaluation) * splits.evaluation.context
        self._loss_of_rest = 0.0
        self._word_perplexity: float | None = None

    @classmethod
    def feed(cls, settings: RunSettings, data: Text, task: Task) -> Feed:
        """Return the batches of a run, in the text's order."""
        if data.order == "shuffled":
            return sampled(settings, data, task)
        order = Streams(len(data.train), settings.batch_size, settings.length.steps)
        return sampled(settings, data, task, order)

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

    def on_validation_epoch_end(self) -> None:
        """Add up the loss of the few tokens that are in no whole sequence, for perplexity per word."""
        x, y = (part.to(self.device) for part in self._rest)
        if len(x):
            with self.autocast():
                logits = self(x).flatten(0, 1)
                summed = F.cross_entropy(logits, y.flatten(), ignore_index=NOT_COUNTED, reduction="sum")
            self._loss_of_rest = float(summed.detach())

    def measured(self) -> dict[str, float]:
        """Return the values measured since the last call, and perplexity per word.

        That is the exponential of the summed cross-entropy of all tokens of the evaluated part, divided by its number
        of words, whatever the tokens are; see :class:`bpfree.lab.data.text.Text` for what a word is.
        """
        found = super().measured()
        summed = found["eval_loss"] * self._evaluated + self._loss_of_rest
        self._word_perplexity = float(torch.tensor(summed / self._words, dtype=torch.float64).exp())
        return found | {"eval_word_perplexity": self._word_perplexity}

    def sample(self) -> dict[str, Any]:
        """Return ``sample``, a short text that the model writes, if the run keeps details."""
        return {} if self._sampled is None else {"sample": sampled_text(self.model, self._sampled)}

    def numbers(self, feed: Feed) -> dict[str, float | None]:
        """Return perplexity per word after the last evaluation, and the number of words."""
        return {"word_perplexity": self._word_perplexity, "words": self._words}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep perplexity per word: a run that was interrupted behind its last evaluation makes no other."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["word_perplexity"] = self._word_perplexity

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it from a checkpoint."""
        super().on_load_checkpoint(checkpoint)
        self._word_perplexity = checkpoint.get("word_perplexity")
