"""Pretrains the bundled small CLIP on the drawings of two styles and, where one is given, on a broad corpus.

    python -m rmadapter.testbed.pretrain --resume            # finds the bundled weights done
    python -m rmadapter.testbed.pretrain --out DIR           # 40 minutes on a free core; the same command goes on
    python -m rmadapter.testbed.pretrain --out DIR --bundle  # and put the weights where the package has them
    python -m rmadapter.testbed.pretrain --corpus CORPUS --out DIR

A step shows different things, each as a rendering of one of its drawings, and their captions: CLIP's symmetric loss.
First small batches of emoji alone, which begin to be told apart sooner, then large ones of which half are emoji; half
of the emoji are of one group. So that other styles' drawings are understood too, the two styles are blended, colours
turned and washed out, and shapes bent. Everything random depends on (seed, step) alone.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import dataclass, fields
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from rmadapter.clip import emoji_clip
from rmadapter.clip.prompts import encode_prompts
from rmadapter.config.arguments import run_module
from rmadapter.config.paths import PathText
from rmadapter.data.emoji.atlas import FILES, catalogue, read_bundled
from rmadapter.errors import InputError, check_choice, check_range
from rmadapter.files import read_json, write_atomic, write_bytes, write_json
from rmadapter.locks import ProcessLock
from rmadapter.testbed.build import write_manifest
from rmadapter.testbed.corpus_files import Corpus, read_corpus
from rmadapter.testbed.pool import TEMPLATES, Captions, Pool
from rmadapter.testbed.runs import HINT
from rmadapter.testbed.zero_shot import describe_folder

WARMUP_STEPS = 100
LEAST_LR = 0.02  # of the top, at the end of the cosine
# Renderings begin plain and have all their background, turn and noise after this share of the steps. Without, a batch's
# captions were told apart in 3.5 % of cases after 500 steps, with it in 29 %.
MILD_SHARE = 0.3
WEIGHT_DECAY = 0.2
LOGIT_SCALE = (10.0, 50.0)  # at first, at most
LABEL_SMOOTHING = 0.05
EMOJI_SHARE = 0.5  # of a large batch, where there is a corpus
STATE, DESCRIPTION, LOCK = "state.safetensors", "pretraining.json", ".lock"


@dataclass(frozen=True)
class Pretraining:
    """What decides the weights, besides the drawings.

    Args:
        steps: optimiser steps.
        small_steps: the first of them, of ``small_batch`` emoji each.
        small_batch, batch_size: names a step, all different.
        lr: AdamW's, at the top: warm-up, then a cosine.
        precision: of matrix products, bf16 or fp32; weights are fp32.
        seed: of weights, batches and renderings.
    """

    steps: int = 5500
    small_steps: int = 2000
    small_batch: int = 96
    batch_size: int = 256
    lr: float = 1.5e-3
    precision: str = "bf16"
    seed: int = 0

    def __post_init__(self) -> None:
        check_range("steps", self.steps, 1)
        check_range("small_steps", self.small_steps, 0)
        check_range("small_batch", self.small_batch, 2, len(catalogue()))
        check_range("batch_size", self.batch_size, 2, len(catalogue()))
        check_range("lr", self.lr, 0, open_low=True)
        check_choice("precision", self.precision, ("bf16", "fp32"))
        check_range("seed", self.seed, 0)


def new_model(vocabulary: int, seed: int) -> nn.Module:
    """Random weights from ``seed``; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = emoji_clip.new_model(vocabulary)
    nn.init.constant_(model.logit_scale, math.log(LOGIT_SCALE[0]))
    return model


