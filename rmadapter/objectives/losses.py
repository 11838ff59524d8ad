"""The loss: cross-entropy, reconstruction in each tower, consistency with the frozen model, and their sum.

L = L_ce + lambda1 * L_rec_vision + lambda2 * L_rec_text + lambda3 * |x_a - x|_1 + lambda4 * |w_a - w|_1
         + distillation * KL(p || p_a) / (images * classes)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from rmadapter.config import LossConfig
from rmadapter.tuners.tuner import Answer

WEIGHTS = {
    "reconstruction_vision": "lambda1",
    "consistency_image": "lambda3",
    "reconstruction_text": "lambda2",
    "consistency_text": "lambda4",
    "distillation": "distillation",
}


def reconstruction(per_token: list[Tensor], objective: str, width: int, counted: Tensor | None = None) -> Tensor:
    """Sum over adapters of the mean over tokens of the reconstruction loss; a scalar in fp32.

    Args:
        per_token: one fp32 tensor [batch, tokens] an adapter.
        objective: "l2" and "l1" are sums over the width and divided by it, "cosine" is taken as it is.
        width: D of the tower.
        counted: bool [batch, tokens], or [1, tokens] for the same of each row, which tokens count; None for all.
    """
    divisor = 1 if objective == "cosine" else width
    count = per_token[0].numel() if counted is None else counted.expand_as(per_token[0]).sum()
    if counted is not None:
        per_token = [torch.where(counted, loss, 0.0) for loss in per_token]
    return reduce(torch.add, (loss.sum() for loss in per_token)) / divisor / count


class _WeightedSum(torch.autograd.Function):
    """Sum over losses of one shape, times weights that broadcast to it, or None; whatever has the weight 0 is left out.

    One kernel of each kind for all adapters, and one gradient, which is the same for all. With a sum for each of them
    these were 197 small kernels a step of ViT-B/16 on an H100, 0.56 of 11.8 ms.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor | None, *per_token: Tensor) -> Tensor:
        found = torch.stack(per_token)
        ctx.save_for_backward(weights)
        ctx.shape, ctx.count = per_token[0].shape, len(per_token)
        return (found if weights is None else torch.where(weights != 0, found * weights, 0.0)).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weights,) = ctx.saved_tensors
        if weights is not None:
            gradient = gradient * weights
        # Not strided by 0, so that the rows of a loss are addressed as those of x are.
        each = gradient.expand(ctx.shape).contiguous()
        return (None, *[each] * ctx.count)


def reconstruction_sum(per_token: list[Tensor], objective: str, width: int, weights: Tensor | None = None) -> Tensor:
    """``reconstruction`` before its division by the number of tokens, for tokens that are spread over calls.

    Args:
        per_token: one fp32 tensor [rows, tokens] an adapter.
        objective, width: as in ``reconstruction``.
        weights: fp32, [rows, tokens] or [1, tokens], how often each token counts; None: once.
    """
    return _WeightedSum.apply(weights, *per_token) / (1 if objective == "cosine" else width)


def consistency(tuned: Tensor, frozen: Tensor, distance: str = "l1") -> Tensor:
    """Mean distance of L2-normalised features [n, embed] of the tuned and the frozen model, fp32.

    ``distance`` is "l1", the mean absolute difference, or "cosine", one minus the cosine.
    """
    return consistency_sum(tuned, frozen, distance) / len(tuned)


def consistency_sum(tuned: Tensor, frozen: Tensor, distance: str = "l1") -> Tensor:
    """``consistency`` summed over the n rows instead of averaged."""
    tuned, frozen = F.normalize(tuned.float(), dim=-1), F.normalize(frozen.float(), dim=-1)
    if distance == "cosine":
        return (1 - (tuned * frozen).sum(-1)).sum()
    return (tuned - frozen).abs().sum() / tuned.shape[-1]


def cross_entropy(answers: Sequence[Answer], labels: Tensor, classification: str = "softmax") -> Tensor:
    """Mean cross-entropy of each of ``answers`` with ``labels`` [n] (int64), times its share; a scalar.

    ``classification`` "softmax" is over the classes; "sigmoid" is one decision a class, summed over them, as SigLIP
    is trained (Zhai et al., ICCV 2023): -sum_c log sigmoid(y_c logit_c) with y_c 1 for the label and -1 else.
    """
    of = sigmoid_entropy if classification == "sigmoid" else F.cross_entropy
    found = [(answer.share, of(answer.logits, labels)) for answer in answers]
    return found[0][1] if len(found) == 1 else reduce(torch.add, (share * value for share, value in found))


def sigmoid_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of ``logits`` [n, classes] with ``labels`` [n], summed over classes, mean over images."""
    target = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(logits)


def distillation(logits: Tensor, frozen: Tensor) -> Tensor:
    """KL divergence of the softmax of ``logits`` [n, classes] from that of the ``frozen`` model's, over n * classes."""
    found, target = F.log_softmax(logits, -1), F.log_softmax(frozen, -1)
    return (target.exp() * (target - found)).sum() / logits.numel()


def with_total(terms: Mapping[str, Tensor], weights: LossConfig) -> dict[str, Tensor]:
    """``terms`` in their fixed order, and ``total``: cross-entropy and the others, each times its weight, in fp32."""
    found = {name: terms[name] for name in ("cross_entropy", *WEIGHTS) if name in terms}
    extra = (getattr(weights, WEIGHTS[name]) * term for name, term in found.items() if name in WEIGHTS)
    return {**found, "total": found["cross_entropy"] + sum(extra)}


def gradient_norms(
    terms: Mapping[str, Tensor],
    weights: LossConfig,
    w_down: list[nn.Parameter],
    mean: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> dict[str, Tensor]:
    """L2 norm, over all adapters, of the gradient that cross-entropy and weighted reconstruction send to W_down;
    scalars in fp64 on the device.

    ``mean`` averages a tensor over the processes of a run. The graph is kept, so that the
    training step's own backward can follow.
    """
    rec = [
        getattr(weights, WEIGHTS[n]) * terms[n] for n in ("reconstruction_vision", "reconstruction_text") if n in terms
    ]
    parts = {"grad_norm_cross_entropy": terms["cross_entropy"]}
    if rec:
        parts["grad_norm_reconstruction"] = sum(rec)
    norms = {}
    for name, loss in parts.items():
        gradients = torch.autograd.grad(loss, w_down, retain_graph=True, allow_unused=True)
        squares = [mean(g).double().square().sum() for g in gradients if g is not None]
        norms[name] = torch.stack(squares).sum().sqrt() if squares else loss.new_zeros((), dtype=torch.float64)
    return norms
