"""Adapters in open_clip models: what must stay as it was, and what must hold under copying and recomputation."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import open_clip
import pytest
import torch
from conftest import small_clip
from torch import nn

from rmadapter import RMAdapterConfig, TowerOverrides, inject
from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.clip.towers import find_towers
from rmadapter.config import HeadConfig, LoraConfig, TunerConfig
from rmadapter.errors import InputError
from rmadapter.tuners.adapted_classifier import AdaptedClassifier
from rmadapter.tuners.encoders import Encoders
from rmadapter.tuners.injection import CHILD

LAYERS = RMAdapterConfig(layers="last:2", bottleneck=4, scale=0.5)


def inputs(clip: nn.Module, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images of the model's size and random prompts with end-of-text as the highest token."""
    generator = torch.Generator().manual_seed(0)
    size = clip.visual.image_size[0]
    tokens = torch.zeros(batch, clip.context_length, dtype=torch.long)
    tokens[:, :5] = torch.randint(1, 1000, (batch, 5), generator=generator)
    tokens[:, 5] = 49407
    return torch.randn(batch, 3, size, size, generator=generator), tokens


def shrunk(name: str) -> nn.Module:
    """The named open_clip model with three narrow blocks a tower; patches, image size and activation are its own."""
    config = open_clip.get_model_config(name)
    heads = 4
    config["vision_cfg"] |= {"layers": 3, "width": 64, "head_width": 16}
    config["text_cfg"] |= {"layers": 3, "width": 32, "heads": heads}
    torch.manual_seed(0)
    return open_clip.CLIP(**config).eval()


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-B-32-quickgelu"])
def test_zero_up_leaves_keys_and_outputs_as_they_were(name):
    clip = shrunk(name)
    images, tokens = inputs(clip)
    keys = list(clip.state_dict())
    with torch.no_grad():
        before = clip.encode_image(images), clip.encode_text(tokens)
        model = inject(clip, RMAdapterConfig(layers="2-3", init="zero_up", scale=1.0))
        after = model.encode_image(images), model.encode_text(tokens)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    added = [key for key in clip.state_dict() if key not in keys]
    assert [key for key in clip.state_dict() if key in keys] == keys
    assert all(f".{CHILD}." in key for key in added)
    assert len(added) == 2 * 2 * 8


def test_an_adapter_changes_the_output_and_can_be_taken_out(clip):
    images, tokens = inputs(clip)
    keys = list(clip.state_dict())
    clip.requires_grad_(False)  # torch's matmul takes another path by requires_grad, 1e-6 away on some processors
    with torch.no_grad():
        before = clip.encode_image(images), clip.encode_text(tokens)
        model = inject(clip, LAYERS)
        assert (model.encode_image(images) - before[0]).abs().max() > 1e-3
        assert (model.encode_text(tokens) - before[1]).abs().max() > 1e-3
        with model.adapters_disabled():
            assert torch.equal(model.encode_image(images), before[0])
        assert model.remove() is clip
        assert torch.equal(clip.encode_image(images), before[0])
        assert torch.equal(clip.encode_text(tokens), before[1])
    assert list(clip.state_dict()) == keys
    assert not any(block._forward_hooks for tower in find_towers(clip).values() for block in tower.blocks)
    inject(clip, LAYERS)


def test_the_term_is_that_of_the_method(clip):
    """block(x) + scale * base(ln_1(x)), written out here once more."""
    block = clip.visual.transformer.resblocks[2]
    x = torch.randn(2, 5, 64)
    plain = block(x)
    model = inject(clip, LAYERS)
    branch = {a.layer: a.adapter for a in model.adapters("vision")}[3].branch
    z = nn.functional.gelu(block.ln_1(x) @ branch.w_down + branch.b_down)
    torch.testing.assert_close(block(x), plain + 0.5 * (z @ branch.w_up + branch.b_up))


def test_pre_ln_reads_the_block_s_raw_input(clip):
    block = clip.visual.transformer.resblocks[2]
    nn.init.normal_(block.ln_1.weight)
    x = torch.randn(2, 5, 64)
    plain = block(x)
    model = inject(clip, RMAdapterConfig(layers="3", adapter_input="pre_ln", scale=0.5))
    branch = next(model.adapters("vision")).adapter.branch
    z = nn.functional.gelu(x @ branch.w_down)
    torch.testing.assert_close(block(x), plain + 0.5 * z @ branch.w_up)


def test_towers_with_overrides(clip):
    config = RMAdapterConfig(
        layers="2", bottleneck=8, vision=TowerOverrides(layers="all", bottleneck=4), text=TowerOverrides(scale=0.25)
    )
    found = list(inject(clip, config).adapters())
    assert [(a.tower, a.layer) for a in found] == [("vision", 1), ("vision", 2), ("vision", 3), ("text", 2)]
    assert found[0].adapter.branch.w_down.shape == (64, 4)
    assert found[3].adapter.branch.w_down.shape == (32, 8)
    assert found[3].adapter.branch.scale == 0.25
    assert found[3].adapter.branch.branch_grad_scale == 4.0


