"""RMAdapterCLIP: its terms against their definitions, and the adapter's backend swapped inside an injected CLIP."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import SMALL_CONFIG, small_clip
from torch import nn
from torch.nn import functional as F

from rmadapter import InputError, LossConfig, RMAdapterCLIP, RMAdapterConfig, TowerOverrides
from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.config import PromptConfig, TunerConfig
from rmadapter.config.adapter import REC_TOKENS
from rmadapter_kernels import available_backends

NAMES = ["cat", "a rather long name of a bird", "dog"]


def make(tokenizer, loss: LossConfig | None = None, clip: nn.Module | None = None, **config) -> RMAdapterCLIP:
    clip = clip or small_clip()
    torch.manual_seed(0)
    config = RMAdapterConfig(**{"layers": "2-3", "bottleneck": 8, "scale": 0.5, **config})
    return RMAdapterCLIP(clip, tokenizer, NAMES, config=config, loss=loss).train()


def batch(size: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 3, 32, 32, generator=generator), torch.arange(size) % len(NAMES)


def test_logits_and_losses_against_their_definitions(tokenizer):
    model = make(tokenizer, LossConfig(2, 3, 4, 5))
    images, labels = batch()
    logits, losses = model(images, labels)
    tokens = tokenizer([f"a photo of a {name}." for name in NAMES])
    frozen = small_clip()
    with torch.no_grad():
        image, text = (
            F.normalize(f, dim=-1) for f in (model.clip.encode_image(images), model.clip.encode_text(tokens))
        )
        expected = frozen.logit_scale.exp() * image @ text.T
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(losses["cross_entropy"], F.cross_entropy(expected, labels), rtol=1e-4, atol=1e-4)
        plain = (F.normalize(f, dim=-1) for f in (frozen.encode_image(images), frozen.encode_text(tokens)))
        for name, one, other in zip(("consistency_image", "consistency_text"), (image, text), plain, strict=True):
            torch.testing.assert_close(losses[name], (one - other).abs().mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        losses["total"],
        losses["cross_entropy"]
        + 2 * losses["reconstruction_vision"]
        + 3 * losses["reconstruction_text"]
        + 4 * losses["consistency_image"]
        + 5 * losses["consistency_text"],
    )


def test_text_reconstruction_leaves_out_what_comes_after_end_of_text(tokenizer):
    """Each prompt alone, at its own length, gives the same sum over tokens."""
    model = make(tokenizer)
    images, labels = batch()
    together = model(images, labels).losses["reconstruction_text"]
    sums, count = 0.0, 0
    for name in NAMES:
        model.set_classes([name], model.template)
        length = model.prompts.tokens.shape[1]
        sums += model(images, torch.zeros_like(labels)).losses["reconstruction_text"] * length
        count += length
    torch.testing.assert_close(together, sums / count, rtol=1e-4, atol=1e-5)


def test_a_weight_of_zero_leaves_its_term_and_its_work_out(tokenizer):
    model = make(tokenizer, LossConfig(0, 0, 0, 0))
    losses = model(*batch()).losses
    assert set(losses) == {"cross_entropy", "total"}
    losses["total"].backward()
    assert all(a.adapter.branch.w_rec1.grad is None for a in model.adapted.adapters())
    assert model._frozen_text is None


def test_eval_mode_gives_logits_and_cross_entropy_alone(tokenizer):
    model = make(tokenizer).eval()
    images, labels = batch()
    assert set(model(images, labels).losses) == {"cross_entropy", "total"}
    output = model(images)
    assert output.losses == {}
    torch.testing.assert_close(output.logits, model(images, labels).logits)


def test_frozen_text_features_are_computed_once_for_a_set_of_classes(tokenizer):
    model = make(tokenizer)
    first = model.frozen_text_features()
    assert model.frozen_text_features() is first
    torch.testing.assert_close(first, small_clip().encode_text(tokenizer([f"a photo of a {n}." for n in NAMES])))
    model.set_classes(["cat", "cow"], "a {}")
    assert model.frozen_text_features().shape == (2, 32)


def test_frozen_stream_reconstructs_the_untouched_tokens(tokenizer):
    """Its target is what the block's norm makes of the frozen model's own tokens, whatever the adapters add."""
    model = make(tokenizer, rec_stream="frozen", layers="all")
    adapted = make(tokenizer, layers="all")
    images, labels = batch()
    losses = model(images, labels).losses
    with torch.no_grad():
        clip = small_clip()
        x = clip.visual._embeds(images)
        expected = 0.0
        for found in model.adapted.adapters("vision"):
            block, branch = clip.visual.transformer.resblocks[found.layer - 1], found.adapter.branch
            u = block.ln_1(x)
            h = F.gelu(F.gelu(u @ branch.w_down) @ branch.w_rec1)
            expected += (u - h @ branch.w_rec2).square().mean()
            x = block(x)
    torch.testing.assert_close(losses["reconstruction_vision"], expected, rtol=1e-4, atol=1e-5)
    other = adapted(images, labels).losses
    torch.testing.assert_close(losses["cross_entropy"], other["cross_entropy"])
    assert not torch.allclose(losses["reconstruction_vision"], other["reconstruction_vision"], rtol=1e-4)
    losses["total"].backward()
    assert all(a.adapter.branch.w_rec2.grad is not None for a in model.adapted.adapters())


@pytest.mark.parametrize("rec_tokens", REC_TOKENS)
def test_which_tokens_the_reconstruction_counts(tokenizer, rec_tokens):
    model = make(tokenizer, rec_tokens=rec_tokens)
    images, labels = batch()
    losses = model(images, labels).losses
    with model.adapted.collect("vision") as vision:
        model.image_features(images)
    with model.adapted.collect("text") as text:
        model.text_features()
    assert (text[0].shape[1] == 77) == (rec_tokens == "all")
    tokens = tokenizer([f"a photo of a {name}." for name in NAMES])
    ends = tokens.argmax(-1)

    def mean(loss: torch.Tensor) -> torch.Tensor:
        if rec_tokens == "all":
            return loss.mean()
        if rec_tokens == "pooled":
            return loss[torch.arange(len(NAMES)), ends].mean()
        if rec_tokens == "patches":
            return torch.cat([row[:end] for row, end in zip(loss, ends, strict=True)]).mean()
        return torch.cat([row[: end + 1] for row, end in zip(loss, ends, strict=True)]).mean()

    width = model.width["text"]
    torch.testing.assert_close(losses["reconstruction_text"], sum(mean(loss) for loss in text) / width)
    of_image = {"pooled": slice(1), "patches": slice(1, None)}.get(rec_tokens, slice(None))
    expected = sum(loss[:, of_image].mean() for loss in vision) / model.width["vision"]
    torch.testing.assert_close(losses["reconstruction_vision"], expected)


def test_pooled_tokens_need_a_tower_that_is_pooled_at_one(tokenizer):
    vision = {**SMALL_CONFIG["vision_cfg"], "pool_type": "avg", "final_ln_after_pool": True}
    clip, config = small_clip(vision_cfg=vision), RMAdapterConfig(layers="all", rec_tokens="pooled")
    with pytest.raises(InputError, match=r"the vision tower is not pooled at one token .*; valid: valid, all"):
        RMAdapterCLIP(clip, tokenizer, NAMES, config=config)


def test_patches_are_patches_whatever_stands_around_them(tokenizer):
    """A class token that is there but not pooled is none, and neither are learned tokens behind the patches."""
    adapter = RMAdapterConfig(layers="all", rec_tokens="patches")
    tuned = TunerConfig(adapter, PromptConfig(vision_tokens=2, vision_depth=1))
    assert RMAdapterCLIP(small_clip(), tokenizer, NAMES, config=tuned).counted_vision.tolist() == [
        [False] + 4 * [True] + 2 * [False]
    ]
    vision = {**SMALL_CONFIG["vision_cfg"], "pool_type": "avg", "final_ln_after_pool": True}
    model = RMAdapterCLIP(small_clip(vision_cfg=vision), tokenizer, NAMES, config=adapter)
    assert model.counted_vision.tolist() == [[False] + 4 * [True]]


def test_checkpointing_gives_the_same_training_step(tokenizer):
    results = []
    for checkpointing in (False, True):
        model = make(tokenizer)
        model.clip.set_grad_checkpointing(checkpointing)
        losses = model(*batch()).losses
        losses["total"].backward()
        results.append([losses["total"], *(p.grad for p in model.adapted.adapter_tensors().values())])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"reconstruct": False},
        {"reconstruct": False, "shared_layer": True, "activation": "relu"},
        {"shared_layer": True},
        {"separate_down": True},
        {"rec_layers": 1},
        {"rec_layers": 3},
        {"objective": "l1"},
        {"objective": "cosine"},
        {"local_reconstruction": False},
        {"adapter_input": "pre_ln"},
        {"rec_stream": "frozen", "rec_layers": 3},
        {"text": TowerOverrides(layers="none")},
        {"vision": TowerOverrides(bottleneck=4, scale=0.1)},
    ],
    ids=lambda config: "-".join(map(str, config)) or "default",
)
def test_every_variant_learns(tokenizer, config):
    """A few steps bring the loss down, and every trained tensor has a finite gradient."""
    model = make(tokenizer, LossConfig(1, 1, 1, 1), branch_grad_scale=1.0, **config)
    images, labels = batch()
    optimizer = torch.optim.SGD(model.adapted.adapter_tensors().values(), lr=0.02)
    values = []
    for _ in range(6):
        loss = model(images, labels).losses["total"]
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in model.adapted.adapter_tensors().items():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < values[0]


def test_backends_agree_inside_an_injected_clip(tokenizer):
    """Outputs, losses and gradients of every backend that is here, and back to eager again."""
    usable = [name for name, status in available_backends().items() if status.available]
    assert "eager" in usable
    wide_enough_for_all = {"text_cfg": {**SMALL_CONFIG["text_cfg"], "width": 64}}
    reference = make(tokenizer, clip=small_clip(**wide_enough_for_all))
    images, labels = batch()

    def step(model: RMAdapterCLIP) -> list[torch.Tensor]:
        model.zero_grad()
        logits, losses = model(images, labels)
        losses["total"].backward()
        return [logits, *losses.values(), *(p.grad for p in model.adapted.adapter_tensors().values())]

    reference.adapted.set_backend("eager")
    expected = [t.detach().clone() for t in step(reference)]
    for backend in [*usable, "auto", "eager"]:
        model = copy.deepcopy(reference)
        model.adapted.set_backend(backend)
        for one, other in zip(step(model), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    reference.adapted.set_backend("nonesuch")
    with pytest.raises(ValueError, match="nonesuch"):
        reference(images, labels)


def test_mixed_precision_step_gives_fp32_gradients(tokenizer):
    model = make(tokenizer)
    exact = model(*batch()).losses
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(*batch()).losses
    for name, value in losses.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact[name], rtol=0.1, atol=0.05)
    losses["total"].backward()
    assert all(p.grad.dtype == torch.float32 for p in model.adapted.adapter_tensors().values())


def test_zero_shot_classifier_is_the_clip_model(tokenizer, clip):
    images, _ = batch()
    model = CLIPClassifier(clip, tokenizer, NAMES)
    with torch.no_grad():
        expected, _ = clip.get_logits(images, tokenizer([f"a photo of a {n}." for n in NAMES]))
        torch.testing.assert_close(model(images).logits, expected, rtol=1e-4, atol=1e-4)


def test_equal_names_are_kept_apart_by_index(tokenizer, clip):
    model = CLIPClassifier(clip, tokenizer, ["crane", "crane", "dog"])
    with torch.no_grad():
        logits = model(batch()[0]).logits
    assert logits.shape == (4, 3)
    torch.testing.assert_close(logits[:, 0], logits[:, 1])


def test_logits_are_in_fp32_under_autocast(tokenizer):
    model = make(tokenizer)
    images, labels = batch()
    with torch.autocast("cpu", torch.bfloat16):
        logits, losses = model(images, labels)
        features = model.image_features(images), model.text_features()
        assert features[0].dtype == features[1].dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    image, text = (F.normalize(each.float(), dim=-1) for each in features)
    torch.testing.assert_close(logits, model.clip.logit_scale.exp() * image @ text.T)
    torch.testing.assert_close(losses["cross_entropy"], F.cross_entropy(logits, labels))


def test_classes_set_in_inference_mode_are_trained_with_later(tokenizer):
    model = make(tokenizer)
    with torch.inference_mode():
        model.set_classes(["horse", "cow"], "a {}.")
        model(batch()[0])
        model.set_classes(NAMES, "a photo of a {}.")
    model(*batch()).losses["total"].backward()


def test_frozen_features_are_of_the_weights_at_hand(tokenizer):
    model, other = make(tokenizer), make(tokenizer, clip=small_clip(seed=1))
    found = {each: each.frozen_text_features() for each in (model, other)}
    assert not torch.equal(found[model], found[other])
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(model.frozen_text_features(), found[other])
    # Of the towers alone, in place and as other tensors.
    own, others = small_clip().state_dict(), small_clip(seed=1).state_dict()
    model.clip.load_state_dict(own, strict=False)
    torch.testing.assert_close(model.frozen_text_features(), found[model])
    model.clip.transformer.load_state_dict(other.clip.transformer.state_dict())
    assert not torch.equal(model.frozen_text_features(), found[model])
    model.clip.load_state_dict(others, strict=False, assign=True)
    torch.testing.assert_close(model.frozen_text_features(), found[other])
    assert model.double().frozen_text_features().dtype == torch.float64


def test_weights_are_averaged_from_before_the_first_step_on(tokenizer):
    model = make(tokenizer)
    average = torch.optim.swa_utils.AveragedModel(model)
    model(*batch()).losses["total"].backward()
    average.update_parameters(model)
    average.update_parameters(model)
    torch.testing.assert_close(average.eval()(batch()[0]).logits, model.eval()(batch()[0]).logits)


@pytest.mark.parametrize(
    ("names", "changes", "message"),
    [
        ("rose", {}, "class_names is 'rose'; valid: a list of names"),
        ([], {}, r"class_names is \[\]; valid"),
        (["rose", None], {}, r"class_names holds None \(NoneType\)"),
        (["rose " * 100], {}, "longer than the model's context"),
        (["rose"], {"template": ["a {}", "one {}"]}, "template is .*; valid: one text"),
        (["rose"], {"loss": LossConfig(classification="sigmoid")}, "no logit bias"),
    ],
)
def test_a_mistake_in_what_is_handed_over_leaves_the_model_without_adapters(tokenizer, names, changes, message):
    clip = small_clip()
    with pytest.raises(InputError, match=message):
        RMAdapterCLIP(clip, tokenizer, names, **changes)
    assert RMAdapterCLIP(clip, tokenizer, NAMES).adapted.has_adapters("vision")


def test_a_configuration_for_adapters_that_are_there_is_refused(tokenizer):
    model = make(tokenizer)
    assert RMAdapterCLIP(model.adapted, tokenizer, NAMES, config=model.config).adapted is model.adapted
    with pytest.raises(InputError, match="config is given, but the model has its adapters already"):
        RMAdapterCLIP(model.adapted, tokenizer, NAMES, config=RMAdapterConfig(layers="3"))


def test_classes_that_the_targets_have_no_room_for_leave_it_as_it_was(tokenizer):
    long = "a photo of a {}" + ", and of what is near it" * 10
    model = RMAdapterCLIP(small_clip(), tokenizer, ["cat", "dog"], template="{}", target_templates=[long])
    with pytest.raises(InputError, match="longer than the model's context"):
        model.set_classes(["cat", "dog", "bird " * 40], "{}")
    assert model.class_names == ["cat", "dog"]
    assert len(model.prompts.tokens) == 2
