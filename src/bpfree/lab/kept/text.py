"""Runs on text: their models can be used without the text that they were trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from bpfree.lab.data.text import Text, Vocabulary
from bpfree.lab.data.text.vocabulary import FILE
from bpfree.lab.disk.files import read_json, replacing_folder
from bpfree.lab.kept.model import SETTINGS, find_run, keep_model, load_model, read_settings
from bpfree.lab.settings import RunSettings
from bpfree.lab.settings.identity import HUGGING_FACE
from bpfree.lab.settings.model import ModelSettings

EXPORTED = "model"
"""The folder in a run's folder with a model of transformers in its own format."""


@dataclass(frozen=True)
class KeptText:
    """A trained language model.

    Attributes:
        model: It maps tokens ``(N, T)`` to logits ``(N, T, vocabulary)``.
        vocabulary: From text to tokens and back.
        context: The largest number of tokens that the model was trained to see.
    """

    model: nn.Module
    vocabulary: Vocabulary
    context: int


def keep_text(settings: RunSettings, text: Text, folder: Path) -> None:
    """Write down, in a run's folder, what its model is built of, and the vocabulary.

    Raises:
        WriteError: A file could not be written.
    """
    keep_model(settings, text, folder)
    text.vocabulary.save(folder)


def load_text_run(folder: Path, *, trust: bool = False) -> KeptText:
    """Build the model of a run, finished or interrupted, with the weights of its last whole checkpoint.

    Args:
        folder: The run's folder, see :func:`find_text_run`.
        trust: True if a model of one's own may be imported, wherever the folder lies.

    Raises:
        TrustError: The model is of one's own, and nobody has vouched for the file that names it.
        RunError: There is no checkpoint.
        DamageError: A file is not as it was written, or no checkpoint is whole.
        SettingsError: The model cannot be built.
    """
    kept, exported = read_settings(folder, trust=trust), folder / EXPORTED
    if exported.is_dir():  # the folder that the run began with may be gone
        model = ModelSettings(HUGGING_FACE, {"path": str(exported)}).build(kept["shape"], kept["classes"])
    else:
        model = load_model(folder, kept)
    return KeptText(model, Vocabulary.loaded(folder), int(kept["shape"][0]))


def export(folder: Path) -> Path | None:
    """Write the trained model of transformers in its own format, tokenizer included, to the run's folder.

    ``transformers.AutoModelForCausalLM.from_pretrained`` and ``AutoTokenizer.from_pretrained`` read it without bpfree.

    Returns:
        The folder ``model``, which is there whole or not at all; None for a model that is not transformers' own.

    Raises:
        WriteError: It could not be written.
    """
    place = folder / EXPORTED
    if read_json(folder / SETTINGS)["model"]["class_path"] != HUGGING_FACE:
        return None
    if not place.is_dir():
        kept: Any = load_text_run(folder)
        with replacing_folder(place) as temporary:
            kept.model.save(temporary)
            kept.vocabulary.save(temporary)
    return place


def find_text_run(place: Path) -> Path:
    """Return the folder of a run on text, see :func:`bpfree.lab.kept.model.find_run`."""
    return find_run(place, FILE, "text")
