"""One number scales what was trained: 0 is the frozen model, 1 the trained one, for every kind that has a number."""

from __future__ import annotations

import pytest
import torch
from conftest import small_clip
from step_cases import NAMES
from torch.nn import functional as F
from tuned_cases import ADAPTERS, move

from rmadapter import InputError, RMAdapterConfig, TowerOverrides
from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.config import HeadConfig, LoraConfig, PromptConfig, SpaceConfig, TunerConfig
from rmadapter.tuners.adapted_classifier import AdaptedClassifier
from rmadapter.tuners.encoders import Encoders
from rmadapter.tuners.injection import inject, load
from rmadapter_kernels.backends import BACKENDS

NONE = RMAdapterConfig(layers="none")
TEMPLATE = "a photo of a {}."
KINDS = {
    "adapters": TunerConfig(adapter=ADAPTERS),
    "variants": TunerConfig(
        adapter=RMAdapterConfig(layers="2-3", bottleneck=8, rec_layers=3, vision=TowerOverrides(scale=0.3))
    ),
    "shared layer": TunerConfig(adapter=RMAdapterConfig(layers="2-3", reconstruct=False, shared_layer=True, scale=0.5)),
    "low rank": TunerConfig(adapter=NONE, lora=LoraConfig(2)),
    "feature adapters": TunerConfig(adapter=NONE, head=HeadConfig(image_ratio=0.4, text_ratio=0.6)),
    "offsets": TunerConfig(adapter=NONE, head=HeadConfig(offset=0.5)),
    "cache": TunerConfig(adapter=NONE, head=HeadConfig(class_prompts="seven", cache="trained")),
    "adapters and low rank": TunerConfig(adapter=ADAPTERS, lora=LoraConfig(2)),
}
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def classifier(config, tokenizer, *, fast=True):
    """A moved model of ``config`` in eval mode, through the encoders or through open_clip's own passes."""
    adapted = inject(
        small_clip(), config, seed=1, cached_images=7, class_names=NAMES, tokenizer=tokenizer, template="{}"
    )
    move(adapted)
    return AdaptedClassifier(
        adapted, tokenizer, NAMES, TEMPLATE, encoders=Encoders.of(adapted) if fast else None
    ).eval()


@torch.no_grad()
def logits(model):
    return model.classify(IMAGES, model.text_features())


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_no_strength_is_zero_shot_and_full_strength_as_trained(kind, fast, tokenizer):
    zeroshot = logits(CLIPClassifier(small_clip(), tokenizer, NAMES, TEMPLATE))
    model = classifier(KINDS[kind], tokenizer, fast=fast)
    trained = logits(model)
    assert (trained - zeroshot).abs().max() > 1e-2
    model.set_strength(0)
    torch.testing.assert_close(logits(model), zeroshot, atol=1e-4, rtol=1e-5)
    model.set_strength(0.5)
    between = logits(model)
    model.set_strength(1.5)
    beyond = logits(model)
    for found in (between, beyond):
        assert min((found - trained).abs().max(), (found - zeroshot).abs().max()) > 1e-3
    model.set_strength(1)
    assert torch.equal(logits(model), trained)


@pytest.mark.parametrize("backend", [name for name, backend in BACKENDS.items() if backend.status().available])
def test_every_backend_takes_the_strength(backend, tokenizer):
    # The kernels take the image tower's width alone.
    config = RMAdapterConfig(layers="2-3", bottleneck=16, scale=0.5, text=TowerOverrides(layers="none"))
    model = classifier(TunerConfig(adapter=config), tokenizer)
    found = []
    for name in (backend, "eager"):
        model.adapted.set_backend(name)
        model.set_strength(0.25)
        found.append(logits(model))
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)
    model.set_strength(1)
    assert (logits(model) - found[0]).abs().max() > 1e-3


def test_the_number_is_that_of_the_scale(tokenizer):
    """Half the strength of an adapter is the adapter of half the scale."""
    half = classifier(TunerConfig(adapter=RMAdapterConfig(layers="2-3", bottleneck=8, scale=0.25)), tokenizer)
    model = classifier(KINDS["adapters"], tokenizer)
    model.set_strength(0.5)
    torch.testing.assert_close(logits(model), logits(half))


def test_class_features_are_on_the_line_between_one_prompt_and_several(tokenizer):
    model = classifier(KINDS["cache"], tokenizer)
    (features, cache) = model.adapted.tuners
    cache.weight = 0.0
    with torch.no_grad():
        one, several = F.normalize(model.text_features(), dim=-1), features.text
    model.set_strength(0.25)
    text = model.headed(torch.zeros(1, 32), model.text_features()).text
    torch.testing.assert_close(text, 0.75 * one + 0.25 * several)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (TunerConfig(adapter=NONE, prompt=PromptConfig(4, "random")), "prompt"),
        (TunerConfig(adapter=ADAPTERS, prompt=PromptConfig(4, "random")), "prompt"),
        (TunerConfig(adapter=NONE, space=SpaceConfig(2, layers="2-3")), "space"),
    ],
)
def test_learned_tokens_say_that_they_have_none(config, name, tokenizer):
    model = classifier(config, tokenizer)
    before = logits(model)
    with pytest.raises(InputError, match=rf"strength is 0.5, but learned tokens \({name}.\*\) have no .* valid: 1"):
        model.set_strength(0.5)
    model.set_strength(1)
    assert torch.equal(logits(model), before)


def test_a_model_without_anything_trained_has_none(tokenizer):
    model = CLIPClassifier(small_clip(), tokenizer, NAMES, TEMPLATE)
    model.set_strength(1)
    with pytest.raises(InputError, match="strength is 0, but zero-shot CLIP"):
        model.set_strength(0)


@pytest.mark.parametrize("strength", [-0.1, float("nan"), float("inf"), "1"])
def test_what_is_no_strength_is_refused(strength, tokenizer):
    with pytest.raises(InputError, match=r"strength is .* valid: a number >= 0"):
        classifier(KINDS["low rank"], tokenizer).set_strength(strength)


def test_it_is_for_inference_alone_and_is_not_saved(tokenizer, tmp_path):
    model = classifier(KINDS["adapters"], tokenizer)
    trained = logits(model)
    model.set_strength(0.5)
    with pytest.raises(InputError, match=r"strength is 0.5, which is for inference"):
        model.train()
    assert not model.training  # as the model in it is
    model.adapted.save_adapter(tmp_path, class_names=NAMES, template=TEMPLATE)
    again = load(small_clip(), tmp_path, tokenizer=tokenizer)
    assert again.strength == 1
    stored = AdaptedClassifier(again, tokenizer, NAMES, TEMPLATE, encoders=Encoders.of(again)).eval()
    torch.testing.assert_close(logits(stored), trained)


def test_it_does_not_change_under_a_living_graph(tokenizer):
    model = classifier(KINDS["adapters"], tokenizer, fast=False)
    features = model.image_features(IMAGES)
    with pytest.raises(RuntimeError, match="while a graph through them is alive"):
        model.set_strength(0.5)
    del features
    model.set_strength(0.5)
