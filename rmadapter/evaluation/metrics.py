"""What logits and labels say beyond top-1: how good the classifier is, and how well it knows how good it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

BINS = 15
TOP = 5
DIGITS = 6


def quality(logits: Tensor, labels: Tensor, class_names: Sequence[str]) -> dict[str, Any]:
    """Metrics of ``logits`` [n, classes] (fp32, CPU) for the true ``labels`` [n] (int64), as plain values for a file.

    - ``top1``, ``top5``: percent of the images whose class is the first, or among the first five
    - ``per_class``: name of each class with images -> ``top1`` among them
    - ``ece``: expected calibration error of the confidence (the largest probability), 15 bins of equal width, 0 to 1
    - ``nll``: mean negative log-likelihood of the true class, in nats
    - ``auroc``: area under the ROC curve of the confidence as a sign that the answer is right, 0 to 1; None where all
      answers are right or all are wrong
    """
    odds, predicted = log_odds(logits), logits.argmax(-1)
    right = predicted == labels
    best = largest(logits, TOP)
    return {
        "top1": _percent(right),
        "top5": _percent((best == labels[:, None]).any(-1)),
        "ece": round(calibration_error(odds.sigmoid(), right), DIGITS),
        "nll": round(float(F.cross_entropy(logits.double(), labels)), DIGITS),
        "auroc": _area(right, odds),
        "per_class": per_class(confusion(predicted, labels, len(class_names)), class_names),
    }


def largest(logits: Tensor, count: int) -> Tensor:
    """Classes [n, count] of the largest ``logits`` [n, classes], the first of equals first; of fewer classes all.

    Of equals, such as classes whose names read alike, ``topk`` may take any, and leave out the one that argmax gives.
    Rows that have some there are sorted whole; for all, that takes 20 times as long and twice the memory of ``logits``.
    """
    values, found = logits.topk(min(count + 1, logits.shape[1]))  # one more: it may equal the last
    equal = (values[:, 1:] == values[:, :-1]).any(-1)
    found[equal] = logits[equal].argsort(dim=-1, descending=True, stable=True)[:, : found.shape[1]]
    return found[:, :count]


def log_odds(logits: Tensor) -> Tensor:
    """Log odds [n], in fp64, of the likeliest class by ``logits`` [n, classes].

    They are in the order of its probability, and tell apart what rounds to a probability of 1: in fp32 that is every
    image on which a class is 17 ahead, of which a CLIP whose cosines are multiplied by 100 has many.
    """
    values = logits.double()
    best = values.argmax(-1, keepdim=True)
    return values.gather(-1, best).flatten() - values.scatter(-1, best, -torch.inf).logsumexp(-1)


def calibration_error(confidence: Tensor, right: Tensor, bins: int = BINS) -> float:
    """Expected calibration error (Naeini et al., AAAI 2015) of ``confidence`` [n] in 0 to 1 for answers ``right`` [n].

    The mean over images of the distance between a bin's accuracy and its mean confidence; a bin has its upper end.
    scikit-learn has a bin's two means and not how many images it holds.
    """
    values, hits = confidence.double().numpy(), right.double().numpy()
    places = np.clip(np.ceil(values * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(places, hits - values, bins)
    return float(np.abs(gaps).sum() / len(values))


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> NDArray[np.int64]:
    """Counts [classes, classes]: a row is the true class, a column the predicted one."""
    # Late: a second to import, for commands that evaluate nothing too.
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(labels.numpy(), predicted.numpy(), labels=range(classes))


def per_class(counts: NDArray[np.int64], class_names: Sequence[str]) -> dict[str, float]:
    """Percent of the images of each class that are on the diagonal of ``confusion``'s ``counts``, by class name.

    A class without images is left out; equal names have their labels behind them.
    """
    found = {}
    for label, (name, row) in enumerate(zip(class_names, counts, strict=True)):
        if row.any():
            key = f"{name} (label {label})" if class_names.count(name) > 1 else name
            found[key] = round(100 * int(row[label]) / int(row.sum()), DIGITS)
    return found


def _area(right: Tensor, order: Tensor) -> float | None:
    from sklearn.metrics import roc_auc_score

    if right.all() or not right.any():
        return None
    return round(float(roc_auc_score(right.numpy(), order.numpy())), DIGITS)


def _percent(hits: Tensor) -> float:
    return 100 * int(hits.sum()) / len(hits)
