"""The adapters of a run as options: the group ``adapter`` of ``TrainConfig``."""

from __future__ import annotations

import dataclasses
import re
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rmadapter.config.typed import check_types, from_plain
from rmadapter.errors import InputError, check_choice, check_range
from rmadapter_kernels import ACTIVATIONS, OBJECTIVES

TOWERS = ("vision", "text")
REC_TOKENS = ("valid", "all", "pooled", "patches")
LAYER_FORMS = "'all', 'none', 'last:N', 'last:N/M', 'A-B', 'A,B,C' or a list of numbers, counted from 1"


def check_layers(field_name: str, layers: Any) -> str | list[int]:
    """A layer specification in one of its written forms, or a list of ints from any other iterable of ints."""
    if isinstance(layers, str):
        text = layers.replace(" ", "")
        if re.fullmatch(
            r"all|none|last:[1-9]\d{0,8}(/[1-9]\d{0,8})?|\d{1,9}(-\d{1,9})?(,\d{1,9}(-\d{1,9})?)*", text, re.ASCII
        ):
            return text
        raise InputError(f"{field_name} is {layers!r}; valid: {LAYER_FORMS}")
    if isinstance(layers, Iterable):
        numbers = list(layers)
        if all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
            return numbers
    raise InputError(f"{field_name} is {layers!r}; valid: {LAYER_FORMS}")


