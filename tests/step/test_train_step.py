"""The fast step against the plain one, losses and gradients, shortcut by shortcut, tower by tower."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import small_clip
from step_cases import COUNTED, SHORTCUTS, TOWERS, assert_same, batch, fast, make, plain, run, scarce, some
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rmadapter import InputError, LossConfig, RMAdapterCLIP, RMAdapterConfig, TowerOverrides
from rmadapter.clip.obstacles import last_block_obstacle
from rmadapter.clip.storage import store_weights
from rmadapter.config.shortcuts import StepConfig
from rmadapter.step.costs import tower_shape
from rmadapter.step.plan import Plan
from rmadapter.step.train_step import TrainStep
from rmadapter.tuners.encoders import Encoders


@pytest.mark.parametrize("towers", TOWERS.values(), ids=TOWERS)
def test_all_shortcuts_together(tokenizer, towers):
    assert_same(fast(tokenizer, towers), plain(tokenizer, towers))


@pytest.mark.parametrize("name", SHORTCUTS)
@pytest.mark.parametrize("towers", ["clip", "bidirectional"])
def test_each_shortcut_alone_and_left_out(tokenizer, towers, name):
    expected = plain(tokenizer, TOWERS[towers])
    alone = StepConfig(**{other: other == name for other in SHORTCUTS})
    without = StepConfig(**{name: False})
    for shortcuts in (alone, without):
        assert_same(fast(tokenizer, TOWERS[towers], shortcuts=shortcuts), expected)


@pytest.mark.parametrize(
    "config",
    [
        {"layers": "all"},
        {"layers": "3"},
        {"layers": "1"},
        {"layers": [1, 3]},
        {"vision": TowerOverrides(layers="none")},
        {"text": TowerOverrides(layers="none")},
        {"adapter_input": "pre_ln"},
        {"rec_stream": "frozen"},
        {"rec_tokens": "all"},
        {"rec_tokens": "pooled"},
        {"rec_tokens": "pooled", "rec_stream": "frozen", "layers": "3"},
        {"rec_tokens": "patches"},
        {"rec_tokens": "patches", "rec_stream": "frozen", "layers": "3"},
        {"rec_stream": "frozen", "layers": "3", "rec_layers": 3},
        {"local_reconstruction": False},
        {"reconstruct": False},
        {"shared_layer": True},
        {"separate_down": True, "objective": "cosine"},
    ],
    ids=str,
)
def test_every_place_and_variant(tokenizer, config):
    assert_same(fast(tokenizer, **config), plain(tokenizer, **config))


@pytest.mark.parametrize("loss", [(0, 0, 0, 0), (1, 0, 0, 1), (0, 1, 1, 0)])
def test_terms_that_are_left_out(tokenizer, loss):
    found = fast(tokenizer, loss=LossConfig(*loss))
    assert_same(found, plain(tokenizer, loss=LossConfig(*loss)))


@pytest.mark.parametrize("towers", some("clip", "bidirectional", "custom blocks"))
def test_chunks_and_recomputation(tokenizer, towers):
    expected = plain(tokenizer, TOWERS[towers])
    model = make(tokenizer, TOWERS[towers])
    step = TrainStep(model, text_bytes=scarce(model))
    assert len(step.chunks) > 1
    assert any(chunk.recompute for chunk in step.chunks)
    assert_same(run(step, model), expected)
    assert_same(fast(tokenizer, TOWERS[towers], recompute=True), expected)


def test_classes_of_like_length_stand_together(tokenizer, monkeypatch):
    monkeypatch.setattr("rmadapter.step.class_plan.CHUNK_TOKENS", {"cpu": 1})
    model = make(tokenizer)
    apart = TrainStep(model, StepConfig(shared_start=False))
    assert [(c.start, c.stop, c.length, c.shared) for c in apart.chunks] == [(0, 3, 8, 0), (3, 4, 9, 0), (4, 5, 14, 0)]
    # A chunk more computes the six tokens of the beginning once more, which is more than one token of padding.
    step = TrainStep(model)
    assert [(c.start, c.stop, c.length, c.shared) for c in step.chunks] == [(0, 4, 9, 5), (4, 5, 14, 5)]
    expected = plain(tokenizer)
    for each in (apart, step):
        assert_same(run(each, model), expected)


@pytest.mark.parametrize(
    ("template", "names", "shared"),
    [
        ("a photo of a {}.", ["cat", "dog"], 5),
        ("{} texture.", ["cat", "dog"], 1),
        ("a photo of a {}.", ["dog", "dog", "dog house"], 6),  # the shortest keeps its last token
        ("a photo of a {}.", ["cat"], 7),
    ],
)
def test_what_prompts_begin_with_is_computed_once(tokenizer, template, names, shared):
    torch.manual_seed(0)
    config = RMAdapterConfig(layers="2-3", bottleneck=8, scale=0.5)
    model = RMAdapterCLIP(small_clip(), tokenizer, names, template=template, config=config).train()
    step = TrainStep(model)
    assert {chunk.shared for chunk in step.chunks} == {shared}
    images, _ = batch()
    labels = torch.zeros(len(images), dtype=torch.int64)
    found, expected = step(images, labels), model(images, labels)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
    assert_same(found.losses, expected.losses)
    assert step._classes[0].entry.adapter_input.shape[1] == step.chunks[0].tokens


@pytest.mark.parametrize("config", [{}, {"rec_stream": "frozen"}], ids=str)
def test_images_in_pieces_are_the_batch(tokenizer, monkeypatch, config):
    expected = plain(tokenizer, **config)
    model = make(tokenizer, **config)
    step = TrainStep(model)
    sizes = []
    real = step.image.tuned
    monkeypatch.setattr(step.image, "tuned", lambda entry, *rest: sizes.append(len(entry.output)) or real(entry, *rest))
    tokens = 5 * step.image.hidden * 4
    monkeypatch.setattr("rmadapter.clip.pieces.PIECE_BYTES", 3 * tokens)
    assert_same(run(step, model), expected)
    assert sizes == [2, 2]


@pytest.mark.parametrize("towers", some("clip", "quick gelu, projection with bias"))
@pytest.mark.parametrize("shared", [True, False])
def test_bytes_kept_for_the_backward_pass_are_those_foreseen(tokenizer, towers, shared):
    """--text-memory holds by them: what the text tower's blocks keep, counted from the graph."""
    model = make(tokenizer, TOWERS[towers], layers="all", reconstruct=False)
    step = TrainStep(model, StepConfig(shared_start=shared, last_token=False))
    step.prepare()
    kept: dict[int, int] = {}
    frozen = (*model.parameters(), *model.buffers(), model.adapted.clip.attn_mask)
    weights = {tensor.untyped_storage().data_ptr() for tensor in frozen}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        features = [step._tuned(classes, None, 1)[0] for classes in step._classes]
    shape = tower_shape(model.adapted, "text", stream=4)
    foreseen = sum(shape.saved_bytes(chunk) for chunk in step.chunks)
    assert len(features) == len(step.chunks)
    assert sum(kept.values()) == pytest.approx(foreseen, rel=0.1)


