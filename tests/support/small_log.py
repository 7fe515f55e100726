"""Reading small logs in tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bpfree.lab.data.clicks import Clicks, ClickSettings, Rows, load_clicks


def schema_file(folder: Path, schema: Mapping[str, Any]) -> str:
    """A file with a schema; JSON is YAML."""
    path = folder / "schema.yaml"
    path.write_text(json.dumps(schema), encoding="utf-8")
    return str(path)


def loaded(folder: Path, schema: Mapping[str, Any], **settings: Any) -> Clicks:
    """The log of a folder."""
    return load_clicks(folder, ClickSettings(schema=schema_file(folder, schema), **settings))


def content(rows: Rows) -> tuple[list[list[int]], list[int]]:
    """All identifiers and labels."""
    ids, labels = rows.batch(torch.arange(len(rows)))
    return ids.tolist(), labels.int().tolist()
