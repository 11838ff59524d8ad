"""What a run's recipe makes of its options: the optimizer, the course of the learning rate, which epochs' weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LambdaLR, LRScheduler, SequentialLR

from rmadapter.config import TrainConfig
from rmadapter.config.run import check_warmup, gaussian


def make_optimizer(config: TrainConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of ``config``; with CUDA graphs the kernel that reads the learning rate from a tensor."""
    groups = [{"params": list(parameters)}]  # an empty group is taken, no parameters are not
    common: dict[str, Any] = {
        "lr": config.lr,
        "weight_decay": config.weight_decay,
        "fused": config.cuda_graphs or None,  # else PyTorch's own choice
    }
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, **common)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, eps=config.adam_eps, **common)


def epochs_of(config: TrainConfig, steps_per_epoch: int) -> int:
    """How many epochs are begun: those asked for, or as many as the steps for each shot take."""
    if not config.steps_per_shot:
        return config.epochs
    return math.ceil(config.steps_per_shot * config.shots / steps_per_epoch)


def steps_of(config: TrainConfig, steps_per_epoch: int) -> int:
    """How many steps a run has: those of its epochs, or those for each shot, which may end inside of one."""
    return config.steps_per_shot * config.shots or config.epochs * steps_per_epoch


def make_schedule(config: TrainConfig, optimizer: torch.optim.Optimizer, steps_per_epoch: int) -> LRScheduler:
    """The learning rate, to be moved on at the end of each epoch or of each step.

    As the field has it: ``warmup_epochs`` at ``warmup_lr``, then half a cosine from the peak that would end with the
    last epoch if there were no warm-up. With it the cosine begins late and does not end. ``decay_power`` is that of the
    cosine's factor, which falls from 1 to 0.
    """
    unit = steps_per_epoch if config.decay == "step" else 1
    total = (steps_of if config.decay == "step" else epochs_of)(config, steps_per_epoch)
    cosine = _cosine(config, optimizer, total)
    if not config.warmup_epochs:
        return cosine
    warm = config.warmup_epochs * unit
    constant = ConstantLR(optimizer, factor=config.warmup_lr / config.lr, total_iters=warm)
    return SequentialLR(optimizer, [constant, cosine], milestones=[warm])


def warmup_note(config: TrainConfig, epochs: int) -> str | None:
    """That all ``epochs`` of a run are warm-up, for people, as with --epochs 1 and most recipes; else None.

    Raises:
        InputError: several epochs of warm-up and no more in the run, where the steps for each shot decide that.
    """
    check_warmup(config.warmup_epochs, epochs, f" by steps_per_shot {config.steps_per_shot}")
    if config.warmup_epochs < epochs:
        return None
    return (
        f"warm-up: the whole run is at warmup_lr {config.warmup_lr:g}; --warmup-epochs 0, or more epochs, for lr "
        f"{config.lr:g}"
    )


def _cosine(config: TrainConfig, optimizer: torch.optim.Optimizer, total: int) -> LRScheduler:
    """Half a cosine from the peak to ``final_lr`` over ``total`` moves, its factor to the power of ``decay_power``."""
    if config.decay_power == 1:
        return CosineAnnealingLR(optimizer, T_max=total, eta_min=config.final_lr)
    floor = config.final_lr / config.lr

    def share(move: int) -> float:
        factor = (1 + math.cos(math.pi * move / total)) / 2
        return floor + (1 - floor) * factor**config.decay_power

    return LambdaLR(optimizer, share)


class EpochMean:
    """The mean of the weights at the end of each epoch, weighted by a Gaussian over their number (PromptSRC).

    Args:
        average: "mean,std" of the Gaussian over the epochs, counted from 1.
        epochs: how many there are; the weights of the mean sum to one over them.

    Attributes:
        tensors: the sums by name, in fp32; empty before the first epoch.
        values: of its state what is no tensor: nothing.
    """

    def __init__(self, average: str, epochs: int):
        found = gaussian(average)
        assert found is not None  # the configuration has been checked
        mean, deviation = found
        exponents = [-0.5 * ((epoch - mean) / deviation) ** 2 for epoch in range(1, epochs + 1)]
        # Far from all epochs every height would be 0.
        largest = max(exponents, default=0.0)
        heights = [math.exp(exponent - largest) for exponent in exponents]
        self.weights = [height / sum(heights) for height in heights]
        self.tensors: dict[str, Tensor] = {}
        self.values: dict[str, Any] = {}

    def add(self, epoch: int, tensors: Mapping[str, Tensor]) -> dict[str, float]:
        """Count the weights at the end of ``epoch``, from 0; says nothing for the log."""
        for name, tensor in tensors.items():
            value = self.weights[epoch] * tensor.detach().float()
            self.tensors[name] = self.tensors[name] + value if name in self.tensors else value
        return {}

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace the weights by their mean."""
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(self.tensors[name])


class BestEpoch:
    """The weights of the first epoch of those that are best on the validation images.

    Args:
        accuracy: that of the model as it is, in percent.

    Attributes:
        tensors: by name; empty before the first epoch.
        values: ``epoch``, from 1, and ``accuracy`` of what is kept; empty before the first epoch.
    """

    def __init__(self, accuracy: Callable[[], float]):
        self.accuracy = accuracy
        self.tensors: dict[str, Tensor] = {}
        self.values: dict[str, Any] = {}

    def add(self, epoch: int, tensors: Mapping[str, Tensor]) -> dict[str, float]:
        """Look at the weights at the end of ``epoch``, from 0; returns what the log says of them."""
        found = self.accuracy()
        if not self.values or found > self.values["accuracy"]:
            self.values = {"epoch": epoch + 1, "accuracy": found}
            self.tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        return {"validation_accuracy": found}

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to the weights that are kept."""
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(self.tensors[name])
