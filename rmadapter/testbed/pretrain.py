"""Pretrains the bundled small CLIP on the drawings of two styles.

    python -m rmadapter.testbed.pretrain --out DIR        # half an hour on a free core; the same command goes on
    python -m rmadapter.testbed.pretrain --out DIR --bundle  # and put the weights where the package has them

A step shows 128 different emoji, half of them of one group, each as a rendering of its drawing in one of the styles,
and their captions: CLIP's symmetric loss. So that other styles' drawings are understood too, the two styles are
blended, their colours turned and washed out, and their shapes bent. Everything random depends on (seed, step) alone.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from rmadapter.clip import emoji_clip
from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.clip.prompts import encode_prompts
from rmadapter.config.arguments import run_module
from rmadapter.config.paths import PathText
from rmadapter.data import Preprocessing
from rmadapter.data.emoji import GROUPS, PREFIX
from rmadapter.data.emoji.atlas import FILES, ONE_DRAWING, STYLES, catalogue, classes, drawings
from rmadapter.data.emoji.emoji_data import DEFAULT_STYLE, load_emoji
from rmadapter.data.emoji.rendering import Variations, compose
from rmadapter.errors import InputError, check_range
from rmadapter.evaluation.answers import answers_of, encode
from rmadapter.evaluation.eval_images import Loading
from rmadapter.files import read_json, write_atomic, write_bytes, write_json
from rmadapter.reports.tables import Table
from rmadapter.testbed.build import write_manifest
from rmadapter.testbed.runs import HINT

TEMPLATES = (
    "a photo of a {}.",
    "a photo of a {}.",
    "a photo of the {}.",
    "a picture of a {}.",
    "a drawing of a {}.",
    "an emoji of a {}.",
    "an image of the {}.",
    "a small photo of a {}.",
    "a blurry picture of a {}.",
    "a {}.",
    "{}",
)
WARMUP_STEPS = 100
COSINE_STEPS = 4000  # to its end, which the line to zero comes before
DECAY_STEPS = 300
# Renderings begin plain and have all their background, turn and noise after so many steps. Without, a batch's captions
# were told apart in 3.5 % of cases after 500 steps, with it in 29 %.
MILD_STEPS = 1500
WEIGHT_DECAY = 0.2
LOGIT_SCALE = (10.0, 50.0)  # at first, at most
LABEL_SMOOTHING = 0.05


@dataclass(frozen=True)
class Pretraining:
    """What decides the weights, besides the drawings.

    Args:
        steps: optimiser steps.
        batch_size: emoji a step, all different.
        lr: AdamW's, at the top: warm-up, then a cosine, and at the end of ``steps`` a straight line to zero.
        seed: of weights, batches and renderings.
    """

    steps: int = 3300
    batch_size: int = 96
    lr: float = 1.5e-3
    seed: int = 0

    def __post_init__(self) -> None:
        check_range("steps", self.steps, 1)
        check_range("batch_size", self.batch_size, 2, len(catalogue()))
        check_range("lr", self.lr, 0, open_low=True)
        check_range("seed", self.seed, 0)


class Captions:
    """All captions as tokens of a small vocabulary: the tokens that occur, numbered in their order."""

    def __init__(self) -> None:
        tokenize = emoji_clip.tokenizer()
        names = [emoji.name for emoji in catalogue()]
        tokens = torch.stack([tokenize([template.format(name) for name in names]) for template in TEMPLATES])
        self.used, numbered = tokens.unique(return_inverse=True)  # used [n]; zero, the padding, is one of them
        self.tokens = numbered  # [templates, emoji, 77]
        self.length = (tokens != 0).sum(-1)  # [templates, emoji]

    def draw(self, chosen: np.ndarray, generator: np.random.Generator) -> Tensor:
        """Tokens [n, longest] of the ``chosen`` emoji's names, each in a random template."""
        template = generator.integers(len(TEMPLATES), size=len(chosen))
        longest = int(self.length[template, chosen].max())
        return self.tokens[template, chosen, :longest]


