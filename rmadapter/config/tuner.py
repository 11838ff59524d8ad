"""Everything that may be trained in a model: the groups ``adapter``, ``prompt``, ``lora`` and ``head`` together."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from rmadapter.config.adapter import RMAdapterConfig
from rmadapter.config.head import HeadConfig
from rmadapter.config.lora import LoraConfig
from rmadapter.config.prompt import PromptConfig
from rmadapter.errors import check_choice


@dataclass
class TunerConfig:
    """What is trained in a model.

    Args:
        adapter: branches beside blocks
        prompt: learned tokens
        lora: low-rank updates
        head: what is trained after the towers
    """

    adapter: RMAdapterConfig = field(default_factory=RMAdapterConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    head: HeadConfig = field(default_factory=HeadConfig)

    @property
    def others(self) -> bool:
        """Whether anything beside the adapters is trained."""
        return self.prompt.any or self.lora.any or self.head.any

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and YAML."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TunerConfig:
        """The inverse of ``to_dict``; an unknown key is an InputError."""
        kinds = {"prompt": PromptConfig, "lora": LoraConfig, "head": HeadConfig}
        for key in values:
            check_choice("key in tuner", key, ["adapter", *kinds])
        found: dict[str, Any] = {"adapter": RMAdapterConfig.from_dict(values["adapter"])}
        for name, kind in kinds.items():
            group = values.get(name) or {}
            for key in group:
                check_choice(f"key in {name}", key, [f.name for f in dataclasses.fields(kind)])
            found[name] = kind(**group)
        return cls(**found)
