"""Configuration as dataclasses that check themselves; the command line and YAML files are made from them.

Nested groups are ``adapter`` (what is put into the model), ``adapter.vision`` / ``adapter.text`` (where a
tower differs) and ``loss``; everything else about a run stands at the top level of ``TrainConfig``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rmadapter.errors import InputError, check_choice, check_range
from rmadapter.step_config import StepConfig
from rmadapter_kernels import ACTIVATIONS, OBJECTIVES

TOWERS = ("vision", "text")
PRECISIONS = ("auto", "bf16", "fp16", "fp32")
STREAMS = ("auto", "fp32", "compute")
PARTS = ("all", "base", "new")
AUGMENTATIONS = ("crop_flip", "crop", "none")
LAYER_FORMS = "'all', 'none', 'last:N', 'A-B', 'A,B,C' or a list of numbers, counted from 1"


def _check_layers(field_name: str, layers: Any) -> str | list[int]:
    """A layer specification in one of its written forms, or a list of ints from any other iterable of ints."""
    if isinstance(layers, str):
        text = layers.replace(" ", "")
        if re.fullmatch(r"all|none|last:[1-9]\d*|\d+(-\d+)?(,\d+(-\d+)?)*", text):
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
        count = int(spec.removeprefix("last:"))
        if count > depth:
            raise InputError(
                f"{field_name} is {spec!r}, but the tower has {depth} blocks; valid: last:1 to last:{depth}"
            )
        return list(range(depth - count + 1, depth + 1))
    if isinstance(spec, str):
        numbers = []
        for piece in spec.split(","):
            first, _, last = piece.partition("-")
            numbers += range(int(first), int(last or first) + 1)
    else:
        numbers = list(spec)
    outside = [n for n in numbers if not 1 <= n <= depth]
    if outside or not numbers:
        raise InputError(
            f"{field_name} is {spec!r}; block {', '.join(map(str, outside)) or '(none)'} is not in the tower, "
            f"valid: 1 to {depth}"
        )
    if len(set(numbers)) < len(numbers):
        raise InputError(f"{field_name} is {spec!r}, which names a block twice")
    return sorted(numbers)


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
        layers: blocks that get an adapter, counted from 1: 'all', 'last:N', 'A-B', 'A,B,C' or a list
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
            padding too, at full length), or pooled (only the one that the features are made of)
        rec_layers: layers of the reconstruction up-projection, 1 to 3; other than 2 runs in plain PyTorch
        separate_down: the reconstruction branch has a down-projection of its own; plain PyTorch
        shared_layer: MMA's r x r layer between down and up, shared by both towers; plain PyTorch
        vision: what the image tower does differently
        text: what the text tower does differently
    """

    layers: list[int] | str = "last:8"
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
        self.layers = _check_layers("adapter.layers", self.layers)
        for name in TOWERS:
            tower = getattr(self, name)
            if tower.layers is not None:
                tower.layers = _check_layers(f"adapter.{name}.layers", tower.layers)
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
        check_choice("adapter.rec_tokens", self.rec_tokens, ("valid", "all", "pooled"))
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
        """The inverse of ``to_dict``; an unknown key is an InputError."""
        values = dict(values)
        for key in values:
            check_choice("key in adapter", key, [f.name for f in dataclasses.fields(cls)])
        for name in TOWERS:
            overrides = values.get(name) or {}
            for key in overrides:
                check_choice(f"key in adapter.{name}", key, [f.name for f in dataclasses.fields(TowerOverrides)])
            values[name] = TowerOverrides(**overrides)
        return cls(**values)


