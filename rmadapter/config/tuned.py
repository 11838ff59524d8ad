"""Everything that may be trained in a model: the groups ``adapter``, ``prompt``, ``space``, ``lora`` and ``head``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from rmadapter.config.adapter import TOWERS, RMAdapterConfig
from rmadapter.config.head import HeadConfig
from rmadapter.config.lora import LoraConfig
from rmadapter.config.prompt import PromptConfig
from rmadapter.config.space import SpaceConfig


@dataclass
class TunerConfig:
    """What is trained in a model.

    Args:
        adapter: branches beside blocks
        prompt: learned tokens
        lora: low-rank updates
        head: what is trained after the towers
        space: tokens of a space that both towers share
    """

    adapter: RMAdapterConfig = field(default_factory=RMAdapterConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    space: SpaceConfig = field(default_factory=SpaceConfig)

    @property
    def others(self) -> bool:
        """Whether anything beside the adapters is trained."""
        return self.prompt.any or self.lora.any or self.head.any or self.space.any

    @property
    def trains(self) -> bool:
        """Whether training changes anything of it."""
        adapters = any(self.adapter.tower(name).layers not in ("none", []) for name in TOWERS)
        return adapters or self.prompt.any or self.lora.any or self.head.trains

    @property
    def bound(self) -> bool:
        """Whether something is trained of each class, so that no others can be told."""
        return self.prompt.class_specific or self.head.bound

    def flat(self) -> dict[str, Any]:
        """Plain values by dotted name: ``adapter.scale``."""
        groups = dataclasses.asdict(self).items()
        return {f"{group}.{name}": value for group, values in groups for name, value in values.items()}
