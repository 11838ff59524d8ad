"""The classifier of a base model without an adapter."""

from __future__ import annotations

import pytest
import torch
from conftest import small_clip

from rmadapter.clip.backbone import Backbone
from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.clip.identity import ModelSource
from rmadapter.clip.storage import store_weights
from rmadapter.data import Preprocessing
from rmadapter.evaluation.loaded_model import LoadedModel
from rmadapter.tuners.frozen_classifier import FrozenClassifier


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
@torch.no_grad()
def test_it_runs_block_by_block_with_a_residual_stream_in_fp32(precision, dtype, tokenizer):
    clip = small_clip()
    store_weights(clip, dtype)
    backbone = Backbone(clip, tokenizer, Preprocessing(32, (0.5,) * 3, (0.5,) * 3), ModelSource("own", None))
    loaded = LoadedModel(backbone, None, None, None, None, precision, torch.device("cpu"))
    model = loaded.classifier(["cat", "dog"], "a {}").eval()
    assert isinstance(model, FrozenClassifier)
    assert model.encoder.stream == torch.float32
    assert model.encoder.dtype == dtype
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = CLIPClassifier(small_clip(), tokenizer, ["cat", "dog"], "a {}").eval()(images).logits
    torch.testing.assert_close(model(images).logits, expected, rtol=0.03, atol=0.05)
