"""The file that says what the model of a run is built of; the checkpoint beside it has the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from bpfree.lab.data.samples import Data
from bpfree.lab.disk.files import read_json, write_json
from bpfree.lab.errors import DamageError, RunError
from bpfree.lab.kept.checkpoints import LAST, WholeFiles, choose, left_by_run
from bpfree.lab.settings import RunSettings
from bpfree.lab.settings.model import ModelSettings
from bpfree.lab.settings.trust import vouched

SETTINGS = "model.json"
_WEIGHTS = "model."  # the beginning of the weights' names in a checkpoint: the learner's attribute


def keep_model(settings: RunSettings, data: Data, folder: Path) -> None:
    """Write down, in a run's folder, what its model is built of.

    Raises:
        WriteError: The file could not be written.
    """
    write_json(folder / SETTINGS, {"model": settings.model, "shape": list(data.shape), "classes": data.classes})


def read_settings(folder: Path, *, trust: bool = False) -> Mapping[str, Any]:
    """Return what was written down: ``model``, ``shape`` and ``classes``.

    Raises:
        TrustError: The model is of one's own, and nobody has vouched for the file that names it.
        DamageError: The file is not as it was written.
    """
    kept = read_json(folder / SETTINGS)
    vouched(folder / SETTINGS, {"model": kept["model"]}, trust=trust)
    return kept


def load_model(folder: Path, kept: Mapping[str, Any]) -> nn.Module:
    """Build the model of a run, finished or interrupted, with the weights of its last whole checkpoint.

    Args:
        folder: The run's folder.
        kept: What was written down there.

    Raises:
        RunError: There is no checkpoint.
        DamageError: No checkpoint is whole, or it has not the weights of this model.
        SettingsError: The model cannot be built.
    """
    model = ModelSettings(**kept["model"]).build(kept["shape"], kept["classes"])
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
        said = " ".join(" ".join(str(error).splitlines()[:2]).split())  # the first of what may be many lines
        raise DamageError(
            f"{found} does not hold the weights of the model in {SETTINGS} ({said}). Put the run's own checkpoint "
            "back, or train it again with another --out."
        ) from error
    return model


def find_run(place: Path, beside: str, kind: str) -> Path:
    """Return the folder of a run that ``bpfree train`` has made.

    Args:
        place: That folder, or the one above it if it holds one run, or the run's record or checkpoint.
        beside: The name of a file that runs of this kind keep.
        kind: The kind in words, such as ``"text"``.

    Raises:
        RunError: There is none, or it is not clear which one is meant, or it is of another kind, or nothing was kept to
            build its model of.
    """
    folder = place
    if place.is_file():
        folder = place.with_name(place.name.removesuffix(".json")) if place.suffix == ".json" else place.parent
    if not folder.is_dir():
        raise RunError(f"{place}: there is no such run. Name the folder that bpfree train wrote to, its --out.")
    found = [folder] if (folder / SETTINGS).is_file() else sorted(path.parent for path in folder.glob(f"*/{SETTINGS}"))
    of_kind = [run for run in found if (run / beside).exists()]
    if len(of_kind) == 1:
        return of_kind[0]
    if of_kind:
        raise RunError(f"{place} holds several runs. Name one of them: {', '.join(map(str, of_kind))}.")
    if found:
        raise RunError(f"{found[0]} is no run on {kind}: it has no {beside}, which bpfree train keeps of such data.")
    raise RunError(
        f"{place} holds no run on {kind} of bpfree train with its {SETTINGS}. Runs of compare and table keep no "
        "weights; a run of an earlier version is to be trained again, with another --out."
    )
