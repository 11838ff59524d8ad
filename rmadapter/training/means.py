"""Means of losses and accuracy over some steps, as metrics.jsonl has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rmadapter.step.device_step import Sums
from rmadapter.step.distributed import Ranks


@dataclass
class Means:
    """Sums over steps. They stay on the device until they are read, so that no step waits for them."""

    sums: dict[str, Tensor | float] = field(default_factory=dict)
    correct: Tensor | int = 0
    images: int = 0
    steps: int = 0

    def add(self, losses: Mapping[str, Tensor], logits: Tensor, labels: Tensor, count: int) -> None:
        """One step's losses, and the accuracy of its first ``count`` images."""
        for name, value in losses.items():
            name = "loss" if name == "total" else name
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.correct = self.correct + (logits.argmax(-1) == labels)[:count].sum()
        self.images += count
        self.steps += 1

    def add_sums(self, sums: Sums) -> None:
        """What was summed over some steps on the device."""
        for name, value in sums.losses.items():
            name = "loss" if name == "total" else name
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.correct = self.correct + sums.correct
        self.images += sums.images
        self.steps += sums.steps

    def values(self, ranks: Ranks) -> dict[str, float]:
        """Each mean by its name, over all processes, each of which calls this; nothing where no step was added."""
        found = self.plain(ranks)
        means = {name: value / self.steps for name, value in found["sums"].items()}
        return {**means, "accuracy": 100 * found["correct"] / found["images"]} if self.steps else {}

    def plain(self, ranks: Ranks) -> dict[str, Any]:
        """The fields as plain values, over all processes, for the state file."""
        sums = {name: float(value) for name, value in self.sums.items()}
        correct, images = int(self.correct), self.images
        if ranks.world > 1:
            values = torch.tensor([*sums.values(), correct, images], dtype=torch.float64)
            *means, correct, images = ranks.mean(values).tolist()
            sums = dict(zip(sums, means, strict=True))
            correct, images = round(correct * ranks.world), round(images * ranks.world)
        return {"sums": sums, "correct": correct, "images": images, "steps": self.steps}

    @classmethod
    def restored(cls, values: dict[str, Any], ranks: Ranks) -> Means:
        """The inverse of ``plain``: sums are every process's own, counts those of the main one."""
        return cls(**values) if ranks.main else cls(**{**values, "correct": 0, "images": 0})
