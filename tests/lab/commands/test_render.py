"""``bpfree render``: pictures of a trained run, without the scene that it was trained on."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bpfree.lab.commands import main
from bpfree.lab.commands.render import _cameras as drawn_by
from bpfree.lab.commands.render import render
from bpfree.lab.disk.files import read_json, write_json
from bpfree.lab.errors import DamageError, RunError, SettingsError, WriteError
from bpfree.lab.kept.checkpoints import WholeFiles
from bpfree.lab.kept.scenes import _renders, find_scene_run, load_scene_run
from bpfree.lab.options.render import RenderOptions
from bpfree.lab.rendering.pictures import write_moving, write_still
from support import tiny_scene
from support.tiny_scene import HEIGHT, POSITIONS, WIDTH

SMALL = ["--model.depth", "2", "--model.width", "32", "--model.skips", "[]"]
SMALL += ["--model.samples", "12", "--model.fine_samples", "8"]
SMALL += ["--model.density_bias", "0.1"]  # it begins nearly empty: a short training does not clear a fog


def train(place: Path, kind: str, *words: str) -> Path:
    """A run on a scene that is not there any more."""
    getattr(tiny_scene, kind)(place / "scene")
    given = ["train", "--data", kind, "--data-dir", str(place / "scene"), "--rule", "BP", "--threads", "1"]
    given += ["--alignment", "never", "--out", str(place / "run"), *words]
    assert main(given) == 0
    shutil.rmtree(place / "scene")
    return place / "run"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ["--model", "NeRF", *SMALL, "--steps", "250", "--evaluations", "1", "--batch-size", "64", "--lr", "5e-3"]
    return train(tmp_path_factory.mktemp("around"), "blender", *words)


@pytest.fixture(scope="module")
def forward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ["--model", "NeRFTiny", "--model.background", "0", "--steps", "2", "--evaluations", "1"]
    return train(tmp_path_factory.mktemp("forward"), "llff", *words, "--batch-size", "16")


def drawn(run: Path, to: Path, **options: Any) -> list[Path]:
    return render(RenderOptions(name=str(run), to=str(to), **options))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_held_out_views_have_the_psnr_of_the_record(trained: Path, tmp_path: Path) -> None:
    found = []
    for number, position in enumerate(POSITIONS[5:7], 1):
        files = drawn(trained, tmp_path / "shown.png", view=number)
        assert [path.name for path in files] == ["shown.png", "shown-depth.png", "shown-opacity.png"]
        seen = tiny_scene.picture(tiny_scene.look_at(position, (0, 0, 0)), alpha=False)
        error = (pixels(files[0]) / 255 - np.asarray(seen) / 255) ** 2
        found.append(-10 * math.log10(error.mean()))
    (record,) = trained.glob("*.json")
    # Bytes are within half a 255th of the colours.
    assert sum(found) / 2 == pytest.approx(json.loads(record.read_text())["psnr"], abs=0.05)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shown-depth.png", "shown-opacity.png", "shown.png"]


@pytest.mark.parametrize("dual", [False, True])
def test_a_view_at_another_width_shows_the_same(dual: bool, trained: Path, tmp_path: Path) -> None:
    small, large = (
        drawn(trained, tmp_path / f"{width}.png", width=width, dual=dual)[0] for width in (WIDTH, 3 * WIDTH)
    )
    assert pixels(large).shape == (3 * HEIGHT, 3 * WIDTH, 3)
    # The middle of every third pixel is that of a pixel of the small picture.
    middles = pixels(large)[1::3, 1::3].astype(int)
    assert abs(middles - pixels(small)).max() <= 1


def test_dual_is_another_picture(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Asked for on the command line, which names the files."""
    words = ["render", str(trained), "--view", "2", "--to"]
    assert main([*words, str(tmp_path / "one.png")]) == 0
    assert main([*words, str(tmp_path / "both.png"), "--dual"]) == 0
    assert (pixels(tmp_path / "one.png") != pixels(tmp_path / "both.png")).any()
    shown = " ".join(capsys.readouterr().out.split())
    assert "view: ./val/r_1" in shown
    assert f"picture: {tmp_path / 'one-depth.png'} ({WIDTH} x {HEIGHT})" in shown


