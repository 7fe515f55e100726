"""Runs that are stopped in the middle, and what must be the same when they have gone on."""

from __future__ import annotations

import json
from typing import Any

import torch

from bpfree.lab.display.terminal import Display

STEPS = 8  # an epoch of the tiny data


class Interrupting(Display):
    """Stops a run after some steps, by whatever ``stop`` does."""

    def __init__(self, after: int, stop: Any) -> None:
        super().__init__(None)
        self.left, self.stop = after, stop

    def step(self, samples: int = 0) -> None:
        self.left -= 1
        if self.left == 0:
            self.stop()


def crash() -> None:
    raise OSError("stopped here")


def timeless(record: dict[str, Any]) -> str:
    """A record without what differs between two runs of one computation: times and places."""
    epochs = [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in record["epochs"]]
    return json.dumps([epochs, record["accuracy"], record["parameters"]])


def assert_equal(found: Any, expected: Any, path: str = "") -> None:
    """Bit for bit, through dictionaries and lists."""
    assert type(found) is type(expected), path
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), path
        for key in expected:
            assert_equal(found[key], expected[key], f"{path}.{key}")
    elif isinstance(expected, list):
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_equal(one, other, f"{path}[{number}]")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), path
    else:
        assert found == expected, path