@dataclass
class LossConfig:
    """Weights of the loss terms beside cross-entropy; 0 leaves a term out and what only it needs uncomputed.

    The paper does not publish them. Reconstruction: 10, where a first trial saw an effect and 1 had none.
    Consistency: 10 and 25, the weights PromptSRC uses for the same mean absolute difference.

    Args:
        lambda1: reconstruction in the image tower
        lambda2: reconstruction in the text tower
        lambda3: L1 distance of adapted to frozen image features
        lambda4: L1 distance of adapted to frozen text features
    """

    lambda1: float = 10.0
    lambda2: float = 10.0
    lambda3: float = 10.0
    lambda4: float = 25.0

    def __post_init__(self) -> None:
        for name in ("lambda1", "lambda2", "lambda3", "lambda4"):
            check_range(f"loss.{name}", getattr(self, name), 0)


@dataclass
class TrainConfig:
    """One training run. The defaults are those of the field's 16-shot protocol for pretrained CLIP.

    Args:
        data: folder of images (one folder a class, or train/ and test/ with one each), its name in data_root, or
            a bundled data set: emoji_animals, emoji_food, ... (these have defaults of their own)
        data_root: folder that holds the data sets
        style: whose drawings, for the bundled emoji data sets: noto, twemoji, fluent, emojione or openmoji
        classes: all, or one half of the sorted classes: base or new
        shots: training images a class
        seed: seeds the sample, the order, the augmentation and the adapter's weights
        model: open_clip model name, or local-dir:FOLDER
        pretrained: open_clip tag or a weights file; without it the model has random weights
        template: prompt for a class, with {} for its name
        precision: what the frozen model is stored and computed in: auto (bf16 on GPUs and CPUs that have it, else
            fp32), bf16, fp16 or fp32; adapters, optimiser and losses are always fp32
        residual: the residual stream above the first adapter: fp32, compute (the precision), or auto
        device: auto, cpu, cuda or cuda:N
        fused: use the fastest adapter backend there is; --no-fused takes the eager reference
        backend: one adapter backend by name; an error where it is not to be had
        shortcuts: take the shortcuts of the group step; --no-shortcuts computes everything anew at every step
        step: the shortcuts, one by one
        text_memory: memory for the activations of all prompts, such as 2GB; default: a quarter of what is free
        views: augmented views an image, kept with what the frozen model makes of them; 0: fresh ones at every step
        image_cache: keep decoded images on the disk, for data on which the loader is slower than the step
        cache_limit: most that the views of all runs may take on the disk, and the decoded images as much, such as 10GB
        cache_dir: folder for both; default: ~/.cache/rmadapter
        compile: run the adapted part of both towers through torch.compile
        cuda_graphs: record whole steps, update included, as CUDA graphs and replay them (one GPU)
        explain: say what is on, why, and what it is expected to save; train nothing
        max_bad_steps: steps with a non-finite loss that are skipped before the run stops
        epochs: passes over the training images
        batch_size: images a step
        lr: peak learning rate of SGD, cosine schedule by epoch
        momentum: of SGD
        weight_decay: of SGD
        augmentation: crop_flip (random resized crop and flip), crop, or none
        min_crop: smallest share of the image's area that a random crop keeps
        workers: processes that decode images
        grad_checkpointing: recompute activations in the backward pass, less memory for more time
        name: what the method is called in results and reports; default: after the options that make it
        out: run folder; default: runs/DATA-MODEL-METHOD-CLASSES-SHOTSshot-seedSEED
        resume: go on with the run in out
        overwrite: delete what is in out first
        skip_bad_images: leave unreadable images out and count them, instead of stopping
        checkpoint_every: steps between resumable states, besides the one at the end of each epoch; 0 for none
        log_every: steps between lines in metrics.jsonl
        grad_norm_every: steps between measurements of the gradients that reconstruction and cross-entropy
            send to w_down (each costs two more backward passes); 0 for none
        evaluate: classify the test images afterwards (with --classes base: both base and new)
        eval_batch_size: images a step in evaluation
        adapter: the adapters
        loss: weights of the loss terms
    """

    data: str = ""
    data_root: str | None = None
    style: str | None = None
    classes: str = "all"
    shots: int = 16
    seed: int = 1
    model: str = "ViT-B-16"
    pretrained: str | None = None
    template: str = "a photo of a {}."
    precision: str = "auto"
    residual: str = "auto"
    device: str = "auto"
    fused: bool = True
    backend: str | None = None
    shortcuts: bool = True
    step: StepConfig = field(default_factory=StepConfig)
    text_memory: str | None = None
    views: int = 0
    image_cache: bool = False
    cache_limit: str = "10GB"
    cache_dir: str | None = None
    compile: bool = False
    cuda_graphs: bool = False
    explain: bool = False
    max_bad_steps: int = 10
    epochs: int = 5
    batch_size: int = 16
    lr: float = 0.0015
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augmentation: str = "crop_flip"
    min_crop: float = 0.08
    workers: int = 2
    grad_checkpointing: bool = False
    name: str | None = None
    out: str | None = None
    resume: bool = False
    overwrite: bool = False
    skip_bad_images: bool = False
    checkpoint_every: int = 100
    log_every: int = 10
    grad_norm_every: int = 50
    evaluate: bool = True
    eval_batch_size: int = 64
    adapter: RMAdapterConfig = field(default_factory=RMAdapterConfig)
    loss: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        if not self.data:
            raise InputError("data is missing; valid: --data FOLDER, or --data NAME --data-root DIR")
        check_choice("classes", self.classes, PARTS)
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("residual", self.residual, STREAMS)
        check_choice("augmentation", self.augmentation, AUGMENTATIONS)
        check_template(self.template)
        for name in ("shots", "epochs", "batch_size", "eval_batch_size", "log_every"):
            check_range(name, getattr(self, name), 1)
        for name in (
            "seed",
            "workers",
            "checkpoint_every",
            "grad_norm_every",
            "weight_decay",
            "max_bad_steps",
            "views",
        ):
            check_range(name, getattr(self, name), 0)
        check_range("lr", self.lr, 0, open_low=True)
        check_range("momentum", self.momentum, 0, 1)
        check_range("min_crop", self.min_crop, 0, 1, open_low=True)
        if self.resume and self.overwrite:
            raise InputError("resume and overwrite are both set; valid: one of them")
        if self.views and not (self.shortcuts and self.step.image_prefix):
            raise InputError(f"views is {self.views}, which are kept for step.image_prefix; valid: 0, or with it")
        if self.backend is not None and not self.fused:
            raise InputError(f"backend is {self.backend!r} and fused is False; valid: one of them")

    @property
    def method(self) -> str:
        """``name``, else short: rmadapter, single or mma, with the ways it differs from it."""
        if self.name is not None:
            return self.name
        adapter, loss = self.adapter, self.loss
        if not adapter.reconstruct:
            name = "mma" if adapter.shared_layer else "single"
            return name + ("+consistency" if loss.lambda3 or loss.lambda4 else "")
        marks = [
            (adapter.shared_layer, "shared-layer"),
            (adapter.separate_down, "separate-down"),
            (adapter.rec_layers != 2, f"rec{adapter.rec_layers}"),
            (adapter.objective != "l2", adapter.objective),
            (adapter.rec_stream != "adapted", f"{adapter.rec_stream}-stream"),
            (not adapter.local_reconstruction, "non-local"),
            (not (loss.lambda3 or loss.lambda4), "no-consistency"),
        ]
        return "-".join(["rmadapter", *(mark for wanted, mark in marks if wanted)])

    @property
    def run_folder(self) -> Path:
        """``out``, or the default named after what is run."""
        if self.out:
            return Path(self.out)
        data = (Path(self.data).name or "data") + (f"-{self.style}" if self.style else "")
        model = Path(self.model.removeprefix("local-dir:")).name
        return Path("runs") / f"{data}-{model}-{self.method}-{self.classes}-{self.shots}shot-seed{self.seed}"


def check_template(template: str) -> None:
    """Raise InputError unless ``template`` holds exactly one ``{}``."""
    if template.count("{}") != 1 or "{" in template.replace("{}", "") or "}" in template.replace("{}", ""):
        raise InputError(f"template is {template!r}; valid: a text with one {{}}, such as 'a photo of a {{}}.'")
