"""MMRL's tokens: where they stand, what is made of them, the loss and the two answers, against numbers made here."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import small_clip
from torch.nn import functional as F

from rmadapter import InputError, LossConfig, RMAdapterCLIP, RMAdapterConfig
from rmadapter.config import PromptConfig, SpaceConfig, TowerOverrides, TunerConfig
from rmadapter.tuners.adapted_classifier import AdaptedClassifier
from rmadapter.tuners.encoders import Encoders
from rmadapter.tuners.injection import inject, load
from rmadapter.tuners.representation_space import BOTH, CLASS_ALONE

NAMES = ["cat", "a rather long name of a bird", "dog"]
COUNT, WIDTH = 2, 8
NO_ADAPTERS = RMAdapterConfig(layers="none")


def put_in(clip=None, names=NAMES, adapter=NO_ADAPTERS, prompt=None, **space):
    space = {"tokens": COUNT, "width": WIDTH, "layers": "2-3", "class_share": 0.7, **space}
    config = TunerConfig(adapter, prompt or PromptConfig(), space=SpaceConfig(**space))
    return inject(clip or small_clip(), config, seed=1, class_names=names)


def by_hand(weights, tokenizer, images):
    """Class features and representation features of the images, text features, all of length 1, as published."""
    clip = small_clip()
    mask = torch.full((77 + COUNT, 77 + COUNT), -math.inf).triu(1)
    ids = tokenizer([f"a photo of a {name}." for name in NAMES])

    def entering(x, tower, layer):
        tokens = weights["space.tokens"] @ weights[f"{tower}.{layer}.space.weight"].T
        tokens = (tokens + weights[f"{tower}.{layer}.space.bias"]).expand(len(x), -1, -1)
        return torch.cat([x[:, :1], tokens, x[:, 1 if layer == 2 else 1 + COUNT :]], 1)

    x = clip.token_embedding(ids) + clip.positional_embedding
    first, *upper = clip.transformer.resblocks
    x = first(x, attn_mask=clip.attn_mask)
    for layer, block in enumerate(upper, start=2):
        x = block(entering(x, "text", layer), attn_mask=mask)
    text = clip.ln_final(x)[torch.arange(len(ids)), ids.argmax(-1) + COUNT] @ clip.text_projection

    first, *upper = clip.visual.transformer.resblocks
    x = first(clip.visual._embeds(images))
    for layer, block in enumerate(upper, start=2):
        x = block(entering(x, "vision", layer))
    x = clip.visual.ln_post(x)
    tokens = x[:, 1 : 1 + COUNT].mean(1) @ weights["space.projection"]
    return [F.normalize(found, dim=-1) for found in (x[:, 0] @ clip.visual.proj, tokens, text)]


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def logits(tokenizer, images):
    """The class token's logits and those of the tokens, with what else the loss needs."""
    model = put_in()
    with torch.no_grad():
        z, tokens, t = by_hand(model.adapter_tensors(), tokenizer, images)
        clip = small_clip()
        scale = clip.logit_scale.exp()
        frozen_z = F.normalize(clip.encode_image(images), dim=-1)
        frozen_t = F.normalize(clip.encode_text(tokenizer([f"a photo of a {name}." for name in NAMES])), dim=-1)
        cosines = (z * frozen_z).sum(-1).mean(), (t * frozen_t).sum(-1).mean()
        return scale * z @ t.T, scale * tokens @ t.T, cosines


def test_logits_and_loss_are_as_published(tokenizer, images, logits):
    labels = torch.tensor([0, 1, 2, 0])
    classes, tokens, (cosine_z, cosine_t) = logits
    loss = LossConfig(0, 0, 6, 6, distance="cosine")
    model = RMAdapterCLIP(put_in(), tokenizer, NAMES, loss=loss).train()
    found = model(images, labels)
    torch.testing.assert_close(found.logits, 0.7 * classes + 0.3 * tokens, rtol=1e-4, atol=1e-4)
    expected = 0.7 * F.cross_entropy(classes, labels) + 0.3 * F.cross_entropy(tokens, labels)
    torch.testing.assert_close(found.losses["cross_entropy"], expected, rtol=1e-4, atol=1e-5)
    expected = expected + 6 * (1 - cosine_z) + 6 * (1 - cosine_t)
    torch.testing.assert_close(found.losses["total"], expected, rtol=1e-4, atol=1e-5)