def test_maps_hold_depth_and_opacity(tmp_path: Path) -> None:
    shown = {
        "colours": torch.tensor([[[0.0, 0.5, 1.0], [1.2, -0.1, 0.2]]]),
        "depth": torch.tensor([[0.0, 3.0]]),
        "opacity": torch.tensor([[0.25, 1.0]]),
    }
    colours, depth, opacity = (pixels(path) for path in write_still(tmp_path / "a.png", shown, far=4.0))
    assert colours.tolist() == [[[0, 128, 255], [255, 0, 51]]]
    assert depth.tolist() == [[0, round(0.75 * 65535)]]
    assert opacity.tolist() == [[64, 255]]


def test_a_turntable_as_a_gif_goes_once_around(trained: Path, tmp_path: Path) -> None:
    (path,) = drawn(trained, tmp_path / "around.gif", motion="turntable", frames=4, width=30)
    with Image.open(path) as moving:
        assert (moving.n_frames, moving.size, moving.info["loop"], moving.info["duration"]) == (4, (30, 20), 0, 50)
        frames = []
        for number in range(4):
            moving.seek(number)
            frames.append(np.asarray(moving.convert("RGB")).astype(float))
    # The ball of radius 1 stands in the middle of every picture: more red there than in the corners.
    for frame in frames:
        middle, corner = frame[8:12, 13:17].mean((0, 1)), frame[:2, :2].mean((0, 1))
        assert middle[0] - middle[1] > corner[0] - corner[1] + 50


def test_a_turntable_moves_around_what_the_training_views_see(trained: Path) -> None:
    """Around the ball at the origin, in the training views' mean height above it along their mean upward axis."""
    kept = load_scene_run(find_scene_run(trained))
    poses = np.stack([tiny_scene.look_at(position, (0, 0, 0))[:3] for position in POSITIONS[:5]])
    np.testing.assert_allclose(kept.around.poses.numpy(), poses, atol=1e-12)
    held_out = np.stack([tiny_scene.look_at(position, (0, 0, 0))[:3] for position in POSITIONS[5:7]])
    np.testing.assert_allclose(kept.cameras.poses.numpy(), held_out, atol=1e-12)
    options = RenderOptions(name=str(trained), motion="turntable", frames=8)
    moved = drawn_by(kept, options).poses.numpy()
    up = poses[:, :, 1].mean(0) / np.linalg.norm(poses[:, :, 1].mean(0))
    np.testing.assert_allclose(moved[:, :, 3] @ up, (poses[:, :, 3] @ up).mean(), atol=1e-9)
    # Each looks along its own -z at the origin.
    distance = np.linalg.norm(moved[:, :, 3], axis=1, keepdims=True)
    np.testing.assert_allclose(moved[:, :, 3] - distance * moved[:, :, 2], 0, atol=1e-9)


def test_a_model_that_renders_nothing_is_named() -> None:
    with pytest.raises(RunError, match=r"Linear has no method render\(rays, \*, dual\)"):
        _renders(torch.nn.Linear(11, 3))


def test_runs_stand_side_by_side(trained: Path, forward: Path, tmp_path: Path) -> None:
    """On the command line, as many as are named; a still's maps too."""
    other = copied(trained, tmp_path)
    state = torch.load(other / "last.ckpt", weights_only=True)
    state["state_dict"]["model.fine.out.bias"] += 1  # denser everywhere
    WholeFiles().save_checkpoint(state, other / "last.ckpt")
    one = [pixels(path) for path in drawn(trained, tmp_path / "one.png")]
    two = [pixels(path) for path in drawn(other, tmp_path / "two.png")]
    assert (one[0] != two[0]).any()
    words = ["render", str(trained), "--beside", str(other), str(trained), "--to", str(tmp_path / "all.png")]
    assert main(words) == 0
    for name, parts in zip(("all", "all-depth", "all-opacity"), zip(one, two, one, strict=True), strict=True):
        np.testing.assert_array_equal(pixels(tmp_path / f"{name}.png"), np.concatenate(parts, axis=1))
    drawn(trained, tmp_path / "all.gif", motion="turntable", frames=2, beside=[str(other)])
    assert pixels(tmp_path / "all.gif").shape[:2] == (HEIGHT, 2 * WIDTH)
    with pytest.raises(SettingsError, match=r"--beside .*run: this run was trained on other views than"):
        drawn(trained, tmp_path / "no.png", beside=[str(forward)])


