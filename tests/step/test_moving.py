"""A model that is moved takes along what belongs to its classes."""

from __future__ import annotations

import pytest
import torch
from conftest import small_clip

from rmadapter import RMAdapterCLIP, RMAdapterConfig
from rmadapter.config.adapter import REC_TOKENS
from rmadapter.tuners.encoders import Encoders

CONFIG = RMAdapterConfig(layers="3", bottleneck=4)


@pytest.mark.parametrize("rec_tokens", REC_TOKENS)
def test_what_belongs_to_the_classes_goes_where_the_model_goes(rec_tokens, tokenizer):
    model = RMAdapterCLIP(
        small_clip(), tokenizer, ["ant", "bee"], config=RMAdapterConfig(layers="3", rec_tokens=rec_tokens)
    )
    keys = list(model.state_dict())
    model.frozen_text_features()
    assert list(model.state_dict()) == keys  # nothing of it is saved
    assert not any("prompt" in key or "counted" in key or "frozen" in key for key in keys)
    model.to("meta")
    found = [*model.prompts.__dict__.values(), *model.counted.values(), model.counted_text]
    assert {tensor.device.type for tensor in found if tensor is not None} == {"meta"}
    assert model.frozen_text_features().shape == (2, 32)
    output = model.train()(torch.zeros(2, 3, 32, 32, device="meta"), torch.zeros(2, dtype=torch.long, device="meta"))
    assert output.losses["total"].device.type == "meta"


def test_encoders_follow_the_mask_and_are_left_where_the_model_has_moved(tokenizer):
    model = RMAdapterCLIP(small_clip(), tokenizer, ["ant", "bee"], config=CONFIG)
    model.encoders = Encoders.of(model.adapted)
    images = torch.randn(2, 3, 32, 32)
    expected = model.eval()(images).logits
    assert model._running_encoders is model.encoders
    model.to("meta")
    assert model.encoders.text.mask.device.type == "meta"
    assert model._running_encoders is None
    assert model(images.to("meta")).logits.shape == expected.shape
