"""Gradients without the part that leads away from what the frozen model knows (ProGrad, Zhu et al., ICCV 2023)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def project_gradients(divergence: Tensor, parameters: Iterable[nn.Parameter], share: float) -> None:
    """Take from each parameter's ``grad`` the ``share`` of its part against the gradient of ``divergence``, in place.

    With ``d`` the gradient there and ``u`` the direction of the other, of length 1: where ``d . u`` is below 0, ``d``
    becomes ``d - share (d . u) u``; elsewhere it stays. ``divergence``, a scalar with a graph, is that of the tuned
    model's class probabilities from the frozen model's.
    """
    own = [parameter for parameter in parameters if parameter.grad is not None]
    others = torch.autograd.grad(divergence, own, allow_unused=True)
    for parameter, other in zip(own, others, strict=True):
        if other is None or parameter.grad is None:
            continue
        length = other.norm()
        direction = torch.where(length > 0, other / length, torch.zeros_like(other))
        along = (parameter.grad * direction).sum()
        parameter.grad -= share * along.clamp(max=0) * direction
