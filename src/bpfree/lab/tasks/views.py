"""New views of a scene by any learning rule: a radiance field that learns from the colours of rays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection

from bpfree.lab.data.batches import InOrder, Shuffled, batches
from bpfree.lab.data.scenes import Scene, Views
from bpfree.lab.data.scenes.scene import spread
from bpfree.lab.errors import RunError, SettingsError
from bpfree.lab.rendering.rays import Rays
from bpfree.lab.rendering.scores import noise, psnr, ssim
from bpfree.lab.settings import RunSettings
from bpfree.lab.tasks.feed import Feed
from bpfree.lab.tasks.learner import Learner
from bpfree.lab.tasks.task import Task
from bpfree.lab.tasks.view_sheet import sheet

_RAYS = 2**10
"""Rays rendered at once in evaluation."""
Score: TypeAlias = Callable[[Tensor, Tensor], float | None]
"""A comparison of a view with the true one."""
_OF_VIEWS = ("noise", "dual_psnr", "dual_ssim", "dual_noise")


class WholeViews:
    """Views as samples of an evaluation: a batch is one view.

    Args:
        views: The views.
    """

    def __init__(self, views: Views) -> None:
        self._views = views

    def __len__(self) -> int:
        return self._views.count

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the packed rays of one view, ``(height * width, 11)``, and its picture ``(height, width, 3)``."""
        rays, picture = self._views.of_view(int(index))
        return rays.pack(), picture


class ViewSynthesis(Learner):
    """A model that learns the colours of rays from their squared error, summed over its nets.

    Args:
        model: Maps packed rays ``(n, 11)`` to colours ``(n, nets, 3)``, the last of which are the picture.
        run: The rule, its optimizer, where feedback enters, and the seed of the feedback.
        scene: The scene.

    Raises:
        SettingsError: The model has another background than the scene.
    """

    def __init__(self, model: nn.Module, run: RunSettings, scene: Scene) -> None:
        _require_background(model, scene)
        super().__init__(model, run, {"psnr": MeanMetric(nan_strategy="disable")})
        self._similarities: list[float] = []
        self._ssim: float | None = None

    @classmethod
    def feed(cls, settings: RunSettings, data: Scene, task: Task) -> Feed:
        """Return batches of rays, drawn from all training views; evaluation is view by view.

        Alignment is measured on rays from all over the held-out views.
        """
        train, held_out = data.train, data.evaluation
        order = Shuffled(len(train), settings.batch_size, settings.seed, settings.length.steps)
        measured = spread(len(held_out), task.alignment_samples)
        return Feed(
            batches(train, order),
            batches(WholeViews(held_out), InOrder(held_out.count, 1)),
            lambda samples: train.batch(torch.arange(min(samples, len(train)))),
            lambda: held_out.batch(measured),
        )

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        """Return the mean squared error of colours ``(n, nets, 3)`` and the true ones ``(n, 3)``, summed over nets.

        Raises:
            RunError: The model gives something else.
        """
        if output.dim() != 3 or output.shape[0] != len(y) or output.shape[2] != 3:
            raise RunError(
                f"the model gives {tuple(output.shape)} for {len(y)} rays; it must give a colour of each net for each: "
                f"({len(y)}, nets, 3)."
            )
        return (output - y[:, None]).square().mean((0, 2)).sum()

    def update(self, measures: MetricCollection, output: Tensor, y: Tensor) -> None:
        """Measure the last net's colours of a batch, which is a view in evaluation."""
        measures["psnr"].update(psnr(output[:, -1], y))

    def values(self, measures: MetricCollection) -> dict[str, float]:
        """Return mean loss, and PSNR, which is the mean over batches in training and over views in evaluation."""
        return {name: float(value) for name, value in measures.compute().items()}

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Render a view and measure it."""
        rays, picture = batch[0], batch[1]
        with self.autocast():
            output = torch.cat([self(part) for part in rays.split(_RAYS)]).float()
        truth = picture.flatten(0, 1)
        self._measure(self.eval_measures, self.loss(output, truth), output, truth)
        found = ssim(output[:, -1].unflatten(0, picture.shape[:2]), picture)
        if found is not None:
            self._similarities.append(found)

    def measured(self) -> dict[str, float]:
        """Return the values measured since the last call, and the mean structural similarity of held-out views."""
        found, similarities = super().measured(), self._similarities
        self._similarities = []
        if not similarities:  # the views have no room for its window
            return found
        self._ssim = sum(similarities) / len(similarities)
        return found | {"eval_ssim": self._ssim}

    def pictures(self, splits: Scene) -> dict[str, Any]:
        """Return held-out views beside the truth, see :func:`bpfree.lab.tasks.view_sheet.sheet`."""
        model: Any = self.model
        return {"views": sheet(model, splits.evaluation)} if callable(getattr(model, "render", None)) else {}

    def numbers(self, feed: Feed) -> dict[str, float | None]:
        """Return the structural similarity of the last evaluation, and how noisy the held-out views are.

        For a model with a coarse and a fine net the same scores follow of views by the mean of both (NeRF-Dual), under
        names that begin with ``dual``.
        """
        found: dict[str, float | None] = {"ssim": self._ssim, **dict.fromkeys(_OF_VIEWS)}
        if not callable(getattr(self.model, "render", None)):
            return found
        found |= self._mean_scores(feed, {"noise": noise})
        if getattr(self.model, "fine", None) is not None:
            dual = self._mean_scores(feed, {"psnr": psnr, "ssim": ssim, "noise": noise}, dual=True)
            found |= {f"dual_{name}": value for name, value in dual.items()}
        return found

    def _mean_scores(self, feed: Feed, scores: Mapping[str, Score], *, dual: bool = False) -> dict[str, float | None]:
        """Return the means over held-out views of these scores, None where a view has no room for one."""
        model: Any = self.model
        values: dict[str, list[float | None]] = {name: [] for name in scores}
        for rays, truth in feed.evaluation or ():
            shown = model.render(Rays.unpack(rays), dual=dual)["colours"].unflatten(0, truth.shape[:2])
            for name, score in scores.items():
                values[name].append(score(shown, truth))
        return {name: _mean(each) for name, each in values.items()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the structural similarity: a run that was interrupted behind its last evaluation makes no other."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["ssim"] = self._ssim

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it from a checkpoint."""
        super().on_load_checkpoint(checkpoint)
        self._ssim = checkpoint.get("ssim")


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _require_background(model: nn.Module, scene: Scene) -> None:
    passes = getattr(model, "passes", None)
    if passes is not None and passes.background != scene.train.background:
        raise SettingsError(
            f"--model.background {passes.background:g}: behind what is transparent in {scene.name} is "
            f"{scene.train.background:g}. Name that, or another --scene.background."
        )
