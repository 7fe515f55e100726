"""Learning views of a scene: runs, their records, and the same care for interruptions as for other tasks."""

import math
from dataclasses import replace

import pytest
import torch

import bpfree
from bpfree.lab.data import SceneSettings, load
from bpfree.lab.errors import RunError, SettingsError
from bpfree.lab.options.training import TrainOptions
from bpfree.lab.rendering.scores import psnr
from bpfree.lab.running.runs import Places, learner, run
from bpfree.lab.settings import RunSettings, rule_settings
from bpfree.lab.settings.model import ModelSettings
from bpfree.lab.tasks import TASKS, task_of
from bpfree.lab.tasks.views import ViewSynthesis
from support import tiny_scene
from support.interrupted_runs import Interrupting, assert_equal, crash

pytestmark = pytest.mark.long

SMALL = {"depth": 3, "width": 32, "skips": [], "samples": 16, "fine_samples": 16, "noise": 0.1}


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return load("blender", tiny_scene.blender(tmp_path_factory.mktemp("scene") / "ball"))


def settings(label="DFA", model="NeRF", arguments=None, **changes):
    chosen = ModelSettings(model, SMALL if arguments is None else arguments)
    given = {"label": label, "seed": 0, "rule": rule_settings(label, lr=2e-3, schedule="constant")}
    given |= {"model": chosen.describe(), "task": "views", "error_at": chosen.suggestion("error_at")}
    given |= {"epochs": 3, "steps": 12, "batch_size": 64, "threads": 1}
    return RunSettings(**(given | changes))


@pytest.mark.parametrize("label", ["BP", "Shallow", "FA", "DFA", "GrAPE", "FDFA", "DKP"])
def test_every_rule_runs_and_is_measured(label, scene, tmp_path):
    record = run(settings(label), scene, tmp_path)
    assert [epoch["step"] for epoch in record["epochs"]] == [4, 8, 12]
    last = record["epochs"][-1]
    assert record["psnr"] == last["eval_psnr"]
    assert record["ssim"] == last["eval_ssim"]
    assert math.isfinite(last["eval_loss"])
    assert record["data"]["n_eval"] == 2
    names = {tap["name"].partition(".")[0] for tap in last["alignment"]}
    assert names == {"coarse", "fine"}


def test_psnr_is_the_mean_of_the_views(scene, tmp_path):
    task = learner(settings(), scene).eval()
    feed = ViewSynthesis.feed(settings(), scene, TASKS["views"])
    expected = []
    for number, (rays, picture) in enumerate(feed.evaluation):
        task.validation_step((rays, picture))
        with torch.no_grad():
            shown = task.model.render(scene.evaluation.of_view(number)[0])["colours"].double()
        expected.append(-10 * math.log10((shown - picture.flatten(0, 1)).square().mean()))
    found = {name: float(value) for name, value in task.eval_measures.compute().items()}
    assert found["psnr"] == pytest.approx(sum(expected) / 2, abs=1e-4)
    assert abs(expected[0] - expected[1]) > 1e-3


def test_dual_and_noise_are_means_of_the_views(scene, tmp_path):
    record = run(settings(epochs=1), scene, tmp_path)
    task = learner(settings(epochs=1), scene).eval()
    checkpoint = run(settings(epochs=1), scene, tmp_path / "kept", keep_checkpoint=True)
    assert checkpoint["dual_psnr"] == record["dual_psnr"]
    (place,) = (tmp_path / "kept").glob("*/last.ckpt")
    state = torch.load(place, weights_only=True)["state_dict"]
    task.model.load_state_dict({name[6:]: value for name, value in state.items() if name.startswith("model.")})
    for dual, psnr_name, noise_name in ((False, "psnr", "noise"), (True, "dual_psnr", "dual_noise")):
        errors, rough = [], []
        for number in range(2):
            rays, truth = scene.evaluation.of_view(number)
            residual = (task.model.render(rays, dual=dual)["colours"].view_as(truth) - truth).double()
            errors.append(-10 * math.log10(residual.square().mean()))
            around = residual.unfold(0, 3, 1).unfold(1, 3, 1).mean((-1, -2))
            rough.append(1e4 * float((residual[1:-1, 1:-1] - around).square().mean()))
        assert record[psnr_name] == pytest.approx(sum(errors) / 2, abs=1e-4)
        assert record[noise_name] == pytest.approx(sum(rough) / 2, rel=1e-4)
    tiny = run(settings("BP", "NeRFTiny", {"width": 16, "samples": 8}, epochs=1), scene, tmp_path)
    assert tiny["noise"] > 0
    assert (tiny["dual_psnr"], tiny["dual_ssim"], tiny["dual_noise"]) == (None, None, None)


def test_rays_of_all_views_are_drawn_by_the_seed_alone(scene):
    chosen = settings(batch_size=500)
    feed = ViewSynthesis.feed(chosen, scene, TASKS["views"])
    x, _ = next(iter(feed.train))
    assert len(x[:, :3].unique(dim=0)) == 5  # origins: every view is in a batch of 500 rays
    again, _ = next(iter(ViewSynthesis.feed(chosen, scene, TASKS["views"]).train))
    other, _ = next(iter(ViewSynthesis.feed(replace(chosen, seed=1), scene, TASKS["views"]).train))
    assert torch.equal(x, again)
    assert not torch.equal(x, other)
    assert len(feed.aligned()[0]) == 256


