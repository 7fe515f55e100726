"""The surface of what a field holds, as a mesh."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bpfree.lab.disk.files import replacing
from bpfree.lab.errors import RunError, SettingsError
from bpfree.lab.extras import missing
from bpfree.lab.rendering.passes import CHUNK, Field


@dataclass(frozen=True)
class Mesh:
    """Triangles.

    Attributes:
        places: The corners, ``(n, 3)``, in the scene's coordinates.
        normals: Directions of length 1 that point out of what is dense, ``(n, 3)``.
        colours: From 0 to 1, ``(n, 3)``.
        triangles: The numbers of three corners each, counterclockwise seen from outside, int64 ``(m, 3)``.
    """

    places: Tensor
    normals: Tensor
    colours: Tensor
    triangles: Tensor


@torch.no_grad()
def surface(
    field: Field, centre: Tensor, half: float, cells: int, density: float, tell: Callable[[int], None] = lambda n: None
) -> Mesh:
    """Return the surface on which a field has a density (marching cubes, Lorensen and Cline 1987).

    A corner has the colour in which the field shows it from outside, along its normal.

    Args:
        field: The field.
        centre: The middle of the cube that is looked through, ``(3,)``.
        half: Half the length of its edges.
        cells: Cells along an edge. The density at ``(cells + 1)`` to the power of 3 places is held, 4 bytes each.
        density: The density of the surface.
        tell: Called with the number of places at which the field has been asked, time after time.

    Raises:
        SettingsError: scikit-image is not installed.
        RunError: The density is nowhere reached, or everywhere.
    """
    try:
        from skimage.measure import marching_cubes
    except ModuleNotFoundError as error:
        raise SettingsError(f"--mesh: {missing(error) or error}") from error
    densities = _densities(field, centre, half, cells, tell)
    least, most = densities.min(), densities.max()
    if not least < density < most:
        raise RunError(
            f"the field has densities from {least:.3g} to {most:.3g} at {(cells + 1) ** 3:,} places, so no surface "
            f"has {density:.3g}. Name another --density, or train the run for longer."
        )
    places, triangles, normals, _ = marching_cubes(densities, density, spacing=(2 * half / cells,) * 3)
    corners = torch.from_numpy(places.astype(np.float32)) - half + centre.float()
    outside = torch.from_numpy(normals.astype(np.float32))
    colours = torch.cat([_ask(field, at, -of)[:, :3] for at, of in _chunks(corners, outside)]).sigmoid()
    # It counts corners clockwise where the inside is what is dense.
    return Mesh(corners, outside, colours, torch.from_numpy(triangles[:, ::-1].astype(np.int64)))


def _densities(field: Field, centre: Tensor, half: float, cells: int, tell: Callable[[int], None]) -> np.ndarray:
    """Return the densities at a grid's places, ``(cells + 1, cells + 1, cells + 1)``, x first."""
    along = torch.linspace(-half, half, cells + 1)
    found = torch.empty(cells + 1, (cells + 1) ** 2)
    for number, x in enumerate(along):
        places = torch.cartesian_prod(x[None], along, along) + centre.float()
        # Density does not depend on the direction.
        views = torch.zeros_like(places).index_fill_(1, torch.tensor(2), -1.0)
        parts = [_ask(field, *part)[:, 3] for part in _chunks(places, views)]
        found[number] = torch.cat(parts).relu()
        tell(len(places))
    return np.asarray(found.unflatten(1, (cells + 1, cells + 1)).numpy())


def _chunks(places: Tensor, views: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(places.split(CHUNK), views.split(CHUNK), strict=True))


def _ask(field: Field, places: Tensor, views: Tensor) -> Tensor:
    """Return raw colours and densities, on the CPU."""
    weight = next(iter(field.parameters()), places) if isinstance(field, torch.nn.Module) else places
    return field(places.to(weight.device), views.to(weight.device)).float().cpu()


def write_ply(path: Path, mesh: Mesh) -> None:
    """Write a mesh in the format PLY 1.0, binary, with normals and colours, as Blender and MeshLab read it.

    Raises:
        WriteError: The file could not be written.
    """
    corners = np.empty(len(mesh.places), dtype=[("place", "<f4", 3), ("normal", "<f4", 3), ("colour", "u1", 3)])
    corners["place"], corners["normal"] = mesh.places.numpy(), mesh.normals.numpy()
    corners["colour"] = (mesh.colours.clamp(0, 1) * 255).round().byte().numpy()
    triangles = np.empty(len(mesh.triangles), dtype=[("count", "u1"), ("corners", "<i4", 3)])
    triangles["count"], triangles["corners"] = 3, mesh.triangles.numpy()
    numbers = [f"property float {name}" for name in ("x", "y", "z", "nx", "ny", "nz")]
    colours = [f"property uchar {name}" for name in ("red", "green", "blue")]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(corners)}", *numbers, *colours]
    header += [f"element face {len(triangles)}", "property list uchar int vertex_indices", "end_header", ""]
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write("\n".join(header).encode("ascii"))
        file.write(corners.tobytes())
        file.write(triangles.tobytes())
