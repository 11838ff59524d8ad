"""What a user may ask for: options as dataclasses that check themselves, and the command line made from them.

Nothing here loads a model or reads an image; what an option does stands in the room that does it.
"""

from rmadapter.config.adapter import TOWERS, RMAdapterConfig, TowerOverrides, layer_numbers
from rmadapter.config.head import HeadConfig
from rmadapter.config.lora import LoraConfig
from rmadapter.config.loss import LossConfig
from rmadapter.config.prompt import PromptConfig
from rmadapter.config.run import (
    AUGMENTATIONS,
    PARTS,
    PRECISIONS,
    RUN_CONFIG_FILE,
    STREAMS,
    TRAIN_HELP,
    TrainConfig,
)
from rmadapter.config.shortcuts import StepConfig
from rmadapter.config.space import SpaceConfig
from rmadapter.config.template import PUBLISHED, check_template
from rmadapter.config.tuned import TunerConfig

__all__ = [
    "AUGMENTATIONS",
    "PARTS",
    "PRECISIONS",
    "PUBLISHED",
    "RUN_CONFIG_FILE",
    "STREAMS",
    "TOWERS",
    "TRAIN_HELP",
    "HeadConfig",
    "LoraConfig",
    "LossConfig",
    "PromptConfig",
    "RMAdapterConfig",
    "SpaceConfig",
    "StepConfig",
    "TowerOverrides",
    "TrainConfig",
    "TunerConfig",
    "check_template",
    "layer_numbers",
]
