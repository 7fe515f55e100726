"""Perplexity per word: the summed cross-entropy of every token of the file, over its words."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from bpfree.lab.data.text import Text, TextSettings, load_text
from bpfree.lab.running.runs import run
from bpfree.lab.tasks.language import LanguageModel
from support import tiny_text


class Bigram(nn.Module):
    """Logits that depend on one token: what a token costs does not depend on the sequence that it is in."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.table, self.act = nn.Embedding(classes, classes), nn.Tanh()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.table(tokens)


def evaluated(text: Text, model: nn.Module) -> dict[str, float]:
    learner = LanguageModel(model, tiny_text.settings("BP", taps=None, error_at=None), text)
    learner.train_measures["loss"].update(0.0)  # it would warn that nothing was measured
    for start in range(0, len(text.evaluation), 4):
        index = torch.arange(start, min(start + 4, len(text.evaluation)))
        learner.validation_step(text.evaluation.batch(index))
    learner.on_validation_epoch_end()
    return learner.measured()


@pytest.mark.parametrize("context", [1, 5, 16, 23])
def test_every_token_of_the_file_counts_once(context: int, tmp_path: Path) -> None:
    tiny_text.folder(tmp_path)
    text = load_text(tmp_path, replace(tiny_text.HOW, context=context))
    torch.manual_seed(0)
    model = Bigram(text.classes)
    lines = tiny_text.lines(40, 1)
    tokens = text.vocabulary.encode(lines)
    before = torch.cat([torch.tensor([text.vocabulary.end_of_line]), tokens[:-1]])
    costs = -model.table.weight.detach().double().log_softmax(1)[before, tokens]
    found = evaluated(text, model)
    words = sum(len(line.split()) + 1 for line in lines)
    assert found["eval_word_perplexity"] == pytest.approx(math.exp(costs.sum() / words), rel=1e-5)
    whole = (len(tokens) - 1) // context * context
    assert found["eval_perplexity"] == pytest.approx(math.exp(costs[1 : whole + 1].mean()), rel=1e-5)


def test_a_vocabulary_without_ends_of_lines_predicts_all_but_the_first_token(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(special_tokens=["<unk>"], show_progress=False)
    words.train_from_iterator(tiny_text.lines(300, 0), trainer)
    words.save(str(tmp_path / "tokenizer.json"))
    text = load_text(tiny_text.folder(tmp_path), TextSettings(tokenizer=str(tmp_path), context=7))
    model = Bigram(text.classes)
    tokens = text.vocabulary.encode(tiny_text.lines(40, 1))
    assert text.words == len(tokens)  # each word is a token, and an end of a line is none
    costs = -model.table.weight.detach().double().log_softmax(1)[tokens[:-1], tokens[1:]]
    assert evaluated(text, model)["eval_word_perplexity"] == pytest.approx(math.exp(costs.sum() / text.words), rel=1e-5)


def test_a_text_of_whole_sequences_has_no_rest_but_the_first_token(tmp_path: Path) -> None:
    tiny_text.folder(tmp_path)
    count = len(load_text(tmp_path, tiny_text.HOW).evaluation.tokens)
    text = load_text(tmp_path, replace(tiny_text.HOW, context=count - 1))
    x, y = text.rest()
    assert x.shape == y.shape == (1, count - 1)
    assert (y != -100).sum() == 1


def test_the_record_has_it_after_every_evaluation(tmp_path: Path) -> None:
    text = tiny_text.text(tmp_path / "corpus")
    record = run(tiny_text.settings(), text, tmp_path)
    assert [part["eval_word_perplexity"] > part["eval_perplexity"] for part in record["epochs"]] == [True] * 3
    assert record["word_perplexity"] == record["epochs"][-1]["eval_word_perplexity"]
    assert record["words"] == text.words == sum(len(line.split()) + 1 for line in tiny_text.lines(40, 1))