def layer_numbers(spec: str | list[int], depth: int, field_name: str = "adapter.layers") -> list[int]:
    """The sorted block numbers, counted from 1, that ``spec`` names in a tower of ``depth`` blocks.

    Raises:
        InputError: a number outside ``1..depth``, more last blocks than there are, a number given twice.
    """
    if spec == "all":
        return list(range(1, depth + 1))
    if spec == "none":
        return []
    if isinstance(spec, str) and spec.startswith("last:"):
        part, _, whole = spec.removeprefix("last:").partition("/")
        # Of a share the nearest whole number, a half upwards: two thirds of 12 blocks are 8, of 24 are 16, of 4 are 3.
        count = max(1, (2 * depth * int(part) + int(whole)) // (2 * int(whole))) if whole else int(part)
        if count > depth:
            raise InputError(
                f"{field_name} is {spec!r}, but the tower has {depth} blocks; valid: last:1 to last:{depth}"
            )
        return list(range(depth - count + 1, depth + 1))
    # Ranges before they are written out: "1-99999999" is one range, and no list of as many numbers.
    ranges = [_range(piece) for piece in spec.split(",")] if isinstance(spec, str) else [(n, n) for n in spec]
    outside = [n for ends in ranges for n in dict.fromkeys(ends) if not 1 <= n <= depth]
    numbers = [] if outside else [n for first, last in ranges for n in range(first, last + 1)]
    if not numbers:
        raise InputError(
            f"{field_name} is {reprlib.repr(spec)}; block {', '.join(map(str, outside[:5])) or '(none)'} is not in "
            f"the tower, valid: 1 to {depth}"
        )
    if len(set(numbers)) < len(numbers):
        raise InputError(f"{field_name} is {reprlib.repr(spec)}, which names a block twice")
    return sorted(numbers)


def _range(piece: str) -> tuple[int, int]:
    """First and last number of "A-B", or of "A"."""
    first, _, last = piece.partition("-")
    return int(first), int(last or first)


@dataclass
class TowerOverrides:
    """What one tower does differently; None takes the value of the adapter group.

    Args:
        layers: blocks of this tower that get an adapter; 'none' leaves the tower as it is
        bottleneck: width r of this tower's bottleneck
        scale: factor on this tower's adaptation branch
    """

    layers: list[int] | str | None = None
    bottleneck: int | None = None
    scale: float | None = None


@dataclass(frozen=True)
class TowerSettings:
    """The values of one tower after its overrides."""

    layers: str | list[int]
    bottleneck: int
    rec_hidden: int
    scale: float
    branch_grad_scale: float


@dataclass
class RMAdapterConfig:
    """The adapters: their shape, their place and their gradients.

    Args:
        layers: blocks that get an adapter, counted from 1: 'all', 'last:N', 'last:N/M' (a share of the tower's),
            'A-B', 'A,B,C' or a list
        bottleneck: width r of the shared down-projection, 1 to 128
        rec_hidden: hidden width h of the reconstruction branch, 1 to 128; default: the bottleneck
        activation: gelu, relu, quick_gelu or silu
        scale: factor on the adaptation branch before it is added to the block's output
        reconstruct: whether there is a reconstruction branch; without it this is a single-branch adapter
        objective: what the reconstruction minimises: l2, l1 or cosine
        local_reconstruction: keep the reconstruction's gradient away from the adapter's input
        branch_grad_scale: factor on the gradient that the adaptation branch sends to its weights;
            default: 1/scale, so that the weights do not see the scale
        init: kaiming, or zero_up (an untrained adapter is exactly the identity)
        adapter_input: ln_1 (the block's own frozen norm) or pre_ln (the block's input as it is)
        rec_stream: which stream's tokens are reconstructed: adapted, or frozen (one more pass a tower a step)
        rec_tokens: which tokens the reconstruction counts: valid (of a prompt those up to end-of-text), all (prompts'
            padding too, at full length), pooled (only the one that the features are made of) or patches (of an image
            its patches, of a prompt the valid ones but the one that the features are made of)
        rec_layers: layers of the reconstruction up-projection, 1 to 3; other than 2 runs in plain PyTorch
        separate_down: the reconstruction branch has a down-projection of its own; plain PyTorch
        shared_layer: MMA's r x r layer between down and up, shared by both towers; plain PyTorch
        vision: what the image tower does differently
        text: what the text tower does differently
    """

    layers: list[int] | str = "last:2/3"
    bottleneck: int = 32
    rec_hidden: int | None = None
    activation: str = "gelu"
    scale: float = 0.001
    reconstruct: bool = True
    objective: str = "l2"
    local_reconstruction: bool = True
    branch_grad_scale: float | None = None
    init: str = "kaiming"
    adapter_input: str = "ln_1"
    rec_stream: str = "adapted"
    rec_tokens: str = "valid"
    rec_layers: int = 2
    separate_down: bool = False
    shared_layer: bool = False
    vision: TowerOverrides = field(default_factory=TowerOverrides)
    text: TowerOverrides = field(default_factory=TowerOverrides)

    def __post_init__(self) -> None:
        self.layers = check_layers("adapter.layers", self.layers)
        for name in TOWERS:
            tower = getattr(self, name)
            if tower.layers is not None:
                tower.layers = check_layers(f"adapter.{name}.layers", tower.layers)
        check_types(self, "adapter")
        for name in TOWERS:
            tower = getattr(self, name)
            if tower.bottleneck is not None:
                check_range(f"adapter.{name}.bottleneck", tower.bottleneck, 1, 128)
            if tower.scale is not None:
                check_range(f"adapter.{name}.scale", tower.scale, 0, open_low=True)
        check_range("adapter.bottleneck", self.bottleneck, 1, 128)
        if self.rec_hidden is not None:
            check_range("adapter.rec_hidden", self.rec_hidden, 1, 128)
        check_range("adapter.scale", self.scale, 0, open_low=True)
        if self.branch_grad_scale is not None:
            check_range("adapter.branch_grad_scale", self.branch_grad_scale, 0, open_low=True)
        check_choice("adapter.activation", self.activation, ACTIVATIONS)
        check_choice("adapter.objective", self.objective, OBJECTIVES)
        check_choice("adapter.init", self.init, ("kaiming", "zero_up"))
        check_choice("adapter.adapter_input", self.adapter_input, ("ln_1", "pre_ln"))
        check_choice("adapter.rec_stream", self.rec_stream, ("adapted", "frozen"))
        check_choice("adapter.rec_tokens", self.rec_tokens, REC_TOKENS)
        check_choice("adapter.rec_layers", self.rec_layers, (1, 2, 3))
        if self.shared_layer and self.tower("vision").bottleneck != self.tower("text").bottleneck:
            raise InputError("adapter.shared_layer needs the same bottleneck in both towers")
        if self.separate_down and not self.reconstruct:
            raise InputError("adapter.separate_down is the reconstruction's own, and adapter.reconstruct is False")

    def tower(self, name: str) -> TowerSettings:
        """The settings of tower ``name`` ("vision" or "text") with its overrides applied."""
        overrides = getattr(self, name)

        def pick(attribute: str) -> Any:
            own = getattr(overrides, attribute)
            return getattr(self, attribute) if own is None else own

        scale = pick("scale")
        return TowerSettings(
            layers=pick("layers"),
            bottleneck=pick("bottleneck"),
            rec_hidden=self.rec_hidden or pick("bottleneck"),
            scale=scale,
            branch_grad_scale=1.0 / scale if self.branch_grad_scale is None else self.branch_grad_scale,
        )

    @property
    def in_operator(self) -> bool:
        """Whether the kernel operator covers this variant; the others run in plain PyTorch."""
        return self.rec_layers == 2 and not self.separate_down and not self.shared_layer

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and YAML."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RMAdapterConfig:
        """The inverse of ``to_dict``; an unknown key, and a value of another type, is an InputError."""
        return from_plain(cls, values, "adapter")
