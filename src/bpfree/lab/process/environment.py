"""The machine and the software of a measurement."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import bpfree


def device() -> str:
    """Return the device of runs: a GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def describe() -> dict[str, Any]:
    """Return versions, the machine, its GPU if torch has one, and torch's threads."""
    return {
        "python": platform.python_version(),
        "bpfree": bpfree.__version__,
        "torch": str(torch.__version__),
        **_versions("lightning", "torchmetrics"),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "threads": torch.get_num_threads(),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", ""),
    }


def _versions(*packages: str) -> dict[str, str]:
    """Return the versions of installed packages: the benchmarks run without the lab's dependencies too."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