def frames(width: int, height: int, count: int) -> list[np.ndarray]:
    """Pictures of one colour each, ever lighter."""
    return [np.full((height, width, 3), (40 * number, 60, 200), np.uint8) for number in range(count)]


def test_an_mp4_has_every_frame_at_the_next_even_size(tmp_path: Path) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="needs the extra [rendering] (imageio-ffmpeg)")
    given = frames(33, 21, 5)
    write_moving(tmp_path / "moving.mp4", iter(given))
    reader = ffmpeg.read_frames(str(tmp_path / "moving.mp4"))
    about = next(reader)
    assert (about["size"], about["fps"]) == ((34, 22), 20.0)
    found = [np.frombuffer(frame, np.uint8).reshape(22, 34, 3) for frame in reader]
    assert len(found) == 5
    for shown, frame in zip(found, given, strict=True):
        assert abs(shown.astype(int) - frame[0, 0]).max() < 16  # its colours are coarser
    assert [path.name for path in tmp_path.iterdir()] == ["moving.mp4"]


@pytest.mark.parametrize("kind", ["gif", "mp4"])
def test_nothing_is_left_of_a_moving_picture_that_fails(kind: str, tmp_path: Path) -> None:
    if kind == "mp4":
        pytest.importorskip("imageio_ffmpeg", reason="needs the extra [rendering] (imageio-ffmpeg)")

    def stops() -> Any:
        yield from frames(32, 32, 2)
        raise RuntimeError("stopped here")

    (tmp_path / f"moving.{kind}").write_bytes(b"the one before")
    with pytest.raises(RuntimeError, match="stopped here"):
        write_moving(tmp_path / f"moving.{kind}", stops())
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"the one before"]


def test_what_writes_mp4_is_named_before_anything_is_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)

    def never() -> Any:
        pytest.fail("a frame was rendered")
        yield

    with pytest.raises(SettingsError, match=r"moving\.mp4: imageio_ffmpeg is not .* 'bpfree\[rendering\]'.*\.gif"):
        write_moving(tmp_path / "moving.mp4", never())


def test_a_scene_seen_from_the_front_sways(forward: Path, tmp_path: Path) -> None:
    (path,) = drawn(forward, tmp_path / "moving.gif", motion="sway", frames=2)
    assert path.is_file()
    with pytest.raises(SettingsError, match=r"--motion turntable: .*--motion sway"):
        drawn(forward, tmp_path / "other.gif", motion="turntable")
    with pytest.raises(SettingsError, match="dual: a model with one field"):
        drawn(forward, tmp_path / "dual.png", dual=True)
    assert [path.name for path in tmp_path.iterdir()] == ["moving.gif"]