def test_views_at_hand_stand_for_the_images(tokenizer):
    model = make(tokenizer)
    step = TrainStep(model)
    images, labels = batch()
    expected = step(images, labels).losses["total"]
    assert torch.equal(step(None, labels, step.views(images)).losses["total"], expected)


def test_the_frozen_part_is_computed_once(tokenizer, monkeypatch):
    """Prompts once a run, the image tower below the adapters once a step, and no frozen pass without its weight."""
    model = make(tokenizer)
    step = TrainStep(model)
    begun: dict[str, int] = {}
    for encoder in (step.image, step.text):
        for name in ("begin", "frozen"):
            key, real = f"{encoder.modality} {name}", getattr(encoder, name)

            def counted(*arguments, key=key, real=real):
                begun[key] = begun.get(key, 0) + 1
                return real(*arguments)

            monkeypatch.setattr(encoder, name, counted)
    for _ in range(3):
        run(step, model)
    assert begun == {"vision begin": 3, "vision frozen": 3, "text begin": 2, "text frozen": 1}
    model.loss.lambda3 = 0
    run(step, model)
    assert begun["vision frozen"] == 3


def test_no_graph_below_the_first_adapter(tokenizer):
    step = TrainStep(make(tokenizer))
    views = step.views(batch()[0])
    assert not any(t.requires_grad for t in (*views.entry, views.target))


def test_encoders_classify_as_the_hooks_do(tokenizer):
    for towers in TOWERS.values():
        model = make(tokenizer, towers).eval()
        images, _ = batch()
        with torch.no_grad():
            expected = model(images).logits
            model.encoders = Encoders.of(model.adapted)
            torch.testing.assert_close(model(images).logits, expected, rtol=1e-4, atol=1e-4)
            with model.adapted.adapters_disabled():
                off = model(images).logits
            assert not torch.allclose(off, expected, rtol=1e-3)


