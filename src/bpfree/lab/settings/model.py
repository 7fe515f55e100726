"""A model by import path, its arguments checked against its signature."""

from __future__ import annotations

import copy
import functools
import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace
from torch import nn
from torch.nn.parameter import is_lazy

import bpfree.lab.models as builtin
from bpfree.lab.errors import SettingsError
from bpfree.lab.models.hugging_face_files import FAMILY, content_of
from bpfree.lab.settings.argument_errors import in_one_line
from bpfree.lab.settings.identity import HUGGING_FACE
from bpfree.lab.settings.plain_values import plain
from bpfree.lab.settings.signatures import FROM_DATA, arguments


@dataclass(frozen=True)
class ModelSettings:
    """The choice of a model and its arguments.

    Args:
        class_path: Import path of any ``nn.Module``, the name of one in :mod:`bpfree.lab.models`, or ``hf:PATH`` for a
            model of transformers, see :class:`bpfree.lab.models.hugging_face.CausalLM`.
        init_args: Its arguments; ``shape`` and ``classes`` come from the data where the model takes them.
    """

    class_path: str = f"{builtin.__name__}.MLP"
    init_args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.class_path.startswith(FAMILY):
            object.__setattr__(self, "init_args", {"path": self.class_path.removeprefix(FAMILY), **self.init_args})
            object.__setattr__(self, "class_path", HUGGING_FACE)

    @property
    def full_path(self) -> str:
        """The import path of the class."""
        # Other packages have classes of these names too, and those that are imported would make it ambiguous.
        known = self.class_path in builtin.__all__
        return f"{builtin.__name__}.{self.class_path}" if known else self.class_path

    def describe(self) -> dict[str, Any]:
        """Return ``class_path`` and ``init_args``, with the values of arguments that were not given.

        A model of transformers gets the hash of its files, which identifies it.

        Raises:
            SettingsError: There is no such class, or the arguments do not fit it, or files are missing.
        """
        found = self._without_files()
        if found["class_path"] == HUGGING_FACE and found["init_args"].get("content") is None:
            found["init_args"]["content"] = content_of(Path(found["init_args"]["path"]).expanduser())
        return found

    def _without_files(self) -> dict[str, Any]:
        # In the text of an argument that is no plain value, a tuple say, something else would stand.
        text = json.dumps(plain(self.init_args))
        return (
            copy.deepcopy(_described(self.class_path, text)) if json.loads(text) == self.init_args else self._describe()
        )

    def _describe(self) -> dict[str, Any]:
        _, parsed = self._parse(self.init_args, skip=FROM_DATA)
        shown = parsed.model.as_dict()
        return {"class_path": shown["class_path"], "init_args": shown.get("init_args", {})}

    def suggestion(self, name: str) -> Any:
        """Return the ``suggested_<name>`` of the model's class, or None.

        ``taps`` are names or patterns of where feedback enters, ``error_at`` names where the error is taken. A class
        whose suggestion depends on its arguments has a static method, which is given all but ``shape`` and ``classes``.

        Raises:
            SettingsError: There is no such class, or the arguments do not fit it.
        """
        found = getattr(self._class(), f"suggested_{name}", None)
        if callable(found):
            found = found(**self._without_files()["init_args"])
        return list(found) if isinstance(found, tuple) else found

    def _class(self) -> type[nn.Module]:
        module, _, name = self._without_files()["class_path"].rpartition(".")
        return getattr(importlib.import_module(module), name)

    def build(self, shape: Sequence[int], classes: int) -> nn.Module:
        """Build the model for inputs of this shape, its weights drawn from the global random state.

        Raises:
            SettingsError: There is no such class, or the arguments do not fit it, or make a layer of no numbers.
        """
        taken = arguments(self._class()).names
        known = {"shape": list(shape), "classes": classes}
        from_data = {name: value for name, value in known.items() if name in taken}
        parser, parsed = self._parse(self.init_args | from_data)
        try:
            model: nn.Module = parser.instantiate(parsed).model
        except (ValueError, TypeError, ArithmeticError) as error:
            # What a model says of its arguments comes wrapped in what jsonargparse has tried besides.
            cause = error.__cause__ or error
            said, kind = str(cause), type(cause) if isinstance(cause, SettingsError) else SettingsError
            raise kind(said if said.startswith("--model ") else f"--model {self.class_path}: {said}") from error
        for name, parameter in model.named_parameters():
            if not is_lazy(parameter) and not parameter.numel():
                shape = tuple(parameter.shape)
                raise SettingsError(f"--model {self.class_path}: {name} has the shape {shape}: a layer of no numbers.")
        return model

    def _parse(self, init_args: dict[str, Any], skip: frozenset[str] = frozenset()) -> tuple[ArgumentParser, Namespace]:
        given = {"class_path": self.full_path, "init_args": init_args}
        text = json.dumps(plain(given))
        try:
            if json.loads(text) != given:  # an argument that is no plain value
                return _parsed(given, skip)
            parser, parsed = _parsed_text(text, skip)
            return parser, copy.deepcopy(parsed)
        except ArgumentError as error:
            raise SettingsError(f"--model {self.class_path}: {in_one_line(str(error), 'model')}") from error


@functools.cache  # every run builds its model twice, and to read its arguments takes as long as a few steps
def _parsed_text(given: str, skip: frozenset[str]) -> tuple[ArgumentParser, Namespace]:
    return _parsed(json.loads(given), skip)


def _parsed(given: dict[str, Any], skip: frozenset[str]) -> tuple[ArgumentParser, Namespace]:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "model", required=True, skip=set(skip))
    return parser, parser.parse_object({"model": given})


@functools.cache  # a table asks hundreds of times about a few models, and each answer takes a twentieth of a second
def _described(class_path: str, init_args: str) -> dict[str, Any]:
    return ModelSettings(class_path, json.loads(init_args))._describe()


def with_import_path(model: Any) -> Any:
    """Return a model as a file or a command line names it, its class by import path.

    Other packages, once imported, have classes of the same names as ours. ``hf:PATH`` becomes a class and its argument.
    """
    if isinstance(model, str):
        named = ModelSettings(model)
        return {"class_path": named.class_path, "init_args": named.init_args} if named.init_args else named.full_path
    if not (isinstance(model, Mapping) and isinstance(model.get("class_path"), str)):
        return model
    known = with_import_path(model["class_path"])
    if isinstance(known, str):
        return {**model, "class_path": known}
    return {**model, **known, "init_args": {**known["init_args"], **(model.get("init_args") or {})}}
