"""Files beside the checkpoint of a run on text: with them its model can be used without the text it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from bpfree.lab.checkpoints import LAST, WholeFiles, choose, left_by_run
from bpfree.lab.data.text import Text, Vocabulary
from bpfree.lab.errors import DamageError, RunError
from bpfree.lab.files import read_json, replacing_folder, write_json
from bpfree.lab.model_settings import ModelSettings
from bpfree.lab.run_identity import HUGGING_FACE
from bpfree.lab.settings import RunSettings
from bpfree.lab.trust import vouched

_SETTINGS = "model.json"
EXPORTED = "model"
"""The folder in a run's folder with a model of transformers in its own format."""
_WEIGHTS = "model."  # the beginning of the weights' names in a checkpoint: the learner's attribute


@dataclass(frozen=True)
class KeptModel:
    """A trained language model.

    Attributes:
        model: It maps tokens ``(N, T)`` to logits ``(N, T, vocabulary)``.
        vocabulary: From text to tokens and back.
        context: The largest number of tokens that the model was trained to see.
    """

    model: nn.Module
    vocabulary: Vocabulary
    context: int


def keep(settings: RunSettings, text: Text, folder: Path) -> None:
    """Write down, in a run's folder, what its model is built of, and the vocabulary.

    Raises:
        WriteError: A file could not be written.
    """
    write_json(folder / _SETTINGS, {"model": settings.model, "shape": list(text.shape), "classes": text.classes})
    text.vocabulary.save(folder)


def load_kept(folder: Path, *, trust: bool = False) -> KeptModel:
    """Build the model of a run, finished or interrupted, with the weights of its last whole checkpoint.

    Args:
        folder: The run's folder, see :func:`find_run`.
        trust: True if a model of one's own may be imported, wherever the folder lies.

    Raises:
        TrustError: The model is of one's own, and nobody has vouched for the file that names it.
        RunError: There is no checkpoint.
        DamageError: A file is not as it was written, or no checkpoint is whole.
        SettingsError: The model cannot be built.
    """
    kept = read_json(folder / _SETTINGS)
    vouched(folder / _SETTINGS, {"model": kept["model"]}, trust=trust)
    exported = folder / EXPORTED
    if exported.is_dir():  # the folder that the run began with may be gone
        model = ModelSettings(HUGGING_FACE, {"path": str(exported)}).build(kept["shape"], kept["classes"])
    else:
        model = ModelSettings(**kept["model"]).build(kept["shape"], kept["classes"])
        _load_weights(model, folder)
    return KeptModel(model, Vocabulary.loaded(folder), int(kept["shape"][0]))


def _load_weights(model: nn.Module, folder: Path) -> None:
    found = choose(left_by_run(folder / LAST))
    if found is None:
        raise RunError(f"{folder} holds no checkpoint: the run has not come to its first evaluation. Train it longer.")
    # A checkpoint comes from a folder that others may write to: only tensors and plain values are read.
    checkpoint = WholeFiles().load_checkpoint(found, map_location="cpu", weights_only=True)
    weights = {
        name.removeprefix(_WEIGHTS): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith(_WEIGHTS)
    }
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        said = " ".join(str(error).split())
        raise DamageError(f"{found} does not hold the weights of the model in {_SETTINGS} ({said}).") from error


def export(folder: Path) -> Path | None:
    """Write the trained model of transformers in its own format, tokenizer included, to the run's folder.

    ``transformers.AutoModelForCausalLM.from_pretrained`` and ``AutoTokenizer.from_pretrained`` read it without bpfree.

    Returns:
        The folder ``model``, which is there whole or not at all; None for a model that is not transformers' own.

    Raises:
        WriteError: It could not be written.
    """
    place = folder / EXPORTED
    if read_json(folder / _SETTINGS)["model"]["class_path"] != HUGGING_FACE:
        return None
    if not place.is_dir():
        kept: Any = load_kept(folder)
        with replacing_folder(place) as temporary:
            kept.model.save(temporary)
            kept.vocabulary.save(temporary)
    return place


def find_run(place: Path) -> Path:
    """Return the folder of a run that ``bpfree train`` has made.

    Args:
        place: That folder, or the one above it if it holds one run, or the run's record or checkpoint.

    Raises:
        RunError: There is none, or it is not clear which one is meant, or nothing was kept to build its model of.
    """
    folder = place
    if place.is_file():
        folder = place.with_name(place.name.removesuffix(".json")) if place.suffix == ".json" else place.parent
    if not folder.is_dir():
        raise RunError(f"{place}: there is no such run. Name the folder that bpfree train wrote to, its --out.")
    if (folder / _SETTINGS).is_file():
        return folder
    below = sorted(path.parent for path in folder.glob(f"*/{_SETTINGS}"))
    if len(below) == 1:
        return below[0]
    if below:
        raise RunError(f"{place} holds several runs. Name one of them: {', '.join(map(str, below))}.")
    raise RunError(
        f"{place} holds no run on text of bpfree train with its {_SETTINGS}. Runs of compare and table keep no "
        "weights; a run of an earlier version is to be trained again, with another --out."
    )