def test_only_adapters_are_trained(clip):
    model = inject(clip, LAYERS)
    trained = {name for name, p in clip.named_parameters() if p.requires_grad}
    assert trained == {name for name in clip.state_dict() if f".{CHILD}." in name}
    assert {id(p) for p in model.adapter_tensors().values()} == {id(p) for p in clip.parameters() if p.requires_grad}


def test_copy_and_pickle_are_independent_of_the_original(clip):
    model = inject(clip, LAYERS)
    images, _ = inputs(clip)
    model.train()
    with model.collect("vision"):
        model.encode_image(images)  # leaves a live graph, which a copy must not carry
    model.eval()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            before = model.encode_image(images)
            assert torch.equal(twin.encode_image(images), before)
            for parameter in twin.adapter_tensors().values():
                parameter.add_(1.0)
            assert torch.equal(model.encode_image(images), before)
            assert not torch.equal(twin.encode_image(images), before)
            twin.set_enabled(False)
            assert torch.equal(model.encode_image(images), before)
        assert not any(a.adapter.graph_alive for a in twin.adapters())


@pytest.mark.parametrize("rec_stream", ["adapted", "frozen"])
def test_gradients_and_losses_are_exact_under_checkpointing(rec_stream):
    def run(checkpointing: bool) -> list[torch.Tensor]:
        torch.manual_seed(1)
        clip = small_clip()
        model = inject(clip, RMAdapterConfig(layers="1-3", scale=0.5, rec_stream=rec_stream)).train()
        clip.set_grad_checkpointing(checkpointing)
        images, tokens = inputs(clip)
        with model.collect("vision") as vision, model.collect("text") as text:
            features = [model.encode_image(images), model.encode_text(tokens)]
            if rec_stream == "frozen":
                with model.frozen_pass():
                    model.encode_image(images), model.encode_text(tokens)
        assert len(vision) == len(text) == 3
        losses = [loss.mean() for loss in vision + text]
        (sum(losses) + sum(f.sum() for f in features)).backward()
        assert all(a.adapter.rec_loss is None for a in model.adapters())  # recomputation left nothing behind
        return [*features, *losses, *(p.grad for p in model.adapter_tensors().values())]

    for plain, recomputed in zip(run(False), run(True), strict=True):
        assert torch.equal(plain, recomputed)


def test_switching_raises_while_a_graph_is_alive(clip):
    model = inject(clip, LAYERS).train()
    images, _ = inputs(clip)
    features = model.encode_image(images)
    with pytest.raises(RuntimeError, match="graph through them is alive"):
        model.set_enabled(False)
    with pytest.raises(RuntimeError, match="graph"), model.adapters_disabled():
        pass
    features.sum().backward()
    model.set_enabled(False)  # backward has run, though features still hold their graph
    model.set_enabled(True)
    features = model.encode_image(images)
    del features
    with model.adapters_disabled():
        pass


@pytest.mark.slow
def test_one_graph_a_tower(clip):
    inject(clip, LAYERS).train()
    images, tokens = inputs(clip)
    for encode, argument in ((clip.encode_image, images), (clip.encode_text, tokens)):
        explanation = torch._dynamo.explain(encode)(argument)
        assert explanation.graph_count == 1, explanation.break_reasons


def test_compiled_tower_equals_eager_with_its_losses(clip):
    model = inject(clip, LAYERS).train()
    images, _ = inputs(clip)
    compiled = torch.compile(clip.visual, fullgraph=True, backend="aot_eager")
    with model.collect("vision") as eager_losses:
        eager = clip.visual(images)
    with model.collect("vision") as compiled_losses:
        features = compiled(images)
    torch.testing.assert_close(features, eager)
    assert len(compiled_losses) == 2
    for one, other in zip(eager_losses, compiled_losses, strict=True):
        torch.testing.assert_close(one, other)


def test_reconstruction_is_computed_in_training_alone_and_where_it_is_wanted(clip):
    model = inject(clip, LAYERS)
    images, tokens = inputs(clip)

    def collected() -> tuple[int, int]:
        with model.collect("vision") as vision, model.collect("text") as text:
            model.encode_image(images), model.encode_text(tokens)
        return len(vision), len(text)

    assert collected() == (0, 0)
    model.train()
    assert collected() == (2, 2)
    model.set_reconstruction("vision", False)
    assert collected() == (0, 2)
    assert model.clip.training is False


def test_refusals(clip):
    with pytest.raises(InputError, match=r"vision tower.*1 to 3"):
        inject(clip, RMAdapterConfig(layers="4"))
    with pytest.raises(InputError, match="both towers without"):
        inject(clip, RMAdapterConfig(layers="none"))
    assert not any(f".{CHILD}." in key for key in clip.state_dict())
    inject(clip, LAYERS)
    with pytest.raises(InputError, match="adapters already"):
        inject(clip, LAYERS)


