"""Causal language models of transformers, from a config or a folder with weights on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bpfree
from bpfree.errors import TapSelectionError
from bpfree.lab.data.text.vocabulary import FILE, Vocabulary
from bpfree.lab.errors import SettingsError
from bpfree.lab.models.hugging_face_files import (
    SPECIAL,
    check_content,
    folder_with_weights,
    option,
    read_config,
    without_remarks,
)

_OWN_TOKENS = "Read the text with the tokenizer of the weights: --text.tokenizer {}"
_CHECKED = 6  # tokens of the sequence on which a model is tried


class CausalLM(nn.Module):
    """A causal language model of transformers: tokens ``(N, T)`` to logits ``(N, T, classes)``.

    ``hf:PATH`` is its short name. Nothing is downloaded, and no code from the folder is run (``trust_remote_code`` is
    off): the model's class is one of transformers' own. Weights are in single precision. Without weights the model
    is drawn by transformers' own initialization, and its vocabulary is the text's. With weights training starts from
    them, and the text's vocabulary must be theirs.

    Args:
        shape: ``(context,)``, the number of tokens in a sequence; not more than the config's.
        classes: The number of tokens in the vocabulary.
        path: A folder with ``config.json``, and maybe weights and ``tokenizer.json``; or a config file alone.
        config: Values in place of the config's, such as ``{"n_layer": 4}``.
        content: The hash of the config and the weights, see :func:`content_of`. It is filled in. If it is given, other
            files are refused.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        path: str,
        config: dict[str, Any] | None = None,
        content: str | None = None,
    ) -> None:
        super().__init__()
        self.path = Path(path).expanduser()
        if content is not None:
            check_content(self.path, content)
        found = read_config(self.path, config)
        _check_context(self.path, found, shape)
        weights = folder_with_weights(self.path)
        with without_remarks():
            self.model: Any = _drawn(found, classes, self.path) if weights is None else _loaded(weights, found, classes)
            _check_causal(self.model, self.path)
        self.classes = classes
        self.train()  # loaded models are in evaluation mode, without dropout

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits ``(N, T, classes)`` of the token after each of ``tokens``, int64 ``(N, T)``."""
        logits: Tensor = self.model(input_ids=tokens, use_cache=False).logits
        # Weights may have rows beyond the vocabulary, to make their number round.
        return logits[..., : self.classes]

    def check_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Find out whether a text's tokens are those that the weights were trained on; without weights any are right.

        Raises:
            SettingsError: They are not.
        """
        if folder_with_weights(self.path) is None:
            return
        tokens = self.model.config.get_text_config().vocab_size
        known = Vocabulary.loaded(self.path) if (self.path / FILE).is_file() else None
        # A folder without a tokenizer.json says no more than the number of its tokens.
        same = tokens == len(vocabulary) if known is None else known.numbers == vocabulary.numbers
        if not same:
            raise SettingsError(
                f"{option(self.path)}: the text's {len(vocabulary):,} tokens are not the {tokens:,} of the weights. "
                f"{_OWN_TOKENS.format(self.path)}"
            )

    def save(self, folder: Path) -> None:
        """Write config and weights in transformers' own format; transformers reads them without bpfree."""
        with without_remarks():
            self.model.save_pretrained(folder)

    @staticmethod
    def suggested_taps(path: str, config: dict[str, Any] | None = None, content: str | None = None) -> tuple[str, ...]:
        """Return the names of the repeated blocks.

        Raises:
            SettingsError: None are found.
        """
        return _places(path, config)[0]

    @staticmethod
    def suggested_error_at(path: str, config: dict[str, Any] | None = None, content: str | None = None) -> str:
        """Return the name of the last block: the final norm and the vocabulary head are above the error.

        Behind the norm feedback would have to follow how it scales each token, and FDFA learns far less there.

        Raises:
            SettingsError: No head is found.
        """
        return _places(path, config)[1]


