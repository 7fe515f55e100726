"""Surfaces of fields: a ball whose radius, normals, colours and volume are known."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bpfree.lab.errors import RunError, SettingsError
from bpfree.lab.rendering.mesh import Mesh, surface, write_ply

pytest.importorskip("skimage", reason="needs the extra [rendering] (scikit-image)")
CENTRE = torch.tensor([0.3, -0.2, 1.0])


def ball(places: Tensor, views: Tensor) -> Tensor:
    """Density 20 - 20 r, 10 at half a unit from the centre; the colour is the direction it is seen in, by a logit."""
    r = (places - CENTRE).norm(dim=1, keepdim=True)
    return torch.cat([((views + 1) / 2).clamp(0.01, 0.99).logit(), 20 - 20 * r], dim=1)


@pytest.fixture(scope="module")
def found() -> Mesh:
    return surface(ball, CENTRE, 1.0, 40, 10.0)


def test_corners_lie_where_the_density_is(found: Mesh) -> None:
    # Between two places of the grid, 1/20 apart, density is taken to be linear: it is, along radii.
    away = (found.places - CENTRE).norm(dim=1)
    assert abs(away - 0.5).max() < 0.002


def test_normals_point_out_and_triangles_turn_counterclockwise(found: Mesh) -> None:
    out = torch.nn.functional.normalize(found.places - CENTRE, dim=1)
    torch.testing.assert_close(found.normals.norm(dim=1), torch.ones(len(out)))
    assert (found.normals * out).sum(1).min() > 0.99
    a, b, c = found.places[found.triangles].unbind(1)
    turned = torch.linalg.cross(b - a, c - a)
    assert (turned * ((a + b + c) / 3 - CENTRE)).sum(1).min() >= 0
    # By Gauss's theorem: closed, or it would miss a part.
    volume = ((a - CENTRE) * torch.linalg.cross(b - CENTRE, c - CENTRE)).sum() / 6
    assert float(volume) == pytest.approx(4 / 3 * math.pi * 0.5**3, rel=0.01)


def test_a_corner_has_the_colour_that_is_seen_from_outside(found: Mesh) -> None:
    expected = ((1 - found.normals) / 2).clamp(0.01, 0.99)
    torch.testing.assert_close(found.colours, expected, atol=1e-5, rtol=0)


def test_all_places_are_told() -> None:
    told: list[int] = []
    surface(ball, CENTRE, 1.0, 6, 10.0, told.append)
    assert sum(told) == 7**3


@pytest.mark.parametrize("density", [30.0, 0.0])
def test_a_density_that_is_nowhere_is_named(density: float) -> None:
    with pytest.raises(RunError, match=r"densities from 0 to 20 at 343 places.*--density"):
        surface(ball, CENTRE, 1.0, 6, density)


def test_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.measure", None)
    with pytest.raises(SettingsError, match=r"--mesh: skimage is not .* 'bpfree\[rendering\]'"):
        surface(ball, CENTRE, 1.0, 6, 10.0)


def test_a_file_holds_the_mesh(tmp_path: Path) -> None:
    """Read by the format's description: a header of lines, then corners of 27 bytes and triangles of 13."""
    mesh = Mesh(
        torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 0.5], [0.0, 0.0, 3.0], [4.0, 5.0, 6.0]]),
        torch.tensor([[0.0, 0.0, 1.0]]).expand(4, 3),
        torch.tensor([[0.0, 0.5, 1.0]]).expand(4, 3),
        torch.tensor([[0, 1, 2], [1, 3, 2]]),
    )
    write_ply(tmp_path / "mesh.ply", mesh)
    header, _, body = (tmp_path / "mesh.ply").read_bytes().partition(b"end_header\n")
    lines = header.decode().splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    assert {"element vertex 4", "element face 2", "property list uchar int vertex_indices"} < set(lines)
    assert len(body) == 4 * 27 + 2 * 13
    for number in range(4):
        one = body[27 * number :]
        assert np.frombuffer(one[:24], "<f4").tolist() == [*mesh.places[number].tolist(), 0, 0, 1]
        assert list(one[24:27]) == [0, 128, 255]
    assert body[108] == body[121] == 3
    assert np.frombuffer(body[109:121], "<i4").tolist() == [0, 1, 2]
    assert np.frombuffer(body[122:134], "<i4").tolist() == [1, 3, 2]
