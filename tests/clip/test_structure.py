"""What a base model computes with its weights: seen in every module, and the same however it was built and stored."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import SMALL_CONFIG, small_clip

from rmadapter import RMAdapterConfig, inject
from rmadapter.clip.identity import base_hash, tokenizer_hash
from rmadapter.clip.storage import store_weights
from rmadapter.clip.structure import structure_of


def changed(tower: str, **changes):
    return {tower: {**SMALL_CONFIG[tower], **changes}}


# The same weights under another structure: its arguments, and the fact that tells it.
TWINS = {
    "vision heads": (changed("vision_cfg", head_width=32), "visual.transformer.resblocks.*.attn.num_heads"),
    "text heads": (changed("text_cfg", heads=4), "transformer.resblocks.*.attn.num_heads"),
    "eps": (changed("vision_cfg", norm_kwargs={"eps": 1e-6}), "visual.ln_post.eps"),
    "activation": (
        changed("text_cfg", act_kwargs={"approximate": "tanh"}),
        "transformer.resblocks.*.mlp.gelu.approximate",
    ),
    "quick gelu": ({"quick_gelu": True}, "transformer.resblocks.*.mlp.gelu"),
    "pooling": (changed("text_cfg", pool_type="last"), "text_pool_type"),
    "causal mask": (changed("text_cfg", no_causal_mask=True), "attn_mask"),
    "norm": (changed("vision_cfg", final_ln_after_pool=True), "visual.final_ln_after_pool"),
}


@pytest.mark.parametrize("name", TWINS)
def test_the_same_weights_with_another_structure(name):
    changes, fact = TWINS[name]
    one, other = small_clip(), small_clip(**changes)
    assert one.state_dict().keys() == other.state_dict().keys()
    ours, theirs = structure_of(one), structure_of(other)
    assert ours.get(fact) != theirs.get(fact)
    assert base_hash(one) != base_hash(other)


def test_what_is_no_structure():
    """Storage, adapters, modes, checkpointing, dropped patches in training and JSON leave it as it is."""
    clip = small_clip(**changed("vision_cfg", patch_dropout=0.5))
    expected = structure_of(small_clip())
    assert structure_of(clip) == expected
    clip.set_grad_checkpointing(True)
    store_weights(clip.train(), torch.bfloat16)
    assert structure_of(clip) == expected
    inject(clip, RMAdapterConfig(layers="all"))
    assert structure_of(clip) == expected
    assert json.loads(json.dumps(expected)) == expected
    assert structure_of(small_clip().half()) == expected


def test_blocks_that_differ_are_all_said():
    clip = small_clip()
    clip.transformer.resblocks[1].ln_1.eps = 1e-3
    assert structure_of(clip)["transformer.resblocks.*.ln_1.eps"] == [1e-5, 1e-3, 1e-5]


def test_the_structure_of_a_model_stands_here():
    """What another version of the libraries would have to give, too; with it the base of every adapter changes."""
    found = structure_of(small_clip())
    assert len(found) == 60
    assert {name: found[name] for name in ("model", "visual", "visual.pool_type", "text_pool_type", "attn_mask")} == {
        "model": "CLIP",
        "visual": "VisionTransformer",
        "visual.pool_type": "tok",
        "text_pool_type": "argmax",
        "attn_mask": "04e54654f925",
    }
    # open_clip 2.32 has none, and pools at the largest token.
    assert "text_eos_id" not in found


def test_tokenizers_are_told_apart(tokenizer):
    import open_clip

    value = tokenizer_hash(tokenizer)
    assert value == tokenizer_hash(open_clip.SimpleTokenizer()) == "ec6550422e2e1e53"
    assert tokenizer_hash(open_clip.SimpleTokenizer(clean="canonicalize")) != value
    assert tokenizer_hash(lambda texts, context_length: tokenizer(texts, context_length).clamp_min(1)) != value
