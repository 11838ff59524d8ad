"""Every configuration of open_clip shrunk to a model of a few hundred thousand weights, of the same kinds of towers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import open_clip
import pytest
import timm
import torch
from conftest import copied_once
from open_clip import hf_model, timm_model
from torch import nn

# The longest side of a shrunken image is two patches; a few kinds of timm need more.
SIDE = {"vitamin": 64, "vit_base_mci": 64}
TIMM = {"depth": 3, "embed_dim": 48, "num_heads": 3}
VOCABULARY = 49408


def shrunk(name: str) -> dict[str, Any]:
    """The configuration of open_clip's model ``name`` with three blocks a tower and narrow ones."""
    config = copy.deepcopy(open_clip.get_model_config(name))
    config["embed_dim"] = 48 if str(config["vision_cfg"].get("timm_pool")) == "map" else 24
    vision, text = config["vision_cfg"], config["text_cfg"]
    if vision.get("timm_model_name", "").startswith("vit_base_mci"):
        config["embed_dim"] = 512
    if "timm_model_name" in vision:
        vision["image_size"] = side_of(vision["timm_model_name"])
    else:
        vision.update(layers=3, width=48, head_width=16, patch_size=16, image_size=32)
        if vision.get("attentional_pool"):
            vision.update(attn_pooler_heads=4)
    if "hf_model_name" not in text:
        text.update(width=48 if text.get("proj_type") == "none" else 32, heads=2, layers=3)
        text["vocab_size"] = VOCABULARY
        text["context_length"] = 20
    if "multimodal_cfg" in config:
        config["multimodal_cfg"].update(width=32, heads=2, layers=1, context_length=20)
    return config


def side_of(timm_name: str) -> int:
    """Pixels of a side."""
    return next((side for start, side in SIDE.items() if timm_name.startswith(start)), 32)


@contextmanager
def _small_parts(vision: dict[str, Any]) -> Iterator[None]:
    """Inside, timm and transformers make small models of the classes that they are asked for."""
    made = timm.create_model

    def small_trunk(name: str, **arguments):
        sizes = {"img_size": vision["image_size"], **TIMM}
        if name.startswith(tuple(SIDE)):  # their stems have widths of their own
            sizes = {"img_size": vision["image_size"], "depth": 3}
        return made(name, **arguments, **sizes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm_model.timm, "create_model", small_trunk)
        patch.setattr(hf_model.AutoConfig, "from_pretrained", staticmethod(small_encoder))
        yield


def small_encoder(name: str) -> Any:
    """The configuration that the hub's ``name`` has, shrunk."""
    from transformers import AutoConfig

    if "mt5" in name:
        return AutoConfig.for_model(
            "mt5", d_model=32, d_kv=8, num_heads=4, d_ff=64, num_layers=3, vocab_size=VOCABULARY, dropout_rate=0.1
        )
    if "nllb" in name:
        return AutoConfig.for_model(
            "m2m_100", d_model=32, encoder_layers=3, decoder_layers=1, encoder_attention_heads=4,
            encoder_ffn_dim=64, decoder_ffn_dim=64, decoder_attention_heads=4, vocab_size=VOCABULARY,
            max_position_embeddings=64,
        )  # fmt: skip
    kind = "xlm-roberta" if "xlm" in name else "roberta"
    return AutoConfig.for_model(
        kind, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
        vocab_size=VOCABULARY, max_position_embeddings=64,
    )  # fmt: skip


def small_model(name: str, seed: int = 0, **vision: Any) -> nn.Module:
    """open_clip's model ``name``, shrunk, with random weights from ``seed``; ``vision`` changes its image tower.

    All weights are drawn: norms, biases and scales too, which begin as ones and zeros, so that one passes for another.
    """
    config = shrunk(name)
    config["vision_cfg"].update(vision)
    return copied_once(_drawn, seed, config, TIMM)


def _drawn(seed: int, config: dict[str, Any], timm_sizes: dict[str, Any]) -> nn.Module:
    """``timm_sizes`` are ``TIMM``, which a test may have changed."""
    with torch.random.fork_rng(), _small_parts(config["vision_cfg"]):
        torch.manual_seed(seed)
        text = config["text_cfg"]
        if "hf_model_name" in text:
            text["hf_model_pretrained"] = False
        custom = config.pop("custom_text", False) or "hf_model_name" in text
        kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP if custom else open_clip.CLIP
        model = kind(**config).eval()
        if kind is open_clip.CoCa:  # which open_clip leaves as the memory was
            nn.init.normal_(model.text_decoder.text_projection, std=0.01)
        _draw_all(model)
        return model


@torch.no_grad()
def _draw_all(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if name.startswith("logit_"):
            continue
        wide = parameter.dim() > 1
        parameter.add_(torch.randn_like(parameter), alpha=0.02 if wide else 0.3)
        if "gamma" in name:
            parameter.add_(0.5)
    for name, buffer in model.named_buffers():
        if "running_mean" in name:
            buffer.add_(torch.randn_like(buffer), alpha=0.2)
        elif "running_var" in name:
            buffer.mul_(1 + torch.rand_like(buffer))


class SmallTokenizer:
    """A tokenizer for any of them: the end of text and the padding that the tower looks for."""

    def __init__(self, model: nn.Module):
        encoder = getattr(model, "text", model)
        config = getattr(encoder, "config", None)
        self.pad = getattr(config, "pad_token_id", None)
        if self.pad is None:
            self.pad = getattr(encoder, "pad_id", 0)
        pool = getattr(encoder, "pool_type", getattr(encoder, "text_pool_type", None))
        self.end = getattr(encoder, "eos_id", getattr(encoder, "text_eos_id", None)) if pool == "eos" else None
        if self.end is not None:
            self.pad = 1 if self.end != 1 else 3
        self.context_length = 20
        self.words = open_clip.get_tokenizer("ViT-B-32")

    def __call__(self, texts, context_length: int | None = None) -> torch.Tensor:
        rows = self.words(texts, context_length=context_length or self.context_length)
        padding = rows == 0
        found = rows if self.end is None else torch.where(rows == rows.max(), self.end, rows)
        return torch.where(padding, self.pad, found)
