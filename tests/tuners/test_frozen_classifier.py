"""Zero-shot CLIP block by block: what open_clip's own forward pass gives, in pieces too."""

from __future__ import annotations

import pytest
import torch
from small_towers import SmallTokenizer, small_model
from torch.nn import functional as F

from rmadapter import RMAdapterConfig, inject
from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.clip.frozen_linear import inference_linear, packing_obstacle
from rmadapter.clip.storage import store_weights
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
def test_its_own_passes_answer(monkeypatch):
    """And not open_clip's, which gives the same."""
    found, _ = classifiers("ViT-B-32")
    images = images_for(found)
    monkeypatch.setattr(found.clip, "encode_image", lambda *_, **__: pytest.fail("open_clip's own pass"))
    assert found.image_features(images).shape == (5, found.text_features().shape[1])
    packed = packing_obstacle(torch.device("cpu"), torch.float32) is None
    assert found.encoder.linear is (inference_linear if packed else F.linear)


@torch.no_grad()
def test_beside_adapters_it_is_still_the_frozen_model():
    clip = small_model("ViT-B-32").eval()
    expected = clip.encode_image(torch.ones(2, 3, *(2 * (clip.visual.image_size[0],))))
    adapted = inject(clip, RMAdapterConfig(layers="2-3", bottleneck=8, scale=0.5), seed=1)
    for parameter in filter(lambda parameter: parameter.requires_grad, adapted.parameters()):
        parameter.normal_()
    found = FrozenClassifier(clip, SmallTokenizer(clip), NAMES, "a {}.").eval()
    images = torch.ones(2, 3, *(2 * (clip.visual.image_size[0],)))
    assert (clip.encode_image(images) - expected).abs().max() > 0.1
    torch.testing.assert_close(found.image_features(images), expected, **PLAIN)


@torch.no_grad()
def test_no_images():
    found, _ = classifiers("ViT-B-32")
    assert found.encoder.at_once(0) == 1


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
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_compiled_it_is_one_graph_for_any_number_of_images(monkeypatch, dtype):
    found, expected = classifiers("ViT-B-32")
    if dtype != torch.float32:
        store_weights(found.clip, dtype)
        found = FrozenClassifier(found.clip, SmallTokenizer(found.clip), NAMES, "a {}.", stream=dtype).eval()
    monkeypatch.setattr("rmadapter.clip.pieces.PIECE_BYTES", 1)  # an image at a time where nothing is compiled
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(found.image_features, backend="eager", fullgraph=True, dynamic=True)
    near = PLAIN if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.05}
    for count in (2, 3, 5):
        images = images_for(found, count).to(dtype)
        torch.testing.assert_close(compiled(images), expected.image_features(images), **near)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@torch.no_grad()
def test_once_its_model_is_stored_otherwise_open_clip_s_own_pass_answers(monkeypatch):
    found, expected = classifiers("ViT-B-32")
    found.double()
    monkeypatch.setattr(found.encoder, "frozen_features", lambda _: pytest.fail("made for another model"))
    torch.testing.assert_close(found.image_features(images_for(found)), expected.image_features(images_for(found)))