def test_the_surface_is_the_balls(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("skimage", reason="needs the extra [rendering] (scikit-image)")
    words = ["render", str(trained), "--mesh", "--cells", "24", "--to", str(tmp_path / "ball.ply")]
    assert main(words) == 0
    assert f"mesh: {tmp_path / 'ball.ply'} (" in capsys.readouterr().out
    header, _, body = (tmp_path / "ball.ply").read_bytes().partition(b"end_header\n")
    count = int(header.split(b"element vertex ")[1].split()[0])
    corners = np.frombuffer(body[: 27 * count], [("place", "<f4", 3), ("normal", "<f4", 3), ("colour", "u1", 3)])
    # The ball of radius 1 around the origin; a short training leaves mist behind it, which few of its corners are.
    away = np.linalg.norm(corners["place"], axis=1)
    assert 0.5 < np.median(away) < 1.5


def test_a_scene_seen_from_the_front_has_no_mesh(forward: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--mesh: .*normalized device coordinates"):
        drawn(forward, tmp_path / "mesh.ply", mesh=True)


def copied(run: Path, folder: Path) -> Path:
    """The folder of a copy of a run."""
    shutil.copytree(run, folder / "run")
    (found,) = (folder / "run").glob("*/model.json")
    return found.parent


def test_a_checkpoint_of_another_net_is_named(trained: Path, forward: Path, tmp_path: Path) -> None:
    run, other = copied(trained, tmp_path / "a"), copied(forward, tmp_path / "b")
    shutil.copy(other / "last.ckpt", run / "last.ckpt")
    with pytest.raises(
        DamageError, match=r"last\.ckpt does not hold the weights of the model in model\.json.*own checkpoint"
    ):
        drawn(run, tmp_path / "shown.png")
    assert not (tmp_path / "shown.png").exists()


@pytest.mark.parametrize(
    "change",
    [{"views": []}, {"trained_on": None}, {"width": 0}, {"near": 7.0}, {"ndc": 3}, {"far": "x"},
     {"views": [{"name": "a", "pose": [[2, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], "focal": [1, 1], "centre": [1, 1]}]}],
)  # fmt: skip
def test_cameras_that_are_none_are_named(change: dict[str, Any], trained: Path, tmp_path: Path) -> None:
    run = copied(trained, tmp_path)
    write_json(run / "cameras.json", read_json(run / "cameras.json") | change)
    with pytest.raises(DamageError, match=r"cameras\.json does not hold the cameras"):
        drawn(run, tmp_path / "shown.png")


def test_a_run_whose_cameras_are_missing_is_named(trained: Path, tmp_path: Path) -> None:
    run = copied(trained, tmp_path)
    (run / "cameras.json").unlink()
    with pytest.raises(RunError, match=rf"{run.name} is no run on a scene: it has no cameras\.json"):
        drawn(run, tmp_path / "shown.png")


@pytest.mark.parametrize("taken", ["shown.png", "shown-depth.png", "shown-opacity.png"])
def test_a_place_that_is_taken_is_named_before_anything_is_rendered(taken: str, trained: Path, tmp_path: Path) -> None:
    (tmp_path / taken).mkdir()
    with pytest.raises(WriteError, match=rf"{taken} is a folder"):
        drawn(trained, tmp_path / "shown.png")
    assert [path.name for path in tmp_path.iterdir()] == [taken]
    (tmp_path / "file").touch()
    for options in ({"to": "still.png"}, {"to": "a.gif", "motion": "turntable"}, {"to": "a.ply", "mesh": True}):
        options["to"] = str(tmp_path / "file" / options["to"])
        with pytest.raises(WriteError, match=r"the folder .*file cannot be made"):
            render(RenderOptions(name=str(trained), **options))


def test_mistakes_in_the_command_are_named(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="Name the folder of a run: bpfree render"):
        render(RenderOptions())
    with pytest.raises(SettingsError, match="--view 3: the run has 2 held-out views, 1 to 2"):
        drawn(trained, tmp_path / "shown.png", view=3)
    with pytest.raises(RunError, match="holds no run on a scene"):
        drawn(tmp_path, tmp_path / "shown.png")
    for wrong in (
        {"to": "a.gif"},
        {"to": "a.png", "motion": "sway"},
        {"to": "a", "motion": "turntable"},
        {"to": "a.obj", "mesh": True},
    ):
        with pytest.raises(SettingsError, match=r"--to a.*: a .* is a file that ends in \."):
            RenderOptions(**wrong)
    for wrong in ({"motion": "sway"}, {"beside": ["b"]}, {"dual": True}, {"width": 10}):
        with pytest.raises(SettingsError, match="--mesh: a mesh is of one run"):
            RenderOptions(mesh=True, **wrong)
    with pytest.raises(SettingsError, match="--density nan must be a number above 0"):
        RenderOptions(mesh=True, density=math.nan)
    for name in ("frames", "cells"):
        with pytest.raises(SettingsError, match=f"--{name} 1000000 must be at most"):
            RenderOptions(**{name: 10**6})
    with pytest.raises(SettingsError, match=r"--width 1000000: 1000000 x .* Name a smaller width"):
        drawn(trained, tmp_path / "shown.png", width=10**6)
    for name in ("view", "frames", "width", "cells"):
        with pytest.raises(SettingsError, match=f"--{name} 0 must be at least 1"):
            RenderOptions(**{name: 0})
