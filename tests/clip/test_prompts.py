"""Prompts: trimming that changes nothing, and prompts that do not fit."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from conftest import SMALL_CONFIG, small_clip
from open_clip import CLIPTextCfg

from rmadapter import RMAdapterConfig, inject
from rmadapter.clip.prompts import encode_prompts, make_prompts
from rmadapter.errors import InputError

NAMES = ["cat", "a rather long name of a bird", "dog"]
TEMPLATE = "a photo of a {}."


@pytest.mark.parametrize("adapted", [False, True])
def test_trimmed_features_equal_untrimmed_ones(clip, tokenizer, adapted):
    if adapted:
        inject(clip, RMAdapterConfig(layers="all", scale=0.5))
    prompts = make_prompts(clip, tokenizer, NAMES, TEMPLATE)
    full = tokenizer([TEMPLATE.format(name) for name in NAMES])
    assert prompts.tokens.shape[1] < full.shape[1] == 77
    with torch.no_grad():
        torch.testing.assert_close(encode_prompts(clip, prompts.tokens), clip.encode_text(full), rtol=1e-5, atol=3e-6)


def test_valid_tokens_end_with_end_of_text(clip, tokenizer):
    prompts = make_prompts(clip, tokenizer, NAMES, TEMPLATE)
    assert prompts.valid.sum(-1).tolist() == [(row != 0).sum() for row in prompts.tokens]
    assert prompts.valid.shape == prompts.tokens.shape
    assert prompts.valid[1].all()
    assert not prompts.valid[0].all()


@pytest.mark.skipif(
    "eos_id" not in {field.name for field in fields(CLIPTextCfg)}, reason="open_clip has eos pooling from 3.0 on"
)
def test_end_of_text_by_its_own_number():
    clip = small_clip(text_cfg={**SMALL_CONFIG["text_cfg"], "pool_type": "eos", "eos_id": 2})
    tokens = torch.tensor([[7, 9, 2, 0, 0, 0], [7, 9, 8, 8, 2, 0]])

    def tokenizer(texts, context_length):
        return torch.nn.functional.pad(tokens, (0, context_length - 6))

    prompts = make_prompts(clip, tokenizer, ["a", "b"], TEMPLATE)
    assert prompts.valid.int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    with torch.no_grad():
        full = clip.encode_text(tokenizer(None, 77))
        torch.testing.assert_close(encode_prompts(clip, prompts.tokens), full, rtol=1e-5, atol=3e-6)


def test_a_bidirectional_tower_keeps_its_full_length(tokenizer):
    clip = small_clip(text_cfg={**SMALL_CONFIG["text_cfg"], "no_causal_mask": True})
    prompts = make_prompts(clip, tokenizer, NAMES, TEMPLATE)
    assert prompts.tokens.shape[1] == 77
    with torch.no_grad():
        torch.testing.assert_close(encode_prompts(clip, prompts.tokens), clip.encode_text(prompts.tokens))


def test_a_prompt_longer_than_the_context_is_named(clip, tokenizer):
    fits = "word " * 70  # 70 words, five of the template, begin and end: 77
    make_prompts(clip, tokenizer, [fits.strip(), "cat"], "a photo of a {}")
    with pytest.raises(InputError, match=r"prompt 'a photo of a word .*longer than the model's context of 77 tokens"):
        make_prompts(clip, tokenizer, ["cat", "word " * 80], TEMPLATE)
