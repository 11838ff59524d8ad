"""Zero-shot CLIP block by block: what open_clip's own forward pass gives, in pieces too."""

from __future__ import annotations

import pytest
import torch
from small_towers import SmallTokenizer, small_model

from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.tuners.frozen_classifier import FrozenClassifier

NAMES = ["cat", "dog", "a bird"]
PLAIN = {"rtol": 1e-4, "atol": 1e-5}


def classifiers(name):
    clip = small_model(name).requires_grad_(False).eval()
    settings = (clip, SmallTokenizer(clip), NAMES, "a {}.")
    return FrozenClassifier(*settings).eval(), CLIPClassifier(*settings).eval()


def images_for(model, count=5):
    size = model.clip.visual.image_size
    sides = (size, size) if isinstance(size, int) else size
    return torch.randn(count, 3, *sides, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-32-quickgelu", "ViT-B-16-SigLIP", "EVA02-L-14", "coca_ViT-B-32"])
@torch.no_grad()
def test_it_answers_as_open_clip_does(name):
    found, expected = classifiers(name)
    images = images_for(found)
    torch.testing.assert_close(found.image_features(images), expected.image_features(images), **PLAIN)
    torch.testing.assert_close(found(images).logits, expected(images).logits, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_images_go_in_pieces(monkeypatch):
    found, expected = classifiers("ViT-B-32")
    images, sizes = images_for(found), []
    embed = found.encoder.begin
    monkeypatch.setattr(found.encoder, "begin", lambda piece: sizes.append(len(piece)) or embed(piece))
    monkeypatch.setattr("rmadapter.clip.pieces.PIECE_BYTES", 2 * found.encoder.tokens * found.encoder.hidden * 4)
    torch.testing.assert_close(found.image_features(images), expected.image_features(images), **PLAIN)
    assert sizes == [2, 2, 1]


@torch.no_grad()
def test_once_its_model_is_stored_otherwise_open_clip_s_own_pass_answers(monkeypatch):
    found, expected = classifiers("ViT-B-32")
    found.double()
    monkeypatch.setattr(found.encoder, "features", lambda images: pytest.fail("the encoder is of the model as it was"))
    torch.testing.assert_close(found.image_features(images_for(found)), expected.image_features(images_for(found)))
