"""What a configuration's method is called: by its label, by the registered method that it is, or as a custom one.

What makes a method is every option of the groups ``adapter`` and ``loss`` apart from its recipe: the sizes of
``RECIPE`` (which blocks, widths, factors) and how much a loss term weighs. A weight of 0, which leaves the term out,
makes another method, and so do adapters in one tower alone. Options that have no effect, such as those of a
reconstruction that is not there, make none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from rmadapter.config import LossConfig, RMAdapterConfig, TrainConfig
from rmadapter.config.adapter import TOWERS
from rmadapter.config.arguments import parse_arguments
from rmadapter.files import plain_name
from rmadapter.methods import METHODS
from rmadapter.methods.method import ADAPTERS

RECIPE = {"layers", "bottleneck", "rec_hidden", "scale", "branch_grad_scale", *TOWERS}
# What only a reconstruction has: without one these options have no effect.
_RECONSTRUCTION = {
    "adapter.objective",
    "adapter.local_reconstruction",
    "adapter.rec_stream",
    "adapter.rec_tokens",
    "adapter.rec_layers",
    "adapter.separate_down",
    "loss.lambda1",
    "loss.lambda2",
}
# Of two methods that are equally near, the one that is built alike.
_BUILD = {"adapter.reconstruct", "adapter.shared_layer", "adapter.separate_down"}
NONE, SOME = "=0", ">0"


def method_name(config: TrainConfig) -> str:
    """``config.label``, else the registered method that its options are, else the nearest one and what differs from it.

    Such as ``custom (rmadapter, adapter.activation=relu, loss.lambda1=0)``.
    """
    return derived_name(config.adapter, config.loss) if config.label is None else config.label


def derived_name(adapter: RMAdapterConfig, loss: LossConfig) -> str:
    """What these options make, whatever it is labelled."""
    own = _traits(adapter, loss)
    differences = {name: _differing(own, _traits(*options)) for name, options in _registered().items()}
    nearest = min(differences, key=lambda name: (len(differences[name]), len(_BUILD & set(differences[name]))))
    if not differences[nearest]:
        return nearest
    listed = ", ".join(f"{name}{own[name]}" for name in differences[nearest])
    return f"custom ({nearest}, {listed})"


def is_made_by(name: str, made: str) -> bool:
    """Whether options that make ``made`` are those of what is called ``name``, where that is a registered method."""
    return name not in _registered() or derived_name(*_registered()[name]) == made


def folder_of(config: TrainConfig) -> Path:
    """``config.out``, or the default named after what is run."""
    if config.out:
        return Path(config.out)
    data = (Path(config.data).name or "data") + (f"-{config.style}" if config.style else "")
    model = Path(config.model.removeprefix("local-dir:")).name
    method = plain_name(method_name(config))
    return Path("runs") / f"{data}-{model}-{method}-{config.classes}-{config.shots}shot-seed{config.seed}"


def _traits(adapter: RMAdapterConfig, loss: LossConfig) -> dict[str, str]:
    """What makes the method, by option: its value behind the sign that stands between them."""
    traits = {
        f"adapter.{field.name}": f"={getattr(adapter, field.name)}"
        for field in dataclasses.fields(adapter)
        if field.name not in RECIPE
    }
    for tower in TOWERS:
        traits[f"adapter.{tower}.layers"] = "=none" if adapter.tower(tower).layers == "none" else ""
    for field in dataclasses.fields(loss):
        traits[f"loss.{field.name}"] = SOME if getattr(loss, field.name) else NONE
    if not adapter.reconstruct:
        return {name: value for name, value in traits.items() if name not in _RECONSTRUCTION}
    return traits


def _differing(own: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """The options of ``own`` that are otherwise in ``other``; one that only ``own`` has counts by its default."""
    return [name for name, value in own.items() if value != other.get(name, _defaults()[name])]


@lru_cache(maxsize=1)
def _defaults() -> dict[str, str]:
    return _traits(RMAdapterConfig(), LossConfig())


@lru_cache(maxsize=1)
def _registered() -> dict[str, tuple[RMAdapterConfig, LossConfig]]:
    """The options of every registered method that is options of training."""
    found = {}
    for method in METHODS.values():
        if method.kind == ADAPTERS:
            config = parse_arguments(TrainConfig, ["--data", "any", *method.options], prog="rmadapter train")
            found[method.name] = (config.adapter, config.loss)
    return found