class Trainer:
    """The model, its optimiser and the step they are at."""

    def __init__(self, settings: Pretraining, corpus: Corpus | None = None):
        self.settings = settings
        self.pool = Pool(corpus)
        self.captions = Captions(self.pool.names, self.pool.emoji)
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

    def train_step(self) -> tuple[float, float]:
        """One step; its loss and the share of pictures matched to their caption, in percent."""
        settings = self.settings
        generator = np.random.default_rng((settings.seed, self.step))
        small = self.step < settings.small_steps
        count, share = (settings.small_batch, 1.0) if small else (settings.batch_size, EMOJI_SHARE)
        chosen = self.pool.choose(count, generator, share)
        strength = min(1.0, self.step / (MILD_SHARE * settings.steps))
        pictures = emoji_clip.normalize(self.pool.draw(chosen, generator, strength, corpus=not small))
        captions = self.captions.draw(chosen, generator)
        # On a CPU torch's fused backward of attention took half of a step at these lengths.
        bf16 = torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16")
        with bf16, sdpa_kernel(SDPBackend.MATH):
            images, texts = self.model.encode_image(pictures), encode_prompts(self.model, captions)
        images, texts = (F.normalize(features.float(), dim=-1) for features in (images, texts))
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
        cosine = (1 + math.cos(math.pi * self.step / self.settings.steps)) / 2
        return warm * (LEAST_LR + (1 - LEAST_LR) * cosine)

    def save(self, folder: Path) -> None:
        """Weights, moments and step, in one file that is whole or the one before."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for parameter, state in self.optimizer.state.items():
            for key in ("exp_avg", "exp_avg_sq"):
                tensors[f"{key}.{self.names[parameter]}"] = state[key]
        tensors["step"] = torch.tensor(self.step)
        write_atomic(folder / STATE, lambda path: save_file(tensors, path))

    def restore(self, folder: Path) -> None:
        """Go on from what ``save`` wrote."""
        tensors = load_file(folder / STATE)
        self.step = int(tensors["step"])
        self.model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
        for parameter, name in self.names.items():
            moments = {key: tensors[f"{key}.{name}"] for key in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {"step": torch.tensor(float(self.step)), **moments}


def describe(settings: Pretraining, corpus: Corpus | None) -> dict[str, Any]:
    """What a pretraining is, as ``pretraining.json`` has it."""
    drawings = None if corpus is None else corpus.identity
    return {**vars(settings), "corpus": drawings, "model": emoji_clip.ARCHITECTURE, "templates": list(TEMPLATES)}


def pretrain(settings: Pretraining, out: Path, corpus: Corpus | None = None, *, save_seconds: float = 60) -> Path:
    """Train to the last step, from the beginning or from where ``out`` stopped; returns the weights' file.

    The state is saved every ``save_seconds``, always between two steps: a run that goes on ends with the weights of one
    that was never stopped.

    Raises:
        InputError: ``out`` holds a pretraining with other settings or weights without any, is another process's, or
            cannot be written.
    """
    lock = ProcessLock(out / LOCK)
    with lock.attempt() as mine:
        if not mine:
            who = lock.in_the_way
            raise InputError(f"out is {str(out)!r}, where another pretraining is going on ({who}); valid: another one")
        return _pretrain(settings, out, corpus, save_seconds)


def _pretrain(settings: Pretraining, out: Path, corpus: Corpus | None, save_seconds: float) -> Path:
    plain = describe(settings, corpus)
    weights, description = out / emoji_clip.WEIGHTS, out / DESCRIPTION
    if description.exists():
        held = read_json(description, "pretraining")
        other = [name for name in plain if held.get(name) != plain[name]]
        if other:
            has, asked = (values.get(other[0]) for values in (held, plain))
            raise InputError(
                f"out has {str(out)!r}, which holds a pretraining with {other[0]} {has!r}, not {asked!r}; valid: the "
                "same settings, or another folder"
            )
    elif weights.exists():
        raise InputError(f"out has {str(out)!r}, which holds weights without {DESCRIPTION}; valid: another folder")
    if weights.exists():
        return weights
    write_json(description, plain)
    write_json(out / emoji_clip.CONFIG, {"model_cfg": emoji_clip.ARCHITECTURE, "preprocess_cfg": emoji_clip.PREPROCESS})
    trainer = Trainer(settings, corpus)
    if (out / STATE).exists():
        trainer.restore(out)
        print(f"going on at step {trainer.step} of {settings.steps}", flush=True)
    began = saved = time.perf_counter()
    first = trainer.step
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
            if time.perf_counter() - saved >= save_seconds:
                trainer.save(out)
                saved = time.perf_counter()
    packed = emoji_clip.pack(trainer.model.state_dict(), trainer.captions.used)
    write_atomic(weights, lambda path: save_file(packed, path))  # last: with it the folder counts as done
    return weights


def bundle(folder: Path) -> None:
    """Put the weights in ``folder``, and what they come from, where the package has them."""
    for name in (emoji_clip.WEIGHTS, emoji_clip.CONFIG, DESCRIPTION):
        write_bytes(FILES / name, (folder / name).read_bytes())
    write_manifest()


def is_bundled(settings: Pretraining, corpus: Corpus | None) -> bool:
    """Whether the bundled weights, whose hash is the manifest's, come from ``settings`` and ``corpus``."""
    read_bundled(emoji_clip.WEIGHTS)
    return describe(settings, corpus) == json.loads(read_bundled(DESCRIPTION))


@dataclass(frozen=True)
class PretrainConfig(Pretraining):
    """The small CLIP of the test bed, pretrained on drawings.

    Args:
        steps: optimiser steps
        small_steps: the first of them, of small batches of emoji alone
        small_batch: emoji a step at first
        batch_size: names a step then, half of them emoji where there is a corpus
        lr: AdamW's, at the top
        precision: of matrix products, bf16 or fp32
        seed: of weights, batches and renderings
        corpus: folder of a broad corpus; default: emoji alone
        out: folder of weights and resumable state
        resume: be content with the bundled weights where they come from these settings
        bundle: put the weights where the package has them
    """

    corpus: PathText = ""
    out: PathText = "runs/emoji-clip"
    resume: bool = False
    bundle: bool = False


def run_pretrain(config: PretrainConfig) -> None:
    """Pretrain or go on with it, print zero-shot accuracies, and bundle the weights where that is asked for."""
    settings = Pretraining(**{item.name: getattr(config, item.name) for item in fields(Pretraining)})
    out = Path(config.out)
    corpus = read_corpus(Path(config.corpus)) if config.corpus else None
    if config.resume and not (out / DESCRIPTION).exists() and is_bundled(settings, corpus):
        print(f"done: the bundled weights come from this pretraining ({FILES / DESCRIPTION})")
        return
    weights = pretrain(settings, out, corpus)
    print(f"weights: {weights}\n{describe_folder(out, corpus)}")
    if config.bundle:
        bundle(out)


def main(argv: list[str] | None = None) -> int:
    """The command line; the exit status is what ``commands.guarded`` says."""
    return run_module(PretrainConfig, run_pretrain, argv, prog="python -m rmadapter.testbed.pretrain", hint=HINT)


if __name__ == "__main__":
    sys.exit(main())
