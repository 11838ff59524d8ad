"""RMAdapter: adapt a frozen CLIP with a few images per class without losing what it knows.

model = rmadapter.inject(clip, rmadapter.RMAdapterConfig(layers=range(5, 13)))
model.save_adapter("flowers/")
"""

from rmadapter.config import LossConfig, RMAdapterConfig, TowerOverrides, TrainConfig
from rmadapter.errors import InputError
from rmadapter.inject import AdaptedCLIP, ModelSource, inject
from rmadapter.model import RMAdapterCLIP

__all__ = [
    "AdaptedCLIP",
    "InputError",
    "LossConfig",
    "ModelSource",
    "RMAdapterCLIP",
    "RMAdapterConfig",
    "TowerOverrides",
    "TrainConfig",
    "inject",
]
