"""What ends a training run before its last step, and what helps: a loss that is not finite, memory that is full."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from rmadapter.errors import InputError, StoppedError
from rmadapter.step.plain import RMAdapterCLIP
from rmadapter.step.plan import Plan
from rmadapter.step.train_step import TrainStep

REMEDY = (
    "A new run with a smaller --lr, or with smaller --loss.lambda1 and --loss.lambda2, keeps it finite: lr times "
    "lambda decides"
)


class DivergedError(StoppedError):
    """The loss, or its gradient, is not finite too often; the message names the last such batch and what helps."""


def diverged_at(step: int, losses: Mapping[str, float], skipped: int, images: Sequence[str]) -> DivergedError:
    """For a run that has skipped as many steps as it may: ``step``, from 1, has these ``losses`` of these images."""
    parts = ", ".join(f"{name} {value:.3g}" for name, value in losses.items())
    what = "the gradient of the loss" if all(map(math.isfinite, losses.values())) else "the loss"
    return DivergedError(
        f"{what} is not finite at step {step} ({parts}), after {skipped} such steps that were skipped; its images: "
        f"{', '.join(images)}. {REMEDY}; --max-bad-steps allows more"
    )


def nothing_finite(epoch: int) -> DivergedError:
    """For a run whose ``epoch``, from 1, has no step that was taken."""
    return DivergedError(f"the loss or its gradient is not finite at any step of epoch {epoch}. {REMEDY}")


def memory_full(
    error: torch.OutOfMemoryError,
    step: RMAdapterCLIP | TrainStep,
    images: int,
    device: torch.device,
    recorded: bool = False,
) -> InputError:
    """For a device whose memory does not hold ``step`` with so many ``images``; ``recorded``: as a CUDA graph."""
    plan = Plan.of(step, images)
    others = "--no-cuda-graphs, " if recorded else ""
    others += "a smaller --text-memory, " if isinstance(step, TrainStep) else ""
    return InputError(
        f"memory of {device} is full: {error}. A step keeps about {plan.cost.bytes / 1e9:.1f} GB of activations beside "
        f"the model; less with {others}--grad-checkpointing or a smaller --batch-size (all but the last also with "
        "--resume)"
    )
