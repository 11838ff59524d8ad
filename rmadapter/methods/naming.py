"""What a configuration's method is called: by its label, by the registered method that it is, or as a custom one.

What makes a method is every option of the groups ``adapter``, ``prompt``, ``space``, ``lora``, ``head`` and ``loss``
apart from its recipe: the sizes of ``RECIPE`` (which blocks, widths, factors) and how much something weighs. A weight
of 0, which leaves a term out, makes another method, and so do adapters in one tower alone. Options that have no effect,
such as those of a reconstruction that is not there, make none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from rmadapter.config import LossConfig, TrainConfig, TunerConfig
from rmadapter.config.adapter import TOWERS
from rmadapter.config.arguments import parse_arguments
from rmadapter.files import plain_name
from rmadapter.methods import METHODS
from rmadapter.methods.method import TUNED

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
    return derived_name(config.tuned, config.loss) if config.label is None else config.label


def derived_name(tuned: TunerConfig, loss: LossConfig) -> str:
    """What these options make, whatever it is labelled."""
    own = _traits(tuned, loss)
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


def _traits(tuned: TunerConfig, loss: LossConfig) -> dict[str, str]:
    """What makes the method, by option: its value behind the sign that stands between them."""
    adapter = tuned.adapter
    traits = {}
    for tower in TOWERS:
        traits[f"adapter.{tower}.layers"] = "=none" if adapter.tower(tower).layers == "none" else ""
    if not all(traits.values()):
        for field in dataclasses.fields(adapter):
            if field.name not in RECIPE:
                traits[f"adapter.{field.name}"] = f"={getattr(adapter, field.name)}"
    traits |= _beside_adapters(tuned)
    for name in ("lambda1", "lambda2", "lambda3", "lambda4", "distillation", "projected"):
        traits[f"loss.{name}"] = SOME if getattr(loss, name) else NONE
    if loss.lambda3 or loss.lambda4:
        traits["loss.distance"] = f"={loss.distance}"
    if loss.needs_image:
        traits["loss.second_view"] = f"={loss.second_view}"
    if loss.needs_text:
        traits["loss.target"] = f"={loss.target}"
    if not adapter.reconstruct:
        return {name: value for name, value in traits.items() if name not in _RECONSTRUCTION}
    return traits


def _beside_adapters(tuned: TunerConfig) -> dict[str, str]:
    """Of what is trained beside the adapters, what makes a method: that it is there, not how large it is."""
    prompt, head = tuned.prompt, tuned.head
    sizes = {
        "prompt.text_tokens": prompt.text_tokens,
        "prompt.vision_tokens": prompt.vision_tokens,
        "space.tokens": tuned.space.tokens,
        "lora.rank": tuned.lora.rank,
        "head.image_ratio": head.image_ratio,
        "head.text_ratio": head.text_ratio,
        "head.offset": head.offset,
    }
    traits = {name: SOME if size else NONE for name, size in sizes.items()}
    traits["prompt.text_depth"] = ">1" if prompt.text_depth > 1 else "=1"
    return traits | {
        "prompt.per_image": f"={prompt.per_image}",
        "prompt.coupled": f"={prompt.coupled}",
        "head.cache": f"={head.cache}",
    }


def _differing(own: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """The options of ``own`` that are otherwise in ``other``; one that only ``own`` has counts by its default."""
    return [name for name, value in own.items() if value != other.get(name, _defaults()[name])]


@lru_cache(maxsize=1)
def _defaults() -> dict[str, str]:
    return _traits(TunerConfig(), LossConfig())


@lru_cache(maxsize=1)
def _registered() -> dict[str, tuple[TunerConfig, LossConfig]]:
    """The options of every registered method that is options of training."""
    found = {}
    for method in METHODS.values():
        if method.kind == TUNED:
            words = ["--data", "any", *method.recipe, *method.options]
            config = parse_arguments(TrainConfig, words, prog="rmadapter train")
            found[method.name] = (config.tuned, config.loss)
    return found
