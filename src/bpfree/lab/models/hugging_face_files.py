"""The files of a transformers model: config and weights, and the hash that identifies them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bpfree.errors import nearest
from bpfree.lab.disk.bounded import parse_json
from bpfree.lab.errors import SettingsError

FAMILY = "hf:"
"""The beginning of a model's name that stands for one of transformers: ``hf:PATH``."""
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
"""The names of a config's special tokens."""
_IMPLEMENTATION = "_implementation"
_CONFIG = "config.json"
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def option(path: Path | str) -> str:
    """Return the option by which a model was asked for, for messages."""
    return f"--model {FAMILY}{path}"


def read_config(path: Path, overrides: Mapping[str, Any] | None = None) -> Any:
    """Return the config of a model, of transformers' class for its type.

    Args:
        path: A folder with ``config.json``, or a config file.
        overrides: Values in place of those of the file.

    Raises:
        SettingsError: There is no such file, it is no config of a causal language model that transformers has, or a
            name among the overrides is not known.
    """
    try:
        from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING
    except ModuleNotFoundError as error:
        raise SettingsError(f"{option(path)} needs transformers: pip install 'bpfree[transformers]'.") from error
    values = _values(path)
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise SettingsError(
            f"{option(path)}: transformers has no model of the type {kind!r}, and code that comes with a model is "
            "never run. model_type in the config must be one of transformers.CONFIG_MAPPING, such as gpt2 or llama."
        )
    config_class = CONFIG_MAPPING[kind]
    if config_class not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise SettingsError(f"{option(path)}: transformers has no causal language model of the type {kind!r}.")
    if values.get("quantization_config"):
        raise SettingsError(f"{option(path)}: its weights are quantized, which cannot be trained. Take full ones.")
    for name in _foreign_code(values):
        raise SettingsError(f"{option(path)}: {name} may name code to be downloaded. Leave it out of the config.")
    # Made anew with the overrides: values that follow from others, such as the size of heads, follow from these.
    values = {**values, **_known(overrides or {}, config_class)}
    try:
        return config_class.from_dict({**values, **_without_unknown_tokens(values, config_class)})
    except Exception as error:  # the checks of configs raise errors of many classes
        raise SettingsError(f"{option(path)}: the config cannot be made ({' '.join(str(error).split())}).") from error


def _foreign_code(values: Any) -> Iterator[str]:
    """Yield the names of values by which a config may choose attention or experts that are fetched from elsewhere."""
    for name, value in values.items() if isinstance(values, Mapping) else ():
        if _IMPLEMENTATION in name and value not in (None, "eager", "sdpa"):
            yield name
        yield from _foreign_code(value)


def _known(overrides: Mapping[str, Any], config_class: Any) -> dict[str, Any]:
    """Return the overrides by the names that the config has for them."""
    usual, names = config_class(), config_class.attribute_map
    for name in overrides:
        if not hasattr(usual, name):
            hint = nearest(name, [*usual.to_dict(), *names])
            raise SettingsError(f"--model.config: {name} is no value of a {usual.model_type} config. {hint}")
    return {names.get(name, name): value for name, value in overrides.items()}


def _without_unknown_tokens(values: Mapping[str, Any], config_class: Any) -> dict[str, None]:
    """Return None for each special token that a small vocabulary does not have: those by default are a large one's."""
    usual = config_class()
    size = values.get("vocab_size", getattr(usual, "vocab_size", None))
    tokens = {name: values.get(name, getattr(usual, name, None)) for name in SPECIAL}
    return {name: None for name, token in tokens.items() if isinstance(token, int) and size and token >= size}


def _values(path: Path) -> dict[str, Any]:
    place = _config_file(path)
    try:
        found = parse_json(place.read_bytes())
    except (OSError, ValueError) as error:
        raise SettingsError(f"{option(path)}: {place.name} is not readable as JSON ({error}).") from error
    if not isinstance(found, dict):
        raise SettingsError(f"{option(path)}: {place.name} is no config: it must hold names with values.")
    return found


def _config_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise SettingsError(
            f"{option(path)}: there is no such folder or file here. Nothing is downloaded: name a folder with "
            f"{_CONFIG}, and maybe weights and tokenizer, or a config file."
        )
    if not (path / _CONFIG).is_file():
        raise SettingsError(f"{option(path)}: the folder holds no {_CONFIG}.")
    return path / _CONFIG


def folder_with_weights(path: Path) -> Path | None:
    """Return the folder if it holds weights, else None: the model is drawn from its config."""
    return path if path.is_dir() and _weights(path) else None


def _weights(folder: Path) -> list[Path]:
    return sorted(found for pattern in _WEIGHTS for found in folder.glob(pattern))


def content_of(path: Path) -> str:
    """Return the hash of a model's config and weights, which identifies it wherever it lies.

    Raises:
        SettingsError: There is no config.
    """
    files = [_config_file(path), *(_weights(path) if path.is_dir() else [])]
    states = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return _content(tuple(states))


@functools.lru_cache(maxsize=16)  # a plan of many runs asks for each of them, and weights may be large
def _content(files: tuple[tuple[str, int, int], ...]) -> str:
    found = hashlib.sha256()
    for number, (name, size, _) in enumerate(files):
        # A config file has any name; weights are told apart by theirs.
        found.update(f"{Path(name).name if number else _CONFIG} {size}\n".encode())
        with Path(name).open("rb") as file:
            hashlib.file_digest(file, lambda: found)
    return found.hexdigest()


def check_content(path: Path, content: str) -> None:
    """Find out whether files are those that a run was planned with.

    Raises:
        SettingsError: They are not.
    """
    if content_of(path) != content:
        raise SettingsError(
            f"{option(path)}: config or weights have changed: their hash is {content_of(path)}, not {content}. Put the "
            "old files back, or leave `content` out to take the new ones."
        )


@contextmanager
def without_remarks() -> Iterator[None]:
    """Keep transformers' remarks and progress bars off the screen; what matters in them is checked and told here."""
    from transformers import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
