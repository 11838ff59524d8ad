"""Steps of small models, plain and fast, and what two of them have in common."""

from __future__ import annotations

import contextlib
from dataclasses import fields

import torch
from conftest import SMALL_CONFIG, small_clip
from open_clip import CLIPVisionCfg
from torch.utils._python_dispatch import TorchDispatchMode

from rmadapter import LossConfig, RMAdapterCLIP, RMAdapterConfig
from rmadapter.config.shortcuts import StepConfig
from rmadapter.step.costs import tower_shape
from rmadapter.step.train_step import TrainStep

NAMES = ["cat", "a rather long name of a bird", "dog", "guinea pig", "cat"]
COUNTED = StepConfig(packed_weights=False)  # PyTorch counts the operations of its own products, not of oneDNN's
SHORTCUTS = [field.name for field in fields(StepConfig)]


def text_config(**changes):
    return {"text_cfg": {**SMALL_CONFIG["text_cfg"], **changes}}


def vision_config(**changes):
    return {"vision_cfg": {**SMALL_CONFIG["vision_cfg"], **changes}}


# Towers where this or that shortcut does not apply, besides CLIP's own.
TOWERS = {
    "clip": {},
    "bidirectional": text_config(no_causal_mask=True),
    "last token": text_config(pool_type="last"),
    "first token": text_config(pool_type="first", no_causal_mask=True),
    "mean of patches": vision_config(pool_type="avg", final_ln_after_pool=True),
    "attention pooling": vision_config(attentional_pool=True, attn_pooler_heads=4),
    "no norm in front of the blocks": vision_config(no_ln_pre=True),
    "layer scale": {
        "vision_cfg": {**SMALL_CONFIG["vision_cfg"], "ls_init_value": 0.5},
        "text_cfg": {**SMALL_CONFIG["text_cfg"], "ls_init_value": 0.5},
    },
    "quick gelu, projection with bias": {**text_config(proj_bias=True), "quick_gelu": True},
}
if "block_type" in {field.name for field in fields(CLIPVisionCfg)}:  # open_clip has them by name from 3.0 on
    TOWERS["custom blocks"] = {
        "vision_cfg": {**SMALL_CONFIG["vision_cfg"], "block_type": "custom", "ls_init_value": 0.3},
        "text_cfg": {**SMALL_CONFIG["text_cfg"], "scale_fc": True, "scale_attn": True, "qk_norm": True},
    }


def some(*names):
    """Those of the towers that this version of open_clip has."""
    return [name for name in names if name in TOWERS]


def make(tokenizer, towers=None, loss=None, *, trim=True, **config) -> RMAdapterCLIP:
    clip = small_clip(**(towers or {}))
    torch.manual_seed(0)
    config = RMAdapterConfig(**{"layers": "2-3", "bottleneck": 8, "scale": 0.5, **config})
    loss = loss or LossConfig(2, 3, 4, 5)
    return RMAdapterCLIP(clip, tokenizer, NAMES, config=config, loss=loss, trim=trim, keep_targets=trim).train()


def scarce(model: RMAdapterCLIP) -> int:
    """Bytes that hold less than all prompts and more than two classes."""
    step = TrainStep(model)
    shape = tower_shape(model.adapted, "text", stream=4)
    return int(0.8 * sum(map(shape.saved_bytes, step.chunks)))


def batch(size: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 3, 32, 32, generator=generator), torch.arange(size) % len(NAMES)


def inputs_of(model) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """What a step of ``model`` is called with: images, of two views where it reads two, labels, and which sentence."""
    images, labels = batch()
    images, labels = images.to(next(model.parameters()).dtype), labels % len(model.class_names)
    if model.loss.reads_two_views:
        images = torch.stack([images, images.roll(1, -1).mul(0.7)], 1)
    return (images, labels), {"drawn": torch.tensor(1)} if model.draws else {}


def run(step, model, device=None) -> dict[str, torch.Tensor]:
    """Logits, losses and gradients of one step; on ``device``, if given, lies what is made without one in it."""
    model.zero_grad()
    inputs, drawn = inputs_of(model)
    with contextlib.nullcontext() if device is None else torch.device(device):
        logits, losses = step(*inputs, **drawn)
        losses["total"].backward()
    found = {"logits": logits.detach(), **{name: value.detach() for name, value in losses.items()}}
    return found | {f"d {n}": p.grad for n, p in model.adapted.adapter_tensors().items() if p.grad is not None}


def assert_same(found, expected, tolerance=1e-5):
    assert set(found) == set(expected)
    for name, value in expected.items():
        error = (found[name] - value).norm() / value.norm().clamp_min(1e-6)
        assert error < tolerance, f"{name}: {error:.1e}"


def assert_as_exact(found, plain, exact, tolerance):
    """``found`` is as near to ``exact``, in fp64, as ``tolerance`` says, or as the plain step in the same dtype is."""
    assert set(found) == set(plain) == set(exact)
    for name, value in exact.items():
        own, error = ((one[name] - value).norm() / value.norm().clamp_min(1e-6) for one in (plain, found))
        assert error < max(tolerance, 1.3 * own), f"{name}: {error:.1e}, the plain step {own:.1e}"


def plain(tokenizer, towers=None, loss=None, **config):
    """Everything computed anew, prompts at 77 tokens, through open_clip's own forward passes and hooks."""
    model = make(tokenizer, towers, loss, trim=False, **config)
    return run(model, model)


def fast(tokenizer, towers=None, loss=None, shortcuts=None, *, chunks=None, recompute=False, **config):
    shortcuts = shortcuts or StepConfig()
    model = make(tokenizer, towers, loss, trim=shortcuts.trim, **config)
    step = TrainStep(model, shortcuts, text_bytes=chunks, recompute=recompute)
    run(step, model)  # what is kept is used by a second step
    return run(step, model)


class NoHost(TorchDispatchMode):
    """Raises where values come to the host or decide a shape: in a recording neither is allowed."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "_unique", "unique_dim", "repeat_interleave.Tensor")

    def __torch_dispatch__(self, function, types, arguments=(), names=None):
        if any(word in str(function) for word in self.FORBIDDEN):
            raise AssertionError(f"{function} in a step that is to be recorded")
        return function(*arguments, **(names or {}))