def test_classes_of_training_are_answered_by_both_features_and_others_by_the_class_token(
    tokenizer, images, logits, tmp_path
):
    classes, tokens, _ = logits
    both = 0.7 * classes + 0.3 * tokens
    put_in().save_adapter(tmp_path, class_names=NAMES)
    stored = load(small_clip(), tmp_path)
    for encoders in (None, Encoders.of(stored)):
        model = AdaptedClassifier(stored, tokenizer, NAMES, encoders=encoders).eval()
        for names, rows, expected in ((NAMES, [0, 1, 2], both), (NAMES[1:], [1, 2], both)):
            model.set_classes(names, model.template)
            assert model.inference == BOTH
            with torch.no_grad():
                torch.testing.assert_close(model(images).logits, expected[:, rows], rtol=1e-4, atol=1e-4)
        model.set_classes(["cat", "okapi"], model.template)
        assert model.inference == CLASS_ALONE
        with torch.no_grad():
            torch.testing.assert_close(model(images).logits[:, 0], classes[:, 0], rtol=1e-4, atol=1e-4)
        elsewhere = AdaptedClassifier(stored, tokenizer, NAMES, encoders=encoders, elsewhere=True).eval()
        with torch.no_grad():
            torch.testing.assert_close(elsewhere(images).logits, classes, rtol=1e-4, atol=1e-4)


def test_without_a_word_of_what_it_was_trained_on_the_class_token_answers(tokenizer, images, logits, tmp_path):
    trained = put_in()
    trained.class_names = None
    trained.save_adapter(tmp_path)
    model = AdaptedClassifier(load(small_clip(), tmp_path), tokenizer, NAMES).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(images).logits, logits[0], rtol=1e-4, atol=1e-4)


def test_switched_off_it_is_the_untouched_model(tokenizer, images):
    model = AdaptedClassifier(put_in(), tokenizer, NAMES).eval()
    clip = small_clip()
    with torch.no_grad(), model.adapted.adapters_disabled():
        assert torch.equal(model.image_features(images), clip.encode_image(images))
    removed = model.adapted.remove()
    assert not any(block._forward_pre_hooks or block._forward_hooks for block in removed.transformer.resblocks)
    with torch.no_grad():
        assert torch.equal(removed.encode_text(tokenizer(["a cat"])), clip.encode_text(tokenizer(["a cat"])))


def test_it_begins_as_published():
    weights = {name: tensor.detach() for name, tensor in put_in(tokens=50, width=400).adapter_tensors().items()}
    assert weights["space.tokens"].std().item() == pytest.approx(0.02, rel=0.05)
    assert weights["space.projection"].std().item() == pytest.approx(64**-0.5, rel=0.05)
    for tower in ("vision", "text"):
        for key in ("weight", "bias"):
            assert torch.equal(weights[f"{tower}.2.space.{key}"], weights[f"{tower}.3.space.{key}"])
            assert weights[f"{tower}.2.space.{key}"].abs().max() <= 400**-0.5
        assert weights[f"{tower}.2.space.weight"].std().item() == pytest.approx(400**-0.5 / 3**0.5, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": "3-4"}, "space.layers is '3-4'; block 4 is not in the tower, valid: 1 to 3"),
        ({"layers": "none"}, "space.layers is 'none', which leaves no block"),
        ({"prompt": PromptConfig(2, "random")}, "space.tokens is 2 and prompt.text_tokens is 2"),
        ({"prompt": PromptConfig(vision_tokens=3)}, "space.tokens is 2 and prompt.vision_tokens is 3"),
        ({"adapter": RMAdapterConfig(layers="2-3")}, "space.tokens is 2 and adapter.reconstruct is True"),
        (
            {"adapter": RMAdapterConfig(layers="none", vision=TowerOverrides(layers="2-3"))},
            "space.tokens is 2 and adapter.reconstruct is True",
        ),
        ({"tokens": -1}, "space.tokens is -1"),
        ({"class_share": 1.5}, "space.class_share is 1.5"),
    ],
)
def test_bad_options(changes, message):
    with pytest.raises(InputError, match=message):
        put_in(**changes)


def test_towers_that_it_does_not_fit():
    vision = {"image_size": 32, "layers": 3, "width": 64, "head_width": 16, "patch_size": 16}
    with pytest.raises(InputError, match="an image tower that is pooled at its class token"):
        put_in(small_clip(vision_cfg={**vision, "pool_type": "avg"}))
    clip = small_clip()
    clip.attn_mask[0, 1] = 0
    with pytest.raises(InputError, match="a text tower with the causal mask, or without one"):
        put_in(clip)