def test_shared_layers_pair_the_towers_from_the_last_block(clip):
    """Three blocks of the image tower, two of the text tower: the image tower's first has no partner."""
    model = inject(clip, RMAdapterConfig(layers="all", shared_layer=True, text=TowerOverrides(layers="1,3")))
    vision, text = (list(model.adapters(tower)) for tower in ("vision", "text"))
    assert [found.layer for found in text] == [1, 3]
    assert text[1].adapter.branch.shared is vision[2].adapter.branch.shared
    assert text[0].adapter.branch.shared is vision[1].adapter.branch.shared
    names = [name for name in model.adapter_tensors() if name.startswith("shared.")]
    assert names == [f"shared.{number}.{key}" for number in (1, 2, 3) for key in ("weight", "bias")]
    model.reset_adapters(3)
    assert all(found.adapter.branch.shared.weight.abs().sum() > 0 for found in vision)


@pytest.mark.parametrize(("layers", "name"), [([1, 1, 1, 1], "ModifiedResNet"), (None, "TimmModel around a ConvNeXt")])
def test_towers_without_transformer_blocks_are_refused_by_name(layers, name):
    if layers:
        vision = {"image_size": 32, "layers": layers, "width": 8}
    else:
        vision = {"timm_model_name": "convnext_atto", "timm_model_pretrained": False, "image_size": 32}
    clip = small_clip(vision_cfg=vision)
    with pytest.raises(InputError, match=f"{name}.*these work: .*ViT-B-32"):
        inject(clip)


def test_summary(clip):
    text = inject(clip, LAYERS).summary()
    assert "vision: open_clip ViT, 3 blocks, width 64; adapters in 2, 3" in text
    assert "w_down [32, 4]" in text
    vision, text_tower = (
        2 * (64 * 4 + 4 + 4 * 64 + 64 + 16 + 4 + 256 + 64),
        2 * (32 * 4 + 4 + 128 + 32 + 16 + 4 + 128 + 32),
    )
    assert f"trained: {vision + text_tower:,} of " in text


@pytest.mark.slow
def test_the_published_parameter_counts_on_a_whole_vit_b_16():
    """666,112 for the single branch, 354,816 more for reconstruction, 674,560 for MMA."""
    clip = open_clip.create_model("ViT-B-16")
    images, tokens = inputs(clip, 1)
    counts = {}
    for name, config in {
        "single": RMAdapterConfig(reconstruct=False),
        "rmadapter": RMAdapterConfig(),
        "mma": RMAdapterConfig(reconstruct=False, shared_layer=True, activation="relu"),
    }.items():
        model = inject(clip, config)
        counts[name] = sum(p.numel() for p in model.adapter_tensors().values())
        assert [a.layer for a in model.adapters("vision")] == list(range(5, 13))
        with torch.no_grad():
            assert model.encode_image(images).shape == model.encode_text(tokens).shape == (1, 512)
        model.remove()
    assert counts == {"single": 666_112, "rmadapter": 666_112 + 354_816, "mma": 674_560}


def test_a_second_injection_is_refused_where_the_first_left_no_adapter(clip):
    nothing = RMAdapterConfig(layers="none")
    first = inject(clip, TunerConfig(adapter=nothing, lora=LoraConfig(2)))
    with pytest.raises(InputError, match=r"has adapters already; take them out with remove\(\) first"):
        inject(clip, LAYERS)
    first.remove()
    inject(clip, LAYERS)


def test_what_was_taken_out_has_no_say_in_what_is_put_in_later(clip, tokenizer):
    images, _ = inputs(clip)
    first = inject(clip, TunerConfig(adapter=LAYERS, head=HeadConfig(image_ratio=0.5)))
    classifier = AdaptedClassifier(first, tokenizer, ["cat", "dog"], encoders=Encoders.of(first))
    first.remove()
    with torch.no_grad():
        zeroshot = CLIPClassifier(clip, tokenizer, ["cat", "dog"])
        assert torch.equal(classifier(images).logits, zeroshot(images).logits)
        second = inject(clip, LAYERS)
        expected = second.encode_image(images)
        assert not list(first.adapters())
        first.set_enabled(False)
        first.set_strength(0)
        assert first.remove() is clip
        assert torch.equal(second.encode_image(images), expected)
        assert second.enabled


@pytest.mark.parametrize("more", [{}, {"rec_layers": 3}, {"reconstruct": False, "shared_layer": True}])
def test_trained_weights_are_fp32_whatever_torch_s_default_is(clip, more):
    torch.set_default_dtype(torch.bfloat16)
    try:
        config = dataclasses.replace(LAYERS, **more)
        model = inject(clip, TunerConfig(adapter=config, lora=LoraConfig(2), head=HeadConfig(image_ratio=0.5)))
    finally:
        torch.set_default_dtype(torch.float32)
    assert {parameter.dtype for parameter in model.trained().values()} == {torch.float32}
    assert torch.isfinite(model.encode_image(inputs(clip)[0])).all()