def test_what_does_not_apply_is_said(tokenizer):
    towers = {name: small_clip(**config) for name, config in TOWERS.items()}
    assert last_block_obstacle(towers["clip"], "vision") is None
    assert last_block_obstacle(towers["clip"], "text") is None
    assert "attention over all tokens" in last_block_obstacle(towers["attention pooling"], "vision")
    assert "'avg'" in last_block_obstacle(towers["mean of patches"], "vision")
    if "custom blocks" in towers:
        assert "beyond queries" in last_block_obstacle(towers["custom blocks"], "text")
    clip = towers["clip"]
    clip.visual.transformer.resblocks[2].__class__ = type("OtherBlock", (type(clip.transformer.resblocks[0]),), {})
    assert "blocks of class OtherBlock run whole" in last_block_obstacle(clip, "vision")


@pytest.mark.parametrize("stream", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "towers", some("clip", "attention pooling", "custom blocks", "quick gelu, projection with bias")
)
def test_16_bit_weights(tokenizer, towers, stream):
    """Losses and gradients near those of fp32, fp32 gradients, norms and embeddings left in fp32."""
    expected = fast(tokenizer, TOWERS[towers])
    model = make(tokenizer, TOWERS[towers])
    store_weights(model.clip, torch.bfloat16)
    assert model.clip.visual.transformer.resblocks[0].mlp.c_fc.weight.dtype == torch.bfloat16
    assert model.clip.visual.transformer.resblocks[0].ln_1.weight.dtype == torch.float32
    assert model.clip.token_embedding.weight.dtype == torch.float32
    step = TrainStep(model, stream=stream)
    found = run(step, model)
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    assert_same(found, expected, 0.2)
    hooks = run(model, model)
    assert_same(
        {k: v for k, v in hooks.items() if not k.startswith("d ")}, {k: expected[k] for k in hooks if k[0] != "d"}, 0.2
    )


def test_an_fp32_stream_keeps_small_terms(tokenizer):
    """At scale 0.001 most of an adapter's term is lost where it is added in bf16: what the features see of it."""

    def effect(stream) -> torch.Tensor:
        model = make(tokenizer, scale=0.001)
        store_weights(model.clip, torch.bfloat16)
        encoder = TrainStep(model, stream=stream).image
        entry = encoder.begin(batch()[0])
        with torch.no_grad():
            x, _ = encoder._tuned_block(1, entry.output, encoder.layout, False)
            untouched, _ = encoder._frozen_block(1, entry.output, encoder.layout)
        return x.float() - untouched.float()

    wide, narrow = effect(torch.float32), effect(torch.bfloat16)
    assert (narrow - wide).norm() > 0.5 * wide.norm()


@pytest.mark.parametrize("towers", ["clip", "bidirectional"])
@pytest.mark.parametrize("layers", ["2-3", "all", "3"])
def test_predicted_operations_are_those_that_run(tokenizer, towers, layers):
    """Matrix products of the backbone counted by PyTorch, plain and fast; heads of 16 and 77 tokens, so all matters."""
    for shortcuts in (COUNTED, StepConfig.none()):
        assert_foreseen(make(tokenizer, TOWERS[towers], trim=shortcuts.trim, layers=layers), shortcuts)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("rec_stream", ["adapted", "frozen"])
def test_predicted_operations_with_a_frozen_pass_and_with_recomputation(tokenizer, rec_stream, checkpointing):
    model = make(tokenizer, layers="2-3", rec_stream=rec_stream)
    model.clip.set_grad_checkpointing(checkpointing)
    assert_foreseen(model, COUNTED, recompute=checkpointing)


def assert_foreseen(model: RMAdapterCLIP, shortcuts: StepConfig, **settings):
    step = TrainStep(model, shortcuts, **settings)
    run(step, model)
    # The CPU's fused attention is not counted, and written out it is; the adapters are an operator of their own.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run(step, model)
    plan = Plan.of(step, 4)
    text_tokens = sum(chunk.tokens for chunk in plan.work.chunks)
    adapters = plan.work.image.adapters_flop(4 * 5) + plan.work.text.adapters_flop(text_tokens)
    assert counter.get_total_flops() == pytest.approx(plan.cost.flop - adapters, rel=0.1)


def test_a_budget_below_one_class_is_refused(tokenizer):
    with pytest.raises(InputError, match=r"text_memory is 1000 bytes, but a class takes \d+; valid: \d+ or more"):
        TrainStep(make(tokenizer), text_bytes=1000)


def test_a_copied_step_is_its_own(tokenizer):
    model = make(tokenizer)
    expected = run(model, model)
    again = copy.deepcopy(model)
    assert_same(run(TrainStep(again), again), expected)


# Recomputation around compiled parts is in the next test too.
