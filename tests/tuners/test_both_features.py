"""Features of the tuned and the frozen image tower and errors of patches, in one pass, on a tower of each kind."""

from __future__ import annotations

import pytest
import torch
from small_towers import SmallTokenizer, small_model

from rmadapter import RMAdapterConfig, TowerOverrides, inject
from rmadapter.tuners.adapted_classifier import AdaptedClassifier
from rmadapter.tuners.encoders import Encoders


def classifier_of(name, **config):
    clip = small_model(name)
    adapted = inject(clip, RMAdapterConfig(layers="2-3", bottleneck=8, scale=0.5, **config), seed=1)
    model = AdaptedClassifier(adapted, SmallTokenizer(clip), ["cat", "dog"])
    model.encoders = Encoders.of(adapted)
    return model.eval()


def images_for(model, count=2):
    size = model.clip.visual.image_size
    sides = (size, size) if isinstance(size, int) else size
    return torch.randn(count, 3, *sides, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "in_front"),
    [
        ("ViT-B-32", 1),
        ("ViT-B-16-SigLIP", 0),
        ("EVA02-L-14", 1),
        ("vit_relpos_medium_patch16_cls_224", 1),
        ("ViTamin-B", 0),
    ],
)
@torch.no_grad()
def test_they_are_those_of_the_plain_passes(name, in_front):
    model = classifier_of(name)
    images = images_for(model)
    assert model.reconstruction_obstacle is None
    found = model.both_features(images, errors=True)
    plain = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(found.tuned, model.clip.encode_image(images), **plain)
    with model.untouched():
        torch.testing.assert_close(found.frozen, model.clip.encode_image(images), **plain)
    model.adapted.train()
    with model.adapted.collect("vision") as losses:
        model.clip.encode_image(images)
    assert len(found.errors) == len(losses) == 2
    for error, loss in zip(found.errors, losses, strict=True):
        assert error.shape[1] * error.shape[2] == loss.shape[1] - in_front
        torch.testing.assert_close(error.flatten(1), loss[:, in_front:], **plain)


@pytest.mark.parametrize("stream", ["adapted", "frozen"])
@torch.no_grad()
def test_images_in_pieces_are_the_batch(stream, monkeypatch):
    model = classifier_of("ViT-B-32", rec_stream=stream)
    images = images_for(model, 5)
    found, features = model.both_features(images, errors=True), model.image_features(images)
    encoder, sizes = model.encoders.image, []
    begin = encoder.begin
    monkeypatch.setattr(encoder, "begin", lambda piece: sizes.append(len(piece)) or begin(piece))
    monkeypatch.setattr("rmadapter.clip.pieces.PIECE_BYTES", 2 * encoder.tokens * encoder.hidden * 4)
    pieces = model.both_features(images, errors=True)
    assert sizes == [2, 2, 1]
    close = {"rtol": 1e-5, "atol": 1e-6}
    for one, whole in zip((*pieces[:2], *pieces.errors), (*found[:2], *found.errors), strict=True):
        torch.testing.assert_close(one, whole, **close)
    torch.testing.assert_close(model.image_features(images), features, **close)
    assert sizes == [2, 2, 1, 2, 2, 1]


@torch.no_grad()
def test_the_frozen_stream_s_errors_where_training_reconstructs_that():
    adapted, frozen = (classifier_of("ViT-B-32", rec_stream=stream) for stream in ("adapted", "frozen"))
    images = images_for(adapted)
    for model in (adapted, frozen):
        model.set_strength(0)
    apart = [model.both_features(images, errors=True).errors for model in (adapted, frozen)]
    for one, other in zip(*apart, strict=True):
        torch.testing.assert_close(one, other)  # with nothing adapted the streams are one
    frozen.set_strength(1)
    for one, other in zip(frozen.both_features(images, errors=True).errors, apart[1], strict=True):
        torch.testing.assert_close(one, other)
    adapted.set_strength(1)
    second = adapted.both_features(images, errors=True).errors[1]
    assert (second - apart[0][1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"reconstruct": False}, "its adapters have one branch"),
        ({"vision": TowerOverrides("none")}, "what was trained has no adapter in the image tower"),
    ],
)
@torch.no_grad()
def test_where_there_are_no_errors(config, why):
    model = classifier_of("ViT-B-32", **config)
    assert why in model.reconstruction_obstacle
    assert model.both_features(images_for(model), errors=True).errors == ()
    model = classifier_of("ViT-B-32")
    model.encoders = None
    assert "--no-shortcuts" in model.reconstruction_obstacle
    found = model.both_features(images_for(model), errors=True)
    assert found.errors == ()
    torch.testing.assert_close(found.tuned, model.image_features(images_for(model)))
    assert (found.frozen - found.tuned).abs().max() > 1e-3
