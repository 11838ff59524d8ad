"""A training step without a word to the host: forward, backward, update, and the sums that the log is made of.

Everything that changes from step to step is a tensor: the batch, the learning rate, whether the update is made. So the
whole can be recorded once and replayed (``cuda_graphs``); without a recording it is the same step, on any device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from rmadapter.objectives.losses import gradient_norms
from rmadapter.step.train_step import TrainStep, Views
from rmadapter.tuners.encoder import Entry

# Beside the loss terms of a step: 1.0 where its update was made, 0.0 where loss or gradient was not finite.
FINITE = "finite"


@dataclass(frozen=True)
class StepInputs:
    """What a step reads: labels int64 [n], and images [n, 3, size, size] or what the frozen model made of them.

    Images of two views, and ``drawn``, are as in ``RMAdapterCLIP.forward``.
    """

    labels: Tensor
    images: Tensor | None = None
    views: Views | None = None
    drawn: Tensor | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors in it, in a fixed order."""
        views = () if self.views is None else (*self.views.entry, self.views.target)
        return [tensor for tensor in (self.labels, self.images, *views, self.drawn) if tensor is not None]

    @property
    def layout(self) -> tuple:
        """What two inputs have in common that the same recording takes: which tensors, their shapes and dtypes."""
        kind = "images" if self.views is None else "views"
        return (kind, *((tuple(tensor.shape), tensor.dtype) for tensor in self.tensors))

    def clone(self) -> StepInputs:
        """The same in memory of its own."""
        views = self.views
        if views is not None:
            entry = Entry(*(tensor.clone() for tensor in views.entry))
            views = Views(entry, None if views.target is None else views.target.clone())
        images, drawn = (None if tensor is None else tensor.clone() for tensor in (self.images, self.drawn))
        return StepInputs(self.labels.clone(), images, views, drawn)

    def copy_(self, other: StepInputs) -> None:
        """Take the values of ``other``, which has the same layout."""
        for own, found in zip(self.tensors, other.tensors, strict=True):
            own.copy_(found, non_blocking=True)


@dataclass(frozen=True)
class Sums:
    """Sums over the steps that were counted, those with a finite loss and gradient."""

    losses: dict[str, float]
    correct: int
    images: int
    steps: int


def largest_gradient(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The largest magnitude in the gradients of ``parameters``, a scalar; not finite where one of them is not."""
    return get_total_norm([p.grad for p in parameters if p.grad is not None], math.inf)


class DeviceStep:
    """One training step on the device, called with ``StepInputs``.

    One whose loss is not finite, or whose gradient is not, changes no weight.

    Args:
        step: forward pass and losses.
        optimizer: SGD with ``fused=True``, whose kernel reads the learning rate and whether to skip from tensors.
        scaler: for fp16; it then skips what is not finite in the gradients itself, takes a smaller scale after it, and
            such a step counts as any other.
        w_down: parameters whose gradients' norms are taken where they are asked for.

    Attributes:
        lr: learning rate, a scalar in fp32; set it with ``set_lr``.
        names: ``FINITE`` and the loss terms, their total last; empty before the first step.
        losses: float64 [1 + terms], those of the last step in the order of ``names``; None before it.
    """

    def __init__(
        self,
        step: TrainStep,
        optimizer: torch.optim.SGD,
        scaler: torch.amp.GradScaler,
        w_down: Sequence[nn.Parameter] = (),
    ):
        if not optimizer.defaults["fused"]:
            raise ValueError("the optimizer is not fused; valid: fused=True, others read the learning rate on the host")
        self.step, self.optimizer, self.scaler, self.w_down = step, optimizer, scaler, list(w_down)
        device = step.model.prompts.tokens.device
        (self._group,) = optimizer.param_groups
        self.lr = torch.tensor(float(self._group["lr"]), device=device)
        self.losses: Tensor | None = None
        self.names: list[str] = []
        self._norm_names: list[str] = []
        self._norms: Tensor | None = None
        if self._group["momentum"]:
            # The kernel of a first step would take memory that a skipped one leaves unwritten; momentum * 0 + gradient
            # is the same.
            for parameter in self._group["params"]:
                optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))

    def set_lr(self, lr: float) -> None:
        """The learning rate from now on."""
        self.lr.fill_(lr)

    def __call__(self, inputs: StepInputs, norms: bool = False) -> None:
        """Take the step; ``norms`` also measures ``gradient_norms``. Nothing in it waits for the device."""
        logits, losses = self.step(inputs.images, inputs.labels, inputs.views, drawn=inputs.drawn)
        total = losses["total"]
        finite = torch.isfinite(total.detach())
        found = gradient_norms(losses, self.step.model.loss, self.w_down) if norms else {}
        self.optimizer.zero_grad(set_to_none=True)
        if self.scaler.is_enabled():
            # What skips a step under the scaler is a gradient that is not finite, which that of such a loss may be.
            total = total * torch.where(finite, 1.0, float("nan"))
        self.scaler.scale(total).backward()
        if not self.scaler.is_enabled():
            finite = finite & torch.isfinite(largest_gradient(self._group["params"]))
            self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]  # its fused kernel reads it
        if norms:
            self._keep_norms(found, finite)
        lr, self._group["lr"] = self._group["lr"], self.lr  # a number again afterwards, for the schedule and the log
        self.scaler.step(self.optimizer)
        self._group["lr"] = lr
        self.scaler.update()
        self._count(logits.detach(), losses, inputs.labels, finite)

    def _count(self, logits: Tensor, losses: dict[str, Tensor], labels: Tensor, finite: Tensor) -> None:
        values = torch.stack([finite.float(), *(value.detach() for value in losses.values())]).double()
        correct = (logits.argmax(-1) == labels).sum()
        row = torch.cat([values, torch.stack([correct, torch.full_like(correct, len(labels))])])
        if self.losses is None:
            self.names, self.losses = [FINITE, *losses], torch.zeros_like(values)
            self._sums = torch.zeros_like(row)
        self.losses.copy_(values)
        self._sums.add_(torch.where(finite, row, 0.0))

    def _keep_norms(self, found: dict[str, Tensor], finite: Tensor) -> None:
        values = torch.stack(list(found.values()))
        if self._norms is None:
            self._norm_names, self._norms = list(found), torch.full_like(values, float("nan"))
        self._norms.copy_(torch.where(finite, values, self._norms))

    def take_sums(self) -> Sums:
        """What was summed since the last call; waits for the device."""
        if self.losses is None:
            return Sums({}, 0, 0, 0)
        *values, correct, images = self._sums.tolist()
        self._sums.zero_()
        found = dict(zip(self.names, values, strict=True))
        steps = found.pop(FINITE)
        return Sums(found, int(correct), int(images), int(steps))

    def take_norms(self) -> dict[str, float]:
        """The gradient norms measured last since the last call, or nothing; waits for the device."""
        if self._norms is None:
            return {}
        values = self._norms.tolist()
        self._norms.fill_(float("nan"))
        return {name: value for name, value in zip(self._norm_names, values, strict=True) if value == value}
