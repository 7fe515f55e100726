"""Two curves of predictions for reports: how often clicks come where they are predicted, and what a threshold finds."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_roc

_GROUPS = 10
_POINTS = 200


def calibration_curve(probabilities: Tensor, clicks: Tensor) -> dict[str, list[float]]:
    """Return, for groups of rows of rising probability, the mean probability and the share of clicks.

    Args:
        probabilities: Of a click, ``(n,)``.
        clicks: 0 or 1, ``(n,)``.

    Returns:
        ``predicted`` and ``clicked``, one number for each of ten groups of about as many rows.
    """
    order = probabilities.argsort(stable=True)
    parts = order.tensor_split(min(_GROUPS, len(order)))
    return {
        "predicted": [float(probabilities[part].double().mean()) for part in parts],
        "clicked": [float(clicks[part].double().mean()) for part in parts],
    }


def roc_curve(probabilities: Tensor, clicks: Tensor) -> dict[str, list[float]]:
    """Return the ROC curve: for falling thresholds, which shares of rows without and with a click lie above.

    Args:
        probabilities: Of a click, ``(n,)``.
        clicks: 0 or 1, ``(n,)``.

    Returns:
        ``without_click`` and ``with_click``, from 0 to 1; of a long curve 200 points at even distances along it.
    """
    without, with_click, _ = binary_roc(probabilities, clicks.long())
    if len(without) > _POINTS:
        # Along the curve, whose sides sum to 2: points that are even in one of the shares would miss the other's steps.
        places = torch.searchsorted(without + with_click, torch.linspace(0, 2, _POINTS).clamp(max=1.999999))
        places[0], places[-1] = 0, len(without) - 1
        without, with_click = without[places], with_click[places]
    return {"without_click": without.tolist(), "with_click": with_click.tolist()}
