"""RMAdapter: adapt a frozen CLIP with a few images per class without losing what it knows.

model = rmadapter.inject(clip, rmadapter.RMAdapterConfig(layers=range(5, 13)))
model.save_adapter("flowers/")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rmadapter.clip.identity import ModelSource
    from rmadapter.config import LossConfig, RMAdapterConfig, TowerOverrides, TrainConfig
    from rmadapter.errors import InputError
    from rmadapter.step.plain import RMAdapterCLIP
    from rmadapter.tuners.adapted_clip import AdaptedCLIP
    from rmadapter.tuners.injection import inject, load

# Imported when first used: open_clip takes seconds, and a mistyped option of the command line needs none of it.
_MODULES = {
    "AdaptedCLIP": "tuners.adapted_clip",
    "InputError": "errors",
    "LossConfig": "config",
    "ModelSource": "clip.identity",
    "RMAdapterCLIP": "step.plain",
    "RMAdapterConfig": "config",
    "TowerOverrides": "config",
    "TrainConfig": "config",
    "inject": "tuners.injection",
    "load": "tuners.injection",
}

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
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
