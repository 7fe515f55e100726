"""The training step of krrish94/nerf-pytorch, from a folder with its code."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from bpfree.lab.data.scenes import Scene


def nerf_pytorch_step(folder: Path, scene: Scene, rays: int) -> Callable[[], object]:
    """Its step as ``train_nerf.py`` has it, logging left out: a view is drawn, all its rays are made, some are taken.

    Its nets are of 4 layers of 128 whatever its settings say, without a ReLU behind the first; 64 and 128 points a ray.
    """
    models, helpers, utils = _modules(folder)
    encodings = {
        "encode_position_fn": helpers.get_embedding_function(10, True, True),
        "encode_direction_fn": helpers.get_embedding_function(4, True, True),
    }
    sizes = {"num_encoding_fn_xyz": 10, "num_encoding_fn_dir": 4}
    coarse, fine = (models.FlexibleNeRFModel(**sizes) for _ in range(2))
    optimizer = torch.optim.Adam([*coarse.parameters(), *fine.parameters()], lr=5e-3)
    options, cameras = _options(), scene.train.cameras
    size = (cameras.height, cameras.width)
    pictures = scene.train.colours(torch.arange(len(scene.train))).unflatten(0, (-1, *size))
    focal, poses = float(cameras.focal[0, 0]), cameras.poses.float()

    def step() -> None:
        view = int(torch.randint(0, len(poses), ()))
        origins, directions = helpers.get_ray_bundle(*size, focal, poses[view])
        places = torch.stack(helpers.meshgrid_xy(torch.arange(size[0]), torch.arange(size[1])), dim=-1).reshape(-1, 2)
        rows, columns = places[torch.randperm(len(places))[:rays]].unbind(1)
        truth = pictures[view][rows, columns]
        found = utils.run_one_iter_of_nerf(
            *size, focal, coarse, fine, origins[rows, columns], directions[rows, columns], options, **encodings
        )
        loss = F.mse_loss(found[0], truth) + F.mse_loss(found[3], truth)
        loss.backward()
        loss.item()  # it shows PSNR at every step
        optimizer.step()
        optimizer.zero_grad()

    return step


def _modules(folder: Path) -> tuple[Any, Any, Any]:
    """Load what a step needs. The package itself would load readers of pictures, too."""
    package = ModuleType("nerf")
    package.__path__ = [str(folder / "nerf")]
    sys.modules["nerf"] = package
    # A package of its time that is on no index; torch has had the same function since version 1.6.
    old: Any = ModuleType("torchsearchsorted")
    old.searchsorted = torch.searchsorted
    sys.modules["torchsearchsorted"] = old
    names = ("models", "nerf_helpers", "train_utils")
    models, helpers, utils = (importlib.import_module(f"nerf.{name}") for name in names)
    return models, helpers, utils


def _options() -> SimpleNamespace:
    """Its settings for a scene of Blender, with the paper's numbers of points."""
    train = SimpleNamespace(
        chunksize=2**17, perturb=True, num_coarse=64, num_fine=128, white_background=True,
        radiance_field_noise_std=0.0, lindisp=False,
    )  # fmt: skip
    nerf = SimpleNamespace(use_viewdirs=True, train=train)
    return SimpleNamespace(nerf=nerf, dataset=SimpleNamespace(no_ndc=True, near=2.0, far=6.0))