class Pool:
    """The drawings of the pretraining styles, and random batches of them."""

    def __init__(self) -> None:
        styles = [drawings(style.name) for style in STYLES.values() if style.pretrained]
        tiles = np.stack([np.stack([style[emoji.code] for emoji in catalogue()]) for style in styles])
        self.tiles = torch.from_numpy(tiles).permute(0, 1, 4, 2, 3).contiguous()  # uint8 [styles, emoji, 4, 48, 48]
        groups = np.array([GROUPS.index(emoji.group) for emoji in catalogue()])
        self.members = [np.flatnonzero(groups == group) for group in range(len(GROUPS))]

    def choose(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """``count`` different emoji: up to half of one group, which are hard to tell apart, the others of all."""
        members = self.members[generator.integers(len(self.members))]
        near = generator.choice(members, min(count // 2, len(members)), replace=False)
        rest = np.setdiff1d(np.arange(self.tiles.shape[1]), near)
        return np.concatenate([near, generator.choice(rest, count - len(near), replace=False)])

    def draw(self, chosen: np.ndarray, generator: np.random.Generator, strength: float = 1.0) -> Tensor:
        """Float [n, 3, 48, 48] from 0 to 1: the ``chosen`` emoji, altered, and rendered at ``strength`` of a view."""
        count = len(chosen)
        first = generator.integers(len(self.tiles), size=count)
        tiles = self.tiles[first, chosen].float() / 255
        other = self.tiles[1 - first, chosen].float() / 255
        # Both styles at once, one shining through: shapes and colours between the two.
        share = np.where(generator.random(count) < 0.3, generator.uniform(0, 0.5, count), 0).astype(np.float32)
        tiles = torch.lerp(tiles, other, torch.from_numpy(share)[:, None, None, None])
        tiles = torch.cat([_recolour(tiles[:, :3], generator), tiles[:, 3:]], 1)
        views = Variations.draw(generator, count, turn=30).milder(strength)
        bend = torch.from_numpy(generator.normal(0, 0.07, (count, 2, 4, 4)).astype(np.float32))
        warp = F.interpolate(bend, tiles.shape[-2:], mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
        picture = compose(tiles, views, warp)
        noise = torch.from_numpy(generator.standard_normal(picture.shape, dtype=np.float32))
        picture = picture + noise * torch.from_numpy(views.noise)[:, None, None, None]
        return _blur(picture, generator).clamp_(0, 1)


def _recolour(colours: Tensor, generator: np.random.Generator) -> Tensor:
    """Hue turned by up to a sixth of the circle, colour from grey to strong, contrast; [n, 3, h, w]."""
    count = len(colours)
    grey = colours.mean(1, keepdim=True)
    angle = torch.from_numpy(generator.normal(0, 0.35, count).clip(-1.05, 1.05).astype(np.float32))
    strength = np.where(generator.random(count) < 0.1, 0, generator.uniform(0.5, 1.5, count)).astype(np.float32)
    # A turn about the grey axis: the part across it, and that crossed with the axis.
    across = colours - grey
    crossed = (across.roll(1, 1) - across.roll(-1, 1)) / math.sqrt(3)
    turned = angle.cos()[:, None, None, None] * across + angle.sin()[:, None, None, None] * crossed
    contrast = torch.from_numpy(generator.uniform(0.7, 1.3, (count, 1, 1, 1)).astype(np.float32))
    shade = torch.from_numpy(generator.uniform(-0.1, 0.1, (count, 1, 1, 1)).astype(np.float32))
    return ((grey - 0.5) * contrast + 0.5 + shade + torch.from_numpy(strength)[:, None, None, None] * turned).clamp_(
        0, 1
    )


def _blur(pictures: Tensor, generator: np.random.Generator) -> Tensor:
    """A fifth of the pictures at half the resolution."""
    chosen = torch.from_numpy(generator.random(len(pictures)) < 0.2)
    if chosen.any():
        small = F.avg_pool2d(pictures[chosen], 2)
        pictures[chosen] = F.interpolate(small, pictures.shape[-2:], mode="bilinear", align_corners=False)
    return pictures


def new_model(vocabulary: int, seed: int) -> nn.Module:
    """Random weights from ``seed``; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = emoji_clip.new_model(vocabulary)
    nn.init.constant_(model.logit_scale, math.log(LOGIT_SCALE[0]))
    return model


class Trainer:
    """The model, its optimiser and the step they are at."""

    def __init__(self, settings: Pretraining):
        self.settings = settings
        self.captions, self.pool = Captions(), Pool()
        self.model: Any = new_model(len(self.captions.used), settings.seed)
        matrices = {name: p for name, p in self.model.named_parameters() if p.ndim > 1 and "embedding" not in name}
        others = {name: p for name, p in self.model.named_parameters() if name not in matrices}
        self.names: dict[Tensor, str] = {p: name for group in (matrices, others) for name, p in group.items()}
        self.optimizer = torch.optim.AdamW(
            [
                {"params": list(matrices.values()), "weight_decay": WEIGHT_DECAY},
                {"params": list(others.values()), "weight_decay": 0.0},
            ],
            lr=settings.lr,
            betas=(0.9, 0.98),
        )
        self.step = 0
        mean, std = (torch.tensor(emoji_clip.PREPROCESS[key])[:, None, None] for key in ("mean", "std"))
        self.normalize = lambda pictures: (pictures - mean) / std

    def train_step(self) -> tuple[float, float]:
        """One step; its loss and the share of pictures matched to their caption, in percent."""
        settings = self.settings
        generator = np.random.default_rng((settings.seed, self.step))
        chosen = self.pool.choose(settings.batch_size, generator)
        pictures = self.normalize(self.pool.draw(chosen, generator, min(1.0, self.step / MILD_STEPS)))
        images = F.normalize(self.model.encode_image(pictures), dim=-1)
        texts = F.normalize(encode_prompts(self.model, self.captions.draw(chosen, generator)), dim=-1)
        logits = self.model.logit_scale.exp() * images @ texts.T
        labels = torch.arange(len(chosen))
        both = (F.cross_entropy(part, labels, label_smoothing=LABEL_SMOOTHING) for part in (logits, logits.T))
        loss = reduce(torch.add, both) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * self._schedule()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=math.log(LOGIT_SCALE[1]))
        self.step += 1
        return loss.item(), 100 * (logits.argmax(1) == labels).float().mean().item()

    def _schedule(self) -> float:
        warm = min(1.0, (self.step + 1) / WARMUP_STEPS)
        cosine = (1 + math.cos(math.pi * min(self.step, COSINE_STEPS) / COSINE_STEPS)) / 2
        return warm * cosine * min(1.0, (self.settings.steps - self.step) / DECAY_STEPS)

    def save(self, folder: Path) -> None:
        """Weights, moments and step, in one file that is whole or the one before."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for parameter, state in self.optimizer.state.items():
            for key in ("exp_avg", "exp_avg_sq"):
                tensors[f"{key}.{self.names[parameter]}"] = state[key]
        tensors["step"] = torch.tensor(self.step)
        write_atomic(folder / "state.safetensors", lambda path: save_file(tensors, path))

    def restore(self, folder: Path) -> None:
        """Go on from what ``save`` wrote."""
        tensors = load_file(folder / "state.safetensors")
        self.step = int(tensors["step"])
        self.model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
        for parameter, name in self.names.items():
            moments = {key: tensors[f"{key}.{name}"] for key in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {"step": torch.tensor(float(self.step)), **moments}


def pretrain(settings: Pretraining, out: Path, *, save_every: int = 500) -> Path:
    """Train to the last step, from the beginning or from where ``out`` stopped; returns the weights' file.

    Raises:
        InputError: ``out`` holds a pretraining with other settings, or cannot be written.
    """
    plain = {**vars(settings), "model": emoji_clip.ARCHITECTURE, "templates": list(TEMPLATES)}
    weights, description = out / emoji_clip.WEIGHTS, out / "pretraining.json"
    if description.exists() and read_json(description, "pretraining") != plain:
        raise InputError(f"{out} holds a pretraining with other settings; valid: the same, or another --out")
    if weights.exists():
        return weights
    write_json(description, plain)
    trainer = Trainer(settings)
    if (out / "state.safetensors").exists():
        trainer.restore(out)
        print(f"going on at step {trainer.step} of {settings.steps}", flush=True)
    began, first = time.perf_counter(), trainer.step
    losses: list[float] = []
    matched: list[float] = []
    terminal = sys.stderr.isatty()
    with tqdm(total=settings.steps, initial=trainer.step, unit="step", disable=not terminal) as bar:
        while trainer.step < settings.steps:
            loss, percent = trainer.train_step()
            losses.append(loss)
            matched.append(percent)
            bar.update()
            if trainer.step % 100 == 0:
                pace = (time.perf_counter() - began) / (trainer.step - first)
                text = f"loss {np.mean(losses):.3f}, matched {np.mean(matched):.1f} %, {1000 * pace:.0f} ms a step"
                bar.set_postfix_str(text, refresh=False)
                if not terminal:
                    print(f"step {trainer.step} of {settings.steps}: {text}", flush=True)
                losses, matched = [], []
            if trainer.step % save_every == 0:
                trainer.save(out)
    packed = emoji_clip.pack(trainer.model.state_dict(), trainer.captions.used)
    write_atomic(weights, lambda path: save_file(packed, path))
    write_json(out / emoji_clip.CONFIG, {"model_cfg": emoji_clip.ARCHITECTURE, "preprocess_cfg": emoji_clip.PREPROCESS})
    return weights


def zero_shot(folder: Path) -> dict[str, dict[str, float]]:
    """Top-1 in percent by group and style of the weights in ``folder``, among all classes of the group."""
    clip = emoji_clip.build(read_json(folder / emoji_clip.CONFIG, "model"), load_file(folder / emoji_clip.WEIGHTS))
    loading = Loading(Preprocessing.of(clip), workers=0)
    found: dict[str, dict[str, float]] = {}
    for group in GROUPS:
        sets = {style: load_emoji(f"{PREFIX}{group}", style, retention=False) for style in ONE_DRAWING}
        names = sets[DEFAULT_STYLE].class_names
        model = CLIPClassifier(clip.eval(), emoji_clip.tokenizer(), names)
        with torch.no_grad():
            text = model.text_features()
        found[group] = {
            style: answers_of(model, encode(model, data.read, data.test, loading), text).top1
            for style, data in sets.items()
        }
    return found


def describe(found: dict[str, dict[str, float]]) -> str:
    """``zero_shot``'s accuracies as a Markdown table."""
    rows = [
        (group, str(len(classes(group))), *(f"{row[style]:.1f}" for style in ONE_DRAWING))
        for group, row in found.items()
    ]
    return Table("", ("group", "classes", *ONE_DRAWING), rows, aligned=False).markdown()


def bundle(folder: Path) -> None:
    """Put the weights in ``folder`` where the package has them."""
    for name in (emoji_clip.WEIGHTS, emoji_clip.CONFIG):
        write_bytes(FILES / name, (folder / name).read_bytes())
    write_manifest()


@dataclass(frozen=True)
class PretrainConfig(Pretraining):
    """The small CLIP of the test bed, pretrained on drawings.

    Args:
        steps: optimiser steps
        batch_size: emoji a step, all different
        lr: AdamW's, at the top
        seed: of weights, batches and renderings
        out: folder of weights and resumable state
        bundle: put the weights where the package has them
    """

    out: PathText = ""
    bundle: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.out:
            raise InputError("out is missing; valid: --out FOLDER")


def run_pretrain(config: PretrainConfig) -> None:
    """Pretrain or go on with it, print zero-shot accuracies, and bundle the weights where that is asked for."""
    out = Path(config.out)
    weights = pretrain(Pretraining(config.steps, config.batch_size, config.lr, config.seed), out)
    print(f"weights: {weights}\nzero-shot top-1 in percent, among the classes of a group:")
    print(describe(zero_shot(out)))
    if config.bundle:
        bundle(out)


def main(argv: list[str] | None = None) -> int:
    """The command line; the exit status is what ``commands.guarded`` says."""
    return run_module(PretrainConfig, run_pretrain, argv, prog="python -m rmadapter.testbed.pretrain", hint=HINT)


if __name__ == "__main__":
    sys.exit(main())