def _places(path: str, overrides: dict[str, Any] | None) -> tuple[tuple[str, ...], str]:
    """Return the blocks' names and where the error is taken, as :class:`CausalLM` names them."""
    config = read_config(Path(path).expanduser(), overrides)
    with without_remarks(), torch.device("meta"):
        model = _made(config, path)
    unknown = f"{option(path)}: no {{}} found in {type(model).__name__}. Name {{}} yourself; print(model) shows names."
    try:
        suggestion = bpfree.suggest_taps(model)
    except TapSelectionError as error:
        raise SettingsError(unknown.format("repeated blocks are", "modules with --taps and --error-at")) from error
    if suggestion.taps is None:
        raise SettingsError(unknown.format("repeated blocks are", "modules with --taps and --error-at"))
    if model.get_output_embeddings() is None:
        raise SettingsError(unknown.format("vocabulary head is", "the module below it with --error-at"))
    return tuple(f"model.{name}" for name in suggestion.taps), f"model.{suggestion.error_at}"


def _check_context(path: Path, config: Any, shape: Sequence[int]) -> None:
    if len(shape) != 1:
        raise SettingsError(
            f"{option(path)} takes tokens of shape (context,), not {tuple(shape)}: it is for --data text."
        )
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and shape[0] > longest:
        raise SettingsError(
            f"{option(path)} reads {longest} tokens at most, and sequences have {shape[0]}: lower --text.context to "
            f"{longest} or less."
        )


def _made(config: Any, path: Path | str) -> Any:
    """Return a model of this config, its weights drawn.

    Raises:
        SettingsError: Its values do not fit each other, such as a width and a number of heads.
    """
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except Exception as error:  # each model checks its config in its own way
        raise SettingsError(f"{option(path)}: no model can be made of this config ({_first(error)}).") from error


def _drawn(config: Any, classes: int, path: Path) -> nn.Module:
    """Return a model for this vocabulary, its weights drawn from torch's random state."""
    text = config.get_text_config()
    text.vocab_size = classes
    for name in SPECIAL:
        token = getattr(text, name, None)
        if isinstance(token, int) and token >= classes:
            setattr(text, name, None)
    model: nn.Module = _made(config, path)
    return model


def _loaded(folder: Path, config: Any, classes: int) -> nn.Module:
    """Return the model with the weights of a folder.

    Raises:
        SettingsError: They are not those of a model of this config, or of another vocabulary.
    """
    from transformers import AutoModelForCausalLM

    known = config.get_text_config().vocab_size
    if classes > known:
        raise SettingsError(
            f"{option(folder)}: its weights know {known:,} tokens, and the text has {classes:,}. "
            f"{_OWN_TOKENS.format(folder)}"
        )
    load: Any = AutoModelForCausalLM.from_pretrained
    try:
        model, report = load(
            folder, config=config, dtype=torch.float32, local_files_only=True, trust_remote_code=False,
            output_loading_info=True,
        )  # fmt: skip
    except Exception as error:  # safetensors' errors have no public base
        raise SettingsError(f"{option(folder)}: its weights cannot be read ({_first(error)}).") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            name = min(map(str, report[kind]))
            raise SettingsError(
                f"{option(folder)}: its weights do not fit the config ({kind.replace('_keys', '')}: {name}). Leave out "
                "what changes sizes in --model.config, or name the config file alone, without the weights."
            )
    found: nn.Module = model
    return found


def _first(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@torch.no_grad()
def _check_causal(model: Any, path: Path) -> None:
    """Find out by trying whether a token sees a later one; no random number is drawn.

    Raises:
        SettingsError: It does, as in BERT unless it is made a decoder.
    """
    training = model.training
    model.eval()
    tokens = torch.zeros(2, _CHECKED, dtype=torch.long)
    tokens[1, -1] = 1
    first, second = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    model.train(training)
    if not torch.allclose(first, second, atol=1e-4):
        raise SettingsError(
            f"{option(path)}: {type(model).__name__} lets tokens see later ones, so it would read what it shall "
            "predict. A value of the config may make it causal, such as --model.config '{is_decoder: true}'."
        )
