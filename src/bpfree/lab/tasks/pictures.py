"""Pictures of a trained network's inside: its first filters, and its last hidden layer in two dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from torch import Tensor, nn

import bpfree
from bpfree.lab.data import Images

FILTERS = 16
EMBEDDED = 500
_DIGITS = 4


def filters(model: nn.Module, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return up to 16 rows of the first layer's weights as pictures.

    Returns:
        ``filters``, rows of ``height x width`` numbers, and ``filters_shape``, ``[height, width]``; channels are
        averaged. Both are None if the first layer with weights has no such form.
    """
    weight: Tensor | None = next((entry for entry in model.parameters() if entry.dim() >= 2), None)
    if weight is not None and weight.dim() == 2 and weight.shape[1] == math.prod(shape):
        weight = weight.reshape(-1, *shape)
    if weight is None or weight.dim() != 4:
        return {"filters": None, "filters_shape": None}
    pictures = weight[:FILTERS].detach().float().mean(1)
    return {"filters": _rounded(pictures.flatten(1)), "filters_shape": list(pictures.shape[1:])}


def embedding(attachment: bpfree.Attachment, images: Images, device: torch.device) -> dict[str, Any] | None:
    """Compute t-SNE of the activations at the last tap, for the first 500 images.

    Returns:
        ``x``, ``y`` and ``label``, one number an image, and ``layer``, the tap's name; None without taps.
    """
    if not attachment.taps or len(images) < 8:
        return None
    layer = list(attachment.taps)[-1]
    run = partial(attachment.model, images.x[:EMBEDDED].to(device))
    activations = _activations(attachment, layer, run)
    # The smaller a set, the fewer neighbours a point can have; 30 is t-SNE's usual number.
    perplexity = min(30.0, (len(activations) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(activations.numpy())
    x, y = _rounded(torch.from_numpy(points).T)
    return {"x": x, "y": y, "label": images.y[: len(points)].tolist(), "layer": layer}


def embedding_of_nodes(
    attachment: bpfree.Attachment, run: Callable[[], object], classes: Tensor, seed: int
) -> dict[str, Any]:
    """Compute t-SNE of the activations of all nodes at the last tap, as Launay et al. 2020 have made figure 2.

    Args:
        attachment: The rule on its model.
        run: Runs the model on the graph.
        classes: The nodes' classes, ``(n,)``.
        seed: t-SNE's.

    Returns:
        ``embedding`` as that of images, and how well classes separate, in -1 to 1: ``silhouette`` in the hidden layer
        and ``tsne_silhouette`` in the plane (Rousseeuw 1987, Euclidean distances), which ``embedding`` calls
        ``silhouette``. None without taps.
    """
    if not attachment.taps:
        return {"embedding": None, "silhouette": None, "tsne_silhouette": None}
    layer = list(attachment.taps)[-1]
    activations, labels = _activations(attachment, layer, run).numpy(), classes.cpu().numpy()
    # The published settings, those of tsne-cuda.
    settings = {"perplexity": 20, "learning_rate": 100, "max_iter": 5000}
    points = TSNE(**settings, init="pca", random_state=seed).fit_transform(activations)
    x, y = _rounded(torch.from_numpy(points).T)
    hidden, plane = (float(silhouette_score(rows, labels)) for rows in (activations, points))
    return {
        "embedding": {"x": x, "y": y, "label": labels.tolist(), "layer": layer, "silhouette": plane},
        "silhouette": hidden,
        "tsne_silhouette": plane,
    }


def _activations(attachment: bpfree.Attachment, layer: str, run: Callable[[], object]) -> Tensor:
    kept: list[Tensor] = []
    handle = attachment.taps[layer].register_forward_hook(lambda module, args, output: kept.append(output))
    model = attachment.model
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            run()
    finally:
        handle.remove()
        model.train(training)
    return kept[-1].flatten(1).float().cpu()


def _rounded(rows: Tensor) -> list[list[float]]:
    # Pictures need no more digits, and the report is an eighth of the size.
    return [[float(f"{value:.{_DIGITS}g}") for value in row] for row in rows.tolist()]
