"""One training run as options, checked before any work; the command line and YAML files are made from it.

Nested groups are ``adapter`` (what is put into the model), ``adapter.vision`` / ``adapter.text`` (where a tower
differs), ``loss`` and ``step``; everything else about a run stands at the top level of ``TrainConfig``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from rmadapter.config.adapter import RMAdapterConfig
from rmadapter.config.head import HeadConfig
from rmadapter.config.help import HelpLayout
from rmadapter.config.lora import LoraConfig
from rmadapter.config.loss import LossConfig
from rmadapter.config.paths import ModelText, PathText
from rmadapter.config.prompt import PromptConfig
from rmadapter.config.seeds import LARGEST_SEED
from rmadapter.config.shortcuts import StepConfig
from rmadapter.config.sizes import parse_bytes
from rmadapter.config.space import SpaceConfig
from rmadapter.config.template import PUBLISHED, check_template
from rmadapter.config.tuned import TunerConfig
from rmadapter.errors import InputError, check_choice, check_range, printable_line

PRECISIONS = ("auto", "bf16", "fp16", "fp32")
STREAMS = ("auto", "fp32", "compute")
PARTS = ("all", "base", "new")
AUGMENTATIONS = ("crop_flip", "crop", "randaugment", "none")
OPTIMIZERS = ("sgd", "adam", "adamw")
DECAYS = ("epoch", "step")
SELECTIONS = ("last", "validation")
# In a run's folder: the configuration as it was resolved. A folder that holds it is a training run's.
RUN_CONFIG_FILE = "config.yaml"
# What ``rmadapter train --help`` shows first, and where each of the other options stands.
TRAIN_HELP = HelpLayout(
    first=(
        "data",
        "data_root",
        "style",
        "classes",
        "shots",
        "seed",
        "model",
        "pretrained",
        "epochs",
        "batch_size",
        "lr",
        "fused",
        "out",
        "resume",
    ),
    groups={
        "Images and prompts": (
            "template",
            "augmentation",
            "min_crop",
            "skip_bad_images",
            "allow_test_overlap",
            "workers",
        ),
        "Optimiser and schedule": (
            "optimizer",
            "momentum",
            "weight_decay",
            "adam_eps",
            "decay",
            "decay_power",
            "final_lr",
            "warmup_epochs",
            "warmup_lr",
            "steps_per_shot",
            "average",
            "select",
            "drop_last",
            "max_bad_steps",
        ),
        "Device, precision and backend": ("device", "precision", "residual", "backend"),
        "Speed and memory": (
            "shortcuts",
            "text_memory",
            "views",
            "image_cache",
            "cache_limit",
            "cache_dir",
            "compile",
            "cuda_graphs",
            "grad_checkpointing",
            "explain",
        ),
        "The run's folder, log and test": (
            "label",
            "overwrite",
            "checkpoint_every",
            "log_every",
            "grad_norm_every",
            "evaluate",
            "eval_batch_size",
        ),
    },
)


@dataclass
class TrainConfig:
    """One training run. The defaults are those of the field's 16-shot protocol for pretrained CLIP.

    Args:
        data: folder of images (one folder a class, or train/ and test/ with one each), its name in data_root, or
            a bundled data set: emoji_animals, drawings_animals, ... (these have defaults of their own)
        data_root: folder that holds the data sets
        style: whose drawings, for the bundled emoji data sets: noto, twemoji, fluent, emojione or openmoji; for
            drawings_... whose drawings are tested, noto-v1 or fluent-color too
        classes: all, or one half of the sorted classes: base or new
        shots: training images a class
        seed: seeds the sample, the order, the augmentation and the adapter's weights
        model: open_clip model name, or local-dir:FOLDER
        pretrained: open_clip tag or a weights file, which every open_clip model needs; none insists on random weights
        template: prompt for a class, with {} for its name, or published: the data set's own, as zero-shot CLIP has it
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
        cuda_graphs: record whole steps, update included, as CUDA graphs and replay them; default: on one GPU, where a
            step can be recorded
        explain: say what is on, why, and what it is expected to save; train nothing
        max_bad_steps: steps with a non-finite loss that are skipped before the run stops
        epochs: passes over the training images
        batch_size: images a step
        drop_last: leave out an epoch's last batch where it is not full, as the field's code does; else it is a smaller
            one
        optimizer: sgd, adam (weight decay added to the gradient) or adamw (decoupled)
        lr: peak learning rate; it falls as half a cosine
        momentum: of SGD
        adam_eps: epsilon of Adam
        decay: whether the rate falls by epoch or by step
        decay_power: power of the cosine's factor on the rate; 2 is what two schedules on one optimiser give (KgCoOp's
            first release)
        final_lr: learning rate that the cosine ends at
        warmup_epochs: epochs before it at a constant learning rate, fewer than there are
        warmup_lr: that rate
        steps_per_shot: steps for each training image of a class, in place of epochs; 0: epochs count
        average: "mean,std": the result is the mean of all epochs' weights, weighted by a Gaussian over their number
        select: the epoch whose weights are the result: the last, or the first of those that are best on the few-shot
            validation images
        weight_decay: of SGD
        augmentation: crop_flip (random resized crop and flip), crop, randaugment (the whole image squeezed into the
            square, and two random operations of RandAugment at strength 10 of 30), or none
        min_crop: smallest share of the image's area that a random crop keeps
        workers: processes that decode images
        grad_checkpointing: recompute activations in the backward pass, less memory for more time
        label: what results and reports call the method; default: the one of --method that the options make, else
            custom with what differs from the nearest
        out: run folder; default: runs/DATA-MODEL-METHOD-CLASSES-SHOTSshot-seedSEED
        resume: go on with the run in out
        overwrite: delete what is in out first
        skip_bad_images: leave unreadable images out and count them, instead of stopping
        allow_test_overlap: train although test images are among the training images, and count them
        checkpoint_every: steps between resumable states, besides the one at the end of each epoch; 0 for none
        log_every: steps between lines in metrics.jsonl
        grad_norm_every: steps between measurements of the gradients that reconstruction and cross-entropy
            send to w_down (each costs two more backward passes); 0 for none
        evaluate: classify the test images afterwards (with --classes base: both base and new)
        eval_batch_size: images a step in evaluation
        adapter: the adapters
        prompt: learned tokens
        lora: low-rank updates
        head: what is trained after the towers
        space: tokens of a space that both towers share
        loss: weights of the loss terms
    """

    data: PathText = ""
    data_root: PathText | None = None
    style: str | None = None
    classes: str = "all"
    shots: int = 16
    seed: int = 1
    model: ModelText = "ViT-B-16"
    pretrained: PathText | None = None
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
    cache_dir: PathText | None = None
    compile: bool = False
    cuda_graphs: bool | None = None
    explain: bool = False
    max_bad_steps: int = 10
    epochs: int = 5
    batch_size: int = 16
    drop_last: bool = False
    optimizer: str = "sgd"
    lr: float = 0.0015
    momentum: float = 0.9
    adam_eps: float = 1e-8
    decay: str = "epoch"
    decay_power: int = 1
    final_lr: float = 0.0
    warmup_epochs: int = 0
    warmup_lr: float = 1e-5
    steps_per_shot: int = 0
    average: str | None = None
    select: str = "last"
    weight_decay: float = 5e-4
    augmentation: str = "crop_flip"
    min_crop: float = 0.08
    workers: int = 2
    grad_checkpointing: bool = False
    label: str | None = None
    out: PathText | None = None
    resume: bool = False
    overwrite: bool = False
    skip_bad_images: bool = False
    allow_test_overlap: bool = False
    checkpoint_every: int = 100
    log_every: int = 10
    grad_norm_every: int = 50
    evaluate: bool = True
    eval_batch_size: int = 64
    adapter: RMAdapterConfig = field(default_factory=RMAdapterConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    space: SpaceConfig = field(default_factory=SpaceConfig)
    loss: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        if not self.data:
            raise InputError("data is missing; valid: --data FOLDER, or --data NAME --data-root DIR")
        check_choice("classes", self.classes, PARTS)
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("residual", self.residual, STREAMS)
        check_choice("augmentation", self.augmentation, AUGMENTATIONS)
        if self.template != PUBLISHED:
            check_template(self.template)
        if self.label is not None:
            check_label(self.label)
        if self.head.cache != "none" and self.shots == 0:
            raise InputError(
                f"shots is 0, but head.cache is {self.head.cache!r}, which keeps training images; valid: 1 or more"
            )
        for name in ("shots", "epochs", "batch_size", "eval_batch_size", "log_every", "decay_power"):
            check_range(name, getattr(self, name), 1)
        check_range("seed", self.seed, 0, LARGEST_SEED)
        for name in (
            "workers",
            "checkpoint_every",
            "grad_norm_every",
            "weight_decay",
            "max_bad_steps",
            "views",
        ):
            check_range(name, getattr(self, name), 0)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("decay", self.decay, DECAYS)
        for name in ("lr", "adam_eps", "warmup_lr"):
            check_range(name, getattr(self, name), 0, open_low=True)
        for name in ("final_lr", "warmup_epochs", "steps_per_shot"):
            check_range(name, getattr(self, name), 0)
        check_range("final_lr", self.final_lr, 0, self.lr)
        parse_bytes("cache_limit", self.cache_limit)
        if self.text_memory is not None:
            parse_bytes("text_memory", self.text_memory)
        gaussian(self.average)
        check_choice("select", self.select, SELECTIONS)
        if self.average is not None and self.select != "last":
            raise InputError(f"average is {self.average!r} and select {self.select!r}; valid: one of them")
        check_range("momentum", self.momentum, 0, 1)
        check_range("min_crop", self.min_crop, 0, 1, open_low=True)
        if not self.steps_per_shot:
            check_warmup(self.warmup_epochs, self.epochs)
        if self.resume and self.overwrite:
            raise InputError("resume and overwrite are both set; valid: one of them")
        if self.views and not (self.shortcuts and self.step.image_prefix):
            raise InputError(f"views is {self.views}, which are kept for step.image_prefix; valid: 0, or with it")
        if self.backend is not None and not self.fused:
            raise InputError(f"backend is {self.backend!r} and fused is False; valid: one of them")

    @property
    def tuned(self) -> TunerConfig:
        """All that is trained."""
        return TunerConfig(self.adapter, self.prompt, self.lora, self.head, self.space)


def gaussian(average: str | None) -> tuple[float, float] | None:
    """Mean and deviation that ``average`` names; InputError for another form."""
    if average is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*,\s*(\d+(?:\.\d*)?)\s*", average)
    if match is None or not float(match[2]):
        raise InputError(f"average is {average!r}; valid: mean,std of a Gaussian over the epochs, such as 15,1")
    return float(match[1]), float(match[2])


def check_warmup(warmup_epochs: int, epochs: int, whence: str = "") -> None:
    """Raise InputError where no epoch would be left for the peak rate; ``whence`` says what made so many ``epochs``.

    One epoch of warm-up is in most recipes, and passes with --epochs 1, which does not take it back: a run says so.
    """
    if warmup_epochs > 1 and warmup_epochs >= epochs:
        raise InputError(f"warmup_epochs is {warmup_epochs}, but epochs is {epochs}{whence}; valid: less than epochs")


def check_label(label: str) -> None:
    """Raise InputError unless ``label`` can name a method: in tables, and in the name of a folder."""
    if not label.strip() or printable_line(label) != label or set(label) & {"/", "\\"}:
        raise InputError(f"label is {label!r}; valid: a text of one line without / and \\")
