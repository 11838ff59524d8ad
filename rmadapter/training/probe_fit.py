"""Logistic regression, the fit of a linear probe.

The weight of the penalty is chosen on validation images.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Inverse penalties of the logistic regression, as scikit-learn's C.
GRID = tuple(10.0**power for power in range(-1, 6))
# Without validation images: CLIP's own 0.316 for ImageNet, on features that have a norm of about 10 there and 1 here.
DEFAULT_C = 31.6


def fit(features: Tensor, labels: Tensor, classes: int, inverse_penalty: float, start: Tensor | None = None) -> Tensor:
    """Logistic regression: ``[classes, embed + 1]`` (the last column is the bias), of features [n, embed].

    Minimises ``|w|^2 / 2 + C sum(cross-entropy)`` with L-BFGS in fp64, the bias without penalty, as scikit-learn.
    """
    features, device = features.double(), features.device
    solution = torch.zeros(classes, features.shape[1] + 1, dtype=torch.float64, device=device)
    if start is not None:
        solution.copy_(start)
    solution.requires_grad_(True)
    optimizer = torch.optim.LBFGS([solution], max_iter=300, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = features @ solution[:, :-1].T + solution[:, -1]
        # Divided by C n, which moves no minimum, so that one tolerance suits every C.
        penalty = solution[:, :-1].square().sum() / (2 * inverse_penalty * len(labels))
        value = F.cross_entropy(logits, labels) + penalty
        value.backward()
        return value

    optimizer.step(loss)
    return solution.detach()


def choose(train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor] | None, classes: int) -> tuple[Tensor, float]:
    """The solution and its C: the best of ``GRID`` on the validation images, the smallest of equals."""
    if val is None:
        return fit(*train, classes, DEFAULT_C), DEFAULT_C
    best: tuple[int, float, Tensor] | None = None
    solution = None
    for inverse_penalty in GRID:
        solution = fit(*train, classes, inverse_penalty, solution)
        logits = val[0].double() @ solution[:, :-1].T + solution[:, -1]
        correct = int((logits.argmax(-1) == val[1]).sum())
        if best is None or correct > best[0]:
            best = (correct, inverse_penalty, solution)
    assert best is not None  # the grid is not empty
    return best[2], best[1]
