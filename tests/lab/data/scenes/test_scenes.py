"""Scenes from files: what is read, what is held out, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from bpfree.lab.data.scenes import SceneSettings, load_blender, load_llff, load_nerfstudio
from bpfree.lab.data.scenes.scene import spread
from bpfree.lab.errors import DataError, SettingsError
from support import tiny_scene
from support.sheets import DATA
from support.tiny_scene import FOCAL, HEIGHT, WIDTH

BOUNDS = SceneSettings(near=1.0, far=7.0)


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_a_scene_of_blender(tmp_path):
    scene = load_blender(tiny_scene.blender(tmp_path / "ball"))
    assert (scene.train.count, scene.evaluation.count, scene.measured_on) == (5, 2, "validation")
    assert (scene.shape, scene.classes, scene.name) == ((11,), 3, "ball")
    rays, colours = scene.train.batch(torch.arange(len(scene.train)))
    assert rays.shape == (5 * WIDTH * HEIGHT, 11)
    assert rays.dtype == colours.dtype == torch.float32
    # Red where the ball is, white behind it: the green under full transparency is nowhere.
    assert set(map(tuple, (255 * colours).round().int().tolist())) == {(200, 30, 30), (255, 255, 255)}
    assert scene.train.cameras.focal[0].tolist() == pytest.approx([FOCAL, FOCAL])
    assert rays[:, 9].unique().item() == 2.0
    assert rays[:, 10].unique().item() == 6.0
    test = load_blender(tmp_path / "ball", SceneSettings(measured_on="test", background=0.0))
    assert test.evaluation.names == ("./test/r_0", "./test/r_1")
    assert (test.evaluation.of_view(0)[1][0, 0] == 0).all()


def test_half_transparent_pixels_are_mixed_with_the_background(tmp_path):
    tiny_scene.blender(tmp_path)
    pixels = np.full((HEIGHT, WIDTH, 4), (100, 200, 50, 51), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "train" / "r_0.png")
    _, picture = load_blender(tmp_path, SceneSettings(background=0.5)).train.of_view(0)
    expected = 0.2 * torch.tensor([100, 200, 50]) / 255 + 0.8 * 0.5
    torch.testing.assert_close(picture[3, 4], expected)


def test_pixels_are_numbered_row_by_row_view_after_view(tmp_path):
    views = load_blender(tiny_scene.blender(tmp_path)).train
    index = torch.tensor([3 * WIDTH * HEIGHT + 5 * WIDTH + 12, 0, 7 * WIDTH + 11])
    rays, colours = views.batch(index)
    for row, (view, y, x) in enumerate([(3, 5, 12), (0, 0, 0), (0, 7, 11)]):
        of_view, picture = views.of_view(view)
        assert torch.equal(colours[row], picture[y, x])
        assert torch.equal(rays[row], of_view.pack()[y * WIDTH + x])


def test_a_scene_of_nerfstudio_holds_out_every_eighth_view(tmp_path):
    scene = load_nerfstudio(tiny_scene.nerfstudio(tmp_path), BOUNDS)
    assert scene.evaluation.names == ("images/frame_00000.png", "images/frame_00008.png")
    assert (scene.train.count, scene.measured_on) == (7, "test")
    assert not set(scene.train.names) & set(scene.evaluation.names)
    assert load_nerfstudio(tmp_path, SceneSettings(near=1, far=7, hold_out=2)).evaluation.count == 5


def test_a_scene_of_nerfstudio_holds_out_what_its_file_says(tmp_path):
    names = [f"images/frame_{number:05d}.png" for number in range(9)]
    said = {"train_filenames": names[:6], "val_filenames": names[6:7], "test_filenames": names[7:]}
    scene = load_nerfstudio(tiny_scene.nerfstudio(tmp_path, **said), BOUNDS)
    assert scene.train.names == tuple(names[:6])
    assert (scene.evaluation.names, scene.measured_on) == ((names[6],), "validation")
    test = load_nerfstudio(tmp_path, SceneSettings(near=1, far=7, measured_on="test"))
    assert test.evaluation.names == tuple(names[7:])


def test_each_view_of_nerfstudio_may_have_a_lens_of_its_own(tmp_path):
    tiny_scene.nerfstudio(tmp_path)
    change(tmp_path / "transforms.json", lambda c: c["frames"][2].update(fl_x=50.0, cx=10.0))
    cameras = load_nerfstudio(tmp_path, BOUNDS).train.cameras
    assert cameras.focal[:3].tolist() == [[FOCAL, FOCAL], [50.0, FOCAL], [FOCAL, FOCAL]]
    assert cameras.centre[1].tolist() == [10.0, HEIGHT / 2]


def test_a_scene_of_llff(tmp_path):
    scene = load_llff(tiny_scene.llff(tmp_path))
    assert scene.evaluation.names == ("view00.png", "view08.png")
    assert (scene.train.count, scene.measured_on) == (13, "test")
    assert scene.train.cameras.focal[0].tolist() == pytest.approx([FOCAL, FOCAL])
    assert (scene.train.cameras.near, scene.train.cameras.far) == (0.0, 1.0)
    plain = load_llff(tmp_path, SceneSettings(ndc=False))
    assert (plain.train.cameras.near, plain.train.cameras.far) == pytest.approx((0.9 * 4 / 3, 7 / 3))


def test_one_folder_of_pictures_is_taken_and_several_are_named(tmp_path):
    tiny_scene.llff(tmp_path)
    tiny_scene.llff(tmp_path, factor=4)
    with pytest.raises(DataError, match=r"--scene.factor N.*images_2, images_4"):
        load_llff(tmp_path)
    assert load_llff(tmp_path, SceneSettings(factor=4)).train.count == 13  # the file was written for this one
    with pytest.raises(DataError, match=r"images_2 has pictures of 24 x 16 pixels.*poses_bounds.npy says 96 x 64"):
        load_llff(tmp_path, SceneSettings(factor=2))
    with pytest.raises(DataError, match=r"--scene.factor 3 names no folder"):
        load_llff(tmp_path, SceneSettings(factor=3))
    for no_factor in ("images_0", "images_02"):
        (tmp_path / no_factor).mkdir()
    with pytest.raises(DataError, match=r"--scene.factor N.*there are: images_2, images_4\."):
        load_llff(tmp_path)


def test_held_out_views_are_spread_evenly(tmp_path):
    assert spread(200, 20).tolist() == list(range(0, 200, 10))
    assert spread(13, None).tolist() == list(range(13))
    assert spread(3, 20).tolist() == [0, 1, 2]
    scene = load_blender(tiny_scene.blender(tmp_path), SceneSettings(views=1))
    assert scene.evaluation.names == ("./val/r_0",)


def test_first_views(tmp_path):
    scene = load_blender(tiny_scene.blender(tmp_path))
    assert scene.first(2).train.names == ("./train/r_0", "./train/r_1")
    assert scene.first(2).describe()["n_train"] == 2
    assert scene.first(100).train.count == 5


def test_checksums_follow_every_file(tmp_path):
    before = load_blender(tiny_scene.blender(tmp_path)).checksums
    pixels = np.array(Image.open(tmp_path / "train" / "r_1.png"))
    pixels[0, 0] = 7
    Image.fromarray(pixels).save(tmp_path / "train" / "r_1.png")
    after = load_blender(tmp_path).checksums
    assert {name for name in before if before[name] != after[name]} == {"pictures of transforms_train.json"}


def test_which_views_are_held_out_is_part_of_the_data(tmp_path):
    """A run on other views of the same files is another run."""
    tiny_scene.nerfstudio(tmp_path)
    facts = [
        load_nerfstudio(tmp_path, SceneSettings(near=1, far=7, hold_out=every, views=1)).first(3).describe()
        for every in (2, 3)
    ]
    assert facts[0]["n_train"] == facts[1]["n_train"]
    assert facts[0]["checksums"] != facts[1]["checksums"]


def scaled(content):
    matrix = np.array(content["frames"][1]["transform_matrix"])
    matrix[:3, :3] *= 1.01
    content["frames"][1]["transform_matrix"] = matrix.tolist()


def mirrored(content):
    matrix = np.array(content["frames"][1]["transform_matrix"])
    matrix[:3, 0] *= -1
    content["frames"][1]["transform_matrix"] = matrix.tolist()


def entry(key, value):
    return lambda content: content.update({key: value})


def of_frame(key, value):
    return lambda content: content["frames"][1].update({key: value})


LISTS = {
    "scaled": (scaled, r"frames\[1\], ./train/r_1: its pose is no rotation"),
    "mirrored": (mirrored, r"frames\[1\].*reflection"),
    "last row": (lambda c: c["frames"][1]["transform_matrix"][3].__setitem__(0, 1.0), r"last row of a pose"),
    "not finite": (lambda c: c["frames"][1]["transform_matrix"][0].__setitem__(3, float("nan")), r"not finite"),
    "short": (lambda c: c["frames"][1].update(transform_matrix=[[1, 0], [0, 1]]), r"shape \(2, 2\)"),
    "ragged": (lambda c: c["frames"][1]["transform_matrix"][0].pop(), r"no transform_matrix"),
    "no matrix": (lambda c: c["frames"][1].pop("transform_matrix"), r"no transform_matrix"),
    "no name": (lambda c: c["frames"][1].pop("file_path"), r"frames\[1\] has no file_path"),
    "missing": (of_frame("file_path", "./train/r_99"), r"lists the view .*r_99 \(or with .png.*missing"),
    "no frames": (lambda c: c.pop("frames"), r"no list frames"),
    "empty": (entry("frames", []), r"lists no views to learn from"),
    "no lens": (lambda c: c.pop("camera_angle_x"), r"neither camera_angle_x nor fl_x"),
    "no angle": (entry("camera_angle_x", 4.0), r"field of view"),
    "focal": (entry("fl_x", -3.0), r"must be positive"),
    "words": (entry("fl_x", "wide"), r"fl_x is 'wide', no number"),
    "large matrix": (lambda c: c["frames"][1]["transform_matrix"][0].__setitem__(3, 10**400), r"no transform_matrix"),
    "large lens": (entry("fl_x", 10**400), r"fl_x is 1000.*, no number of a lens"),
    "endless lens": (entry("cy", float("inf")), r"cy is inf, no number of a lens"),
    "root": (of_frame("file_path", "/"), r"missing"),
    "twice": (of_frame("file_path", "./train/r_0"), r"lists ./train/r_0 twice"),
    "twice, by another way": (of_frame("file_path", "train/../train/r_0"), r"lists train/../train/r_0 twice"),
    "nothing": (of_frame("file_path", "\0"), r"missing"),
    "long": (of_frame("file_path", "r" * 5000), r"missing"),
    "size": (entry("w", 800), r"w is 800, and .*r_0.png has 24 x 16 pixels"),
    "lens": (entry("k1", 0.1), r"bends lines \(k1\)"),
    "fisheye": (entry("camera_model", "OPENCV_FISHEYE"), r"camera_model OPENCV_FISHEYE"),
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_that_is_wrong_is_named_with_the_view(kind, tmp_path):
    edit, message = LISTS[kind]
    tiny_scene.blender(tmp_path)
    change(tmp_path / "transforms_train.json", edit)
    with pytest.raises(DataError, match=message) as caught:
        load_blender(tmp_path)
    assert "transforms_train.json" in str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b'{"frames": 3}', b'{"frames": [3]}'])
def test_a_file_that_is_no_list_is_named(content, tmp_path):
    tiny_scene.blender(tmp_path)
    (tmp_path / "transforms_train.json").write_bytes(content)
    with pytest.raises(DataError, match=r"transforms_train.json"):
        load_blender(tmp_path)


def write(pixels):
    return lambda path: Image.fromarray(pixels).save(path)


PICTURES = {
    "size": (write(np.zeros((16, 25, 4), dtype=np.uint8)), r"r_1.png has 25 x 16 pixels, r_0.png has 24 x 16"),
    "channels": (write(np.zeros((16, 24, 3), dtype=np.uint8)), r"r_1.png is RGB, r_0.png is RGBA"),
    "no picture": (lambda path: path.write_bytes(b"no picture"), r"r_1.png cannot be decoded"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:60]), r"r_1.png cannot be decoded"),
    "missing": (lambda path: path.unlink(), r"r_1 .*missing"),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_that_does_not_fit_is_named(kind, tmp_path):
    edit, message = PICTURES[kind]
    tiny_scene.blender(tmp_path)
    edit(tmp_path / "train" / "r_1.png")
    with pytest.raises(DataError, match=message):
        load_blender(tmp_path)


def test_pictures_of_the_held_out_views_have_the_size_of_the_others(tmp_path):
    tiny_scene.blender(tmp_path)
    for path in (tmp_path / "val").iterdir():
        Image.new("RGBA", (30, 30)).save(path)
    with pytest.raises(DataError, match=r"transforms_val.json have another size"):
        load_blender(tmp_path)


@pytest.mark.parametrize(("channels", "alpha"), [("rgb", True), ("rgba", False)])
def test_transparency_that_was_not_told(channels, alpha, tmp_path):
    tiny_scene.blender(tmp_path, alpha=alpha)
    with pytest.raises(DataError, match=rf"r_0.png is RGB.*--scene.channels says {channels}"):
        load_blender(tmp_path, SceneSettings(channels=channels))
    other = "rgba" if alpha else "rgb"
    assert load_blender(tmp_path, SceneSettings(channels=other)).train.pixels.shape[-1] == (4 if alpha else 3)


@pytest.mark.parametrize("part", ["val", "test"])
@pytest.mark.parametrize("how", ["missing", "empty"])
def test_no_held_out_views_in_a_scene_of_blender(part, how, tmp_path):
    tiny_scene.blender(tmp_path)
    path = tmp_path / f"transforms_{part}.json"
    path.unlink() if how == "missing" else change(path, entry("frames", []))
    settings = SceneSettings(measured_on="validation" if part == "val" else "test")
    with pytest.raises(DataError, match=rf"no held-out views: .*transforms_{part}.json .*--scene.measured_on"):
        load_blender(tmp_path, settings)


def test_no_held_out_views_in_a_scene_of_nerfstudio(tmp_path):
    said = {"train_filenames": ["images/frame_00000.png"], "test_filenames": ["images/frame_00001.png"]}
    tiny_scene.nerfstudio(tmp_path, **said)
    with pytest.raises(DataError, match=r"no held-out views: .*transforms.json has no val_filenames"):
        load_nerfstudio(tmp_path, BOUNDS)
    change(tmp_path / "transforms.json", entry("val_filenames", ["images/nowhere.png"]))
    with pytest.raises(DataError, match=r"transforms.json: val_filenames names 'images/nowhere.png'"):
        load_nerfstudio(tmp_path, BOUNDS)
    change(tmp_path / "transforms.json", entry("val_filenames", [{}]))
    with pytest.raises(DataError, match=r"transforms.json: val_filenames names {}"):
        load_nerfstudio(tmp_path, BOUNDS)
    change(tmp_path / "transforms.json", lambda c: [c.pop(key) for key in (*said, "val_filenames")])
    change(tmp_path / "transforms.json", lambda c: c.update(frames=c["frames"][:1]))
    with pytest.raises(DataError, match=r"transforms.json: no views to learn from, of 1 in all"):
        load_nerfstudio(tmp_path, BOUNDS)


NAMES = [f"images/frame_{number:05d}.png" for number in range(3)]
SPLITS = {
    "in both": ({"train_filenames": NAMES, "val_filenames": NAMES[2:]}, r"frame_00002.png stands twice"),
    "twice to learn from": ({"train_filenames": NAMES[:1] * 9, "val_filenames": NAMES[2:]}, r"00000.png stands twice"),
    "twice held out": ({"train_filenames": NAMES[:1], "val_filenames": NAMES[2:] * 2}, r"00002.png stands twice"),
    "a name": ({"train_filenames": NAMES[:2], "val_filenames": NAMES[2]}, r"val_filenames is no list of names"),
    "a number": ({"train_filenames": 3, "val_filenames": NAMES[2:]}, r"train_filenames is no list of names"),
}


@pytest.mark.parametrize("kind", SPLITS)
def test_a_view_is_held_out_or_learned_from_and_once(kind, tmp_path):
    said, message = SPLITS[kind]
    tiny_scene.nerfstudio(tmp_path, **said)
    with pytest.raises(DataError, match=rf"transforms.json: .*{message}"):
        load_nerfstudio(tmp_path, BOUNDS)


def test_grey_of_16_bits_is_not_cut_at_255(tmp_path):
    tiny_scene.nerfstudio(tmp_path)
    for path in (tmp_path / "images").iterdir():
        write(np.full((16, 24), 30_000, dtype=np.uint16))(path)
    assert (load_nerfstudio(tmp_path, BOUNDS).train.pixels == round(30_000 / 65_535 * 255)).all()


def test_masks_are_not_passed_over(tmp_path):
    tiny_scene.nerfstudio(tmp_path)
    change(tmp_path / "transforms.json", of_frame("mask_path", "masks/1.png"))
    with pytest.raises(DataError, match=r"frame_00001.png has a mask_path"):
        load_nerfstudio(tmp_path, BOUNDS)


def test_bounds_that_are_not_known_or_mean_nothing(tmp_path):
    with pytest.raises(SettingsError, match=r"transforms.json does not say where .*--scene.near"):
        load_nerfstudio(tiny_scene.nerfstudio(tmp_path / "a"))
    with pytest.raises(SettingsError, match=r"near 7 is not before far 6"):
        load_blender(tiny_scene.blender(tmp_path / "b"), SceneSettings(near=7.0))
    with pytest.raises(SettingsError, match=r"--scene.near: in normalized device coordinates"):
        load_llff(tiny_scene.llff(tmp_path / "c"), SceneSettings(near=0.5))


def turned(rows):
    """The second camera looks back: its right and back axes are turned around."""
    pose = rows[1, :15].reshape(3, 5)
    pose[:, 1:3] *= -1


ROWS = {
    "near behind far": (lambda rows: rows[1, 15:].__setitem__(slice(None), (5.0, 4.0)), r"row 1 has near 5 and far 4"),
    "near at zero": (lambda rows: rows[:, 15].fill(0.0), r"row 0 has near 0"),
    "no rotation": (lambda rows: rows[1].__setitem__(0, 7.0), r"row 1, view01.png: its pose is no rotation"),
    "not finite": (lambda rows: rows[2].__setitem__(3, np.inf), r"not finite"),
    "no focal length": (lambda rows: rows[2].__setitem__(14, 0.0), r"must be positive"),
    "backward": (turned, r"some cameras look back.*--scene.ndc false"),
}


@pytest.mark.parametrize("kind", ROWS)
def test_a_row_of_llff_that_is_wrong_is_named(kind, tmp_path):
    edit, message = ROWS[kind]
    path = tiny_scene.llff(tmp_path) / "poses_bounds.npy"
    rows = np.load(path)
    edit(rows)
    np.save(path, rows)
    with pytest.raises(DataError, match=message) as caught:
        load_llff(tmp_path)
    assert "poses_bounds.npy" in str(caught.value)


def huge_header(path):
    """A header that declares more than the file has."""
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"(15, 17)", b"(999999999, 17)").replace(b"  " * 4, b"", 1))


FILES = {
    "missing": lambda path: path.unlink(),
    "text": lambda path: path.write_text("no numbers"),
    "empty": lambda path: path.write_bytes(b""),
    "zip": lambda path: path.write_bytes(b"PK\x03\x04 and nothing more"),
    "archive": lambda path: np.savez(path.open("wb"), rows=np.zeros((15, 17))),
    "words": lambda path: np.save(path, np.full((15, 17), "a")),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-8]),
    "header": huge_header,
    "shape": lambda path: np.save(path, np.zeros((15, 16))),
    "objects": lambda path: np.save(path, np.array([{}], dtype=object), allow_pickle=True),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_of_llff_that_is_damaged_is_named(kind, tmp_path):
    path = tiny_scene.llff(tmp_path) / "poses_bounds.npy"
    FILES[kind](path)
    with pytest.raises(DataError, match=r"poses_bounds.npy"):
        load_llff(tmp_path)


def test_pictures_of_llff_that_do_not_match(tmp_path):
    tiny_scene.llff(tmp_path)
    (tmp_path / "images_2" / "view14.png").unlink()
    with pytest.raises(DataError, match=r"images_2 has 14 pictures, and .*poses_bounds.npy has the poses of 15"):
        load_llff(tmp_path)
    shutil.rmtree(tmp_path / "images_2")
    with pytest.raises(DataError, match=r"--scene.factor N.*there are: none"):
        load_llff(tmp_path)


@pytest.mark.parametrize("loader", [load_blender, load_llff, load_nerfstudio])
def test_no_folder(loader):
    with pytest.raises(DataError, match="--data-dir"):
        loader(None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"views": 0},
        {"hold_out": 1},
        {"factor": 0},
        {"near": -1.0},
        {"far": float("inf")},
        {"near": 3.0, "far": 2.0},
        {"background": 2.0},
    ],
)
def test_settings_that_mean_nothing(wrong):
    with pytest.raises(SettingsError, match=rf"--scene.{next(iter(wrong))}"):
        SceneSettings(**wrong)


needs_lego = pytest.mark.skipif(not (DATA / "nerf_synthetic").is_dir(), reason="needs ../shared/data/nerf_synthetic")
needs_fern = pytest.mark.skipif(not (DATA / "nerf_llff_data").is_dir(), reason="needs ../shared/data/nerf_llff_data")


@needs_lego
def test_lego_is_read_as_its_authors_made_it():
    scene = load_blender(DATA / "nerf_synthetic" / "lego_100")
    assert (scene.train.count, scene.evaluation.count) == (100, 100)
    assert scene.train.cameras.focal[0, 0].item() == pytest.approx(138.889, abs=1e-3)
    middle = scene.train.cameras.poses
    distance = middle[:, :, 3].norm(dim=1)
    torch.testing.assert_close(distance, torch.full_like(distance, 4.03113), atol=1e-5, rtol=0)
    towards = -(middle[:, :, 3] / distance[:, None] * -middle[:, :, 2]).sum(1)
    assert towards.min() > 0.99999  # all look at the origin


@needs_fern
def test_fern_is_read_as_its_authors_made_it():
    scene = load_llff(DATA / "nerf_llff_data" / "fern")
    assert (scene.train.count, scene.evaluation.count) == (17, 3)
    assert scene.evaluation.names == ("image000.png", "image008.png", "image016.png")
    assert scene.train.cameras.focal[0].tolist() == pytest.approx([407.57, 407.57], abs=0.01)
    assert (scene.train.cameras.width, scene.train.cameras.height) == (504, 378)