def timeless(record):
    """A record without times."""
    epochs = [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in record["epochs"]]
    return {"epochs": epochs, "psnr": record["psnr"], "ssim": record["ssim"], "data": record["data"]}


@pytest.mark.parametrize("label", ["DFA", "FDFA"])
def test_an_interrupted_run_continues_bit_for_bit(label, scene, tmp_path):
    """Places on rays and noise come from the random state of the checkpoint, rays from the step's number."""
    whole = run(settings(label), scene, tmp_path / "whole")
    with pytest.raises(OSError, match="stopped here"):
        run(settings(label), scene, tmp_path / "cut", display=Interrupting(7, crash))
    assert Places.of(settings(label), scene, tmp_path / "cut").checkpoints()
    assert_equal(timeless(run(settings(label), scene, tmp_path / "cut")), timeless(whole))


def test_backpropagation_and_dfa_learn_the_ball_and_the_output_layer_alone_does_not(scene, tmp_path):
    tiny = {"width": 64, "samples": 24}
    found = {}
    for label in ("BP", "DFA", "Shallow"):
        chosen = settings(label, "NeRFTiny", tiny, epochs=1, steps=150, batch_size=128, alignment="never")
        found[label] = run(replace(chosen, rule=replace(chosen.rule, lr=5e-3)), scene, tmp_path)["psnr"]
    _, colours = scene.train.batch(torch.arange(len(scene.train)))
    views = [scene.evaluation.of_view(number)[1] for number in range(2)]
    of_the_mean = sum(psnr(colours.mean(0).expand_as(view), view) for view in views) / 2
    assert found["Shallow"] < of_the_mean + 1 < found["DFA"] - 4
    assert found["BP"] > of_the_mean + 6


def test_the_background_of_model_and_scene_must_be_one(scene):
    with pytest.raises(SettingsError, match=r"--model.background 0: behind what is transparent in ball is 1"):
        learner(settings(arguments=SMALL | {"background": 0.0}), scene)


def test_a_model_that_gives_something_else_is_named(scene):
    task = learner(settings(), scene)
    with pytest.raises(RunError, match=r"the model gives \(5, 3\) for 5 rays"):
        task.loss(torch.zeros(5, 3), torch.zeros(5, 3))


def test_the_formats_are_data_sets_of_this_task(tmp_path):
    for name in ("blender", "llff", "nerfstudio"):
        assert task_of(name).name == "views"
    options = TrainOptions(data="blender", model=ModelSettings("NeRFTiny"))
    assert options.run("DFA", 0, details=False).error_at == ["coarse"]
    assert TrainOptions(data="llff").run("DFA", 0, details=False).error_at == ["coarse", "fine"]
    with pytest.raises(SettingsError, match="--validation 3"):
        load("blender", tiny_scene.blender(tmp_path), validation=3)
    with pytest.raises(SettingsError, match="--scene"):
        load("digits", scene=SceneSettings(near=1.0))


def test_windows_serve_the_tiny_model(scene, tmp_path):
    rule = rule_settings("FDFA", lr=2e-3, window=2, schedule="constant")
    chosen = settings("FDFA", "NeRFTiny", {"width": 16, "samples": 8}, rule=rule)
    assert math.isfinite(run(chosen, scene, tmp_path)["psnr"])


def one(model):
    attachment = bpfree.attach(model, bpfree.DFA(), error_at=("coarse", "fine"))
    return lambda: attachment.feedbacks


def two(model):
    attachments = model.attach(bpfree.DFA())
    return lambda: {name: attachment.feedback for name, attachment in attachments.items()}


@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {"accumulate": 4}])
def test_steps_in_bfloat16_and_in_parts(changes, scene, tmp_path):
    whole, other = (run(settings(epochs=1, alignment="never", **given), scene, tmp_path) for given in ({}, changes))
    # Places on rays are drawn anew for each part, and bfloat16 has three digits.
    assert other["psnr"] == pytest.approx(whole["psnr"], abs=1.0)
    assert other["psnr"] != whole["psnr"]


def test_one_attachment_with_two_errors_teaches_as_two_attachments():
    """The same feedback, the same gradients, bit for bit."""
    found = []
    for attach in (one, two):
        torch.manual_seed(0)
        model = ModelSettings("NeRF", SMALL).build((11,), 3)
        feedback, rays = attach(model), torch.rand(8, 11)
        model(rays)  # draws the feedback
        for number, name in enumerate(("coarse", "fine")):
            matrix = feedback()[name]["shared"]
            matrix.copy_(torch.randn(matrix.shape, generator=torch.Generator().manual_seed(number)))
        torch.manual_seed(1)
        model(rays).square().mean().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert any(gradient.any() for gradient in found[0])
    for together, apart in zip(*found, strict=True):
        assert torch.equal(together, apart)
