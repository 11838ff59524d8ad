"""What stands behind the towers: CLIP-Adapter, TaskRes, features of several prompts, against numbers made here."""

from __future__ import annotations

import pytest
import torch
from conftest import small_clip
from torch.nn import functional as F

from rmadapter import InputError, LossConfig, RMAdapterCLIP, RMAdapterConfig
from rmadapter.config import HeadConfig, TunerConfig
from rmadapter.tuners.feature_heads import ClassFeatures, ClassOffsets, FeatureAdapters
from rmadapter.tuners.injection import inject
from rmadapter.tuners.tuner import Features

NAMES = ["cat", "dog", "okapi"]


def put_in(**head):
    config = TunerConfig(RMAdapterConfig(layers="none"), head=HeadConfig(**head))
    return inject(small_clip(), config, seed=1, class_names=NAMES)


def features():
    generator = torch.Generator().manual_seed(0)
    return Features(torch.randn(4, 32, generator=generator), 3 * torch.randn(3, 32, generator=generator))


@torch.no_grad()
def test_clip_adapter():
    """0.2 relu(relu(f W1') W2') + 0.8 f of features that are not normalised; weights as nn.Linear's, no biases."""
    model = put_in(image_ratio=0.2)
    (adapter,) = model.tuners
    assert isinstance(adapter, FeatureAdapters)
    weights = model.adapter_tensors()
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == {
        "head.image.0.weight": (8, 32),
        "head.image.2.weight": (32, 8),
    }
    for name, bound in (("head.image.0.weight", 32**-0.5), ("head.image.2.weight", 8**-0.5)):
        assert 0.9 * bound < weights[name].abs().max().item() <= bound
    given = features()
    found = adapter.head(given)
    hidden = (given.image @ weights["head.image.0.weight"].T).clamp_min(0)
    expected = 0.2 * (hidden @ weights["head.image.2.weight"].T).clamp_min(0) + 0.8 * given.image
    torch.testing.assert_close(found.image, expected)
    assert found.text is given.text


@torch.no_grad()
def test_taskres():
    """t + 0.5 x, x from zero, on text features of any length."""
    model = put_in(offset=0.5)
    (offsets,) = model.tuners
    assert isinstance(offsets, ClassOffsets)
    weight = model.adapter_tensors()["head.offsets"]
    assert weight.shape == (3, 32)
    assert not weight.any()
    given = features()
    assert torch.equal(offsets.head(given).text, given.text)
    weight.copy_(torch.arange(96.0).reshape(3, 32))
    assert torch.equal(offsets.head(given).text, given.text + torch.arange(96.0).reshape(3, 32) / 2)
    offsets.set_rows([2, 0])
    two = given._replace(text=given.text[[2, 0]])
    assert torch.equal(offsets.head(two).text[0], given.text[2] + torch.arange(64.0, 96.0) / 2)


@torch.no_grad()
@pytest.mark.parametrize("prompts", ["seven", "eight"])
def test_the_mean_of_several_prompts(prompts):
    """CLIP's seven are normalised before and after; TaskRes's eight are not: what is added to them has a length."""
    (kept,) = put_in(class_prompts=prompts).tuners
    assert isinstance(kept, ClassFeatures)
    each = 5 * torch.randn(8, 3, 32, generator=torch.Generator().manual_seed(0))
    kept.fill(each)
    if prompts == "seven":
        expected = F.normalize(sum(row / row.norm(dim=-1, keepdim=True) for row in each) / 8, dim=-1)
    else:
        expected = sum(each) / 8
    given = features()
    torch.testing.assert_close(kept.head(given).text, expected)
    kept.strength = 0.25
    one = given.text if prompts == "eight" else F.normalize(given.text, dim=-1)
    torch.testing.assert_close(kept.head(given).text, 0.75 * one + 0.25 * expected)
    kept.strength = 0
    cosines = F.cosine_similarity(kept.head(given).text, given.text)
    torch.testing.assert_close(cosines, torch.ones(3))


def test_an_adapter_without_a_hidden_layer_is_refused():
    with pytest.raises(InputError, match=r"head\.reduction is 33; valid: .* <= 32"):
        put_in(image_ratio=0.2, reduction=33)


def test_classes_that_are_refused_leave_what_each_class_has_where_it_was(tokenizer):
    config = TunerConfig(RMAdapterConfig(layers="none"), head=HeadConfig(offset=0.5))
    loss = LossConfig(0, 0, 0, 0)
    model = RMAdapterCLIP(small_clip(), tokenizer, ["cat", "dog"], config=config, loss=loss).eval()
    for tensor in model.adapted.trained().values():
        torch.nn.init.normal_(tensor)
    images = torch.randn(2, 3, 32, 32)
    before = model(images).logits
    with pytest.raises(InputError, match="longer than the model's context"):
        model.set_classes(["dog", "cat"], "word " * 100 + "{}")
    assert torch.equal(model(images).logits, before)
