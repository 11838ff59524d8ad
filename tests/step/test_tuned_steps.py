"""The fast step against the plain one for everything that may be trained, shortcut by shortcut."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from conftest import small_clip
from step_cases import NAMES, SHORTCUTS, TOWERS, assert_as_exact, assert_same, inputs_of, make, run, some
from tuned_cases import CASES, make_tuned

from rmadapter import InputError, LossConfig, RMAdapterCLIP, RMAdapterConfig
from rmadapter.config import LoraConfig, PromptConfig, TowerOverrides, TunerConfig
from rmadapter.config.shortcuts import StepConfig
from rmadapter.step.costs import tower_shape
from rmadapter.step.train_step import TrainStep
from rmadapter.tuners.injection import inject


def plain(tokenizer, case, **changes):
    model = make_tuned(tokenizer, case, trim=False, **changes)
    return run(model, model)


def fast(tokenizer, case, shortcuts=None, **changes):
    shortcuts = shortcuts or StepConfig()
    model = make_tuned(tokenizer, case, trim=shortcuts.trim, **changes)
    step = TrainStep(model, shortcuts, images=4)
    run(step, model)
    return run(step, model)


# One minus a cosine near 1 has lost the digits that the two have in common.
TOLERANCE = 5e-5


@pytest.mark.parametrize("case", CASES)
def test_all_shortcuts_together(tokenizer, case):
    expected = plain(tokenizer, case)
    assert any(name.startswith("d ") for name in expected)
    assert_same(fast(tokenizer, case), expected, TOLERANCE)


@pytest.mark.parametrize("name", SHORTCUTS)
@pytest.mark.parametrize(
    "case",
    [
        "both towers",
        "per image",
        "space",
        "another view and sentences",
        *(pytest.param(case, marks=pytest.mark.slow) for case in ("middle", "low rank")),
    ],
)
def test_each_shortcut_alone_and_left_out(tokenizer, case, name):
    expected = plain(tokenizer, case)
    alone = StepConfig(**{other: other == name for other in SHORTCUTS})
    for shortcuts in (alone, StepConfig(**{name: False})):
        assert_same(fast(tokenizer, case, shortcuts), expected, TOLERANCE)


@pytest.mark.parametrize("case", ["class specific words", "per image", "coupled", "middle", "space"])
@pytest.mark.parametrize("towers", some("bidirectional", "last token", "quick gelu, projection with bias"))
def test_other_towers(tokenizer, case, towers):
    changed = {"towers": TOWERS[towers]}
    assert_same(fast(tokenizer, case, **changed), plain(tokenizer, case, **changed), TOLERANCE)


@pytest.mark.parametrize("case", ["both towers", "coupled"])
def test_image_tokens_without_a_norm_in_front_of_the_blocks(tokenizer, case):
    changed = {"towers": TOWERS["no norm in front of the blocks"]}
    assert_same(fast(tokenizer, case, **changed), plain(tokenizer, case, **changed), TOLERANCE)


@pytest.mark.parametrize("case", [*CASES, "counted at the last token"])
def test_buffers_can_be_written_to_as_several_processes_do_when_they_start(tokenizer, case):
    if case in CASES:
        model = make_tuned(tokenizer, case)
    else:
        model = make(tokenizer, TOWERS["last token"], rec_tokens="pooled")
    for buffer in TrainStep(model).buffers():
        buffer.copy_(buffer.clone())


@pytest.mark.parametrize("case", ["middle", "front", "padded words"])
@pytest.mark.parametrize("names", [["dog"], ["guinea pig", "guinea pig"]], ids=" and ".join)
def test_prompts_that_are_all_the_same(tokenizer, case, names):
    """They share the class name too, behind which learned words may stand. Gradients of such classes cancel."""
    found, expected = (make(tokenizer, case, names=names)["logits"] for make in (fast, plain))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("text", "loss", "field"),
    [
        ("none", LossConfig(0, 0, 0, 25), "loss.lambda4 is 25"),
        ("2-3", LossConfig(0, 3, 0, 0), "loss.lambda2 is 3"),
    ],
)
def test_text_terms_do_not_go_with_text_features_of_each_image(tokenizer, text, loss, field):
    adapter = RMAdapterConfig(layers="none", text=TowerOverrides(layers=text))
    config = TunerConfig(adapter, PromptConfig(4, per_image=True))
    adapted = inject(small_clip(), config, tokenizer=tokenizer, template="a photo of a {}.", class_names=NAMES)
    with pytest.raises(InputError, match=f"{field}, but prompt.per_image makes text features for each image"):
        RMAdapterCLIP(adapted, tokenizer, NAMES, loss=loss)


@pytest.mark.parametrize("towers", some("bidirectional", "last token", "quick gelu, projection with bias"))
def test_low_rank_on_other_towers(tokenizer, towers):
    """Gradients of queries and keys are small differences: the plain step's own error was 9.6e-5 on one processor."""
    changed = {"towers": TOWERS[towers]}
    model = make_tuned(tokenizer, "low rank", trim=False, **changed).double()
    exact = run(model, model)
    assert_as_exact(fast(tokenizer, "low rank", **changed), plain(tokenizer, "low rank", **changed), exact, TOLERANCE)


CHUNKED = ["class specific words", "per image", "both towers", "adapters and low rank", "another view and sentences"]


@pytest.mark.parametrize("case", [*CHUNKED, "space"])
def test_chunks_and_recomputation(tokenizer, case):
    model = make_tuned(tokenizer, case)
    shape = tower_shape(model.adapted, "text", stream=4)
    images = 4 if model.per_image else 1
    whole = sum(shape.saved_bytes(chunk) for chunk in TrainStep(model).chunks)
    step = TrainStep(model, text_bytes=int(0.8 * images * whole), images=4, recompute=True)
    assert len(step.chunks) > 1
    assert_same(run(step, model), plain(tokenizer, case), TOLERANCE)


@pytest.mark.parametrize("case", ["space", "both towers"])
def test_a_plain_step_that_recomputes_activations(tokenizer, case):
    """open_clip hands the mask on in another way then."""
    model = make_tuned(tokenizer, case, trim=False)
    model.clip.set_grad_checkpointing(True)
    assert_same(run(model, model), plain(tokenizer, case), TOLERANCE)


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][1].second_view])
def test_kept_views_hold_the_second_view_s_features(tokenizer, case):
    model = make_tuned(tokenizer, case)
    step = TrainStep(model)
    (images, labels), drawn = inputs_of(model)
    expected = step(images, labels, **drawn)
    found = step(None, labels, step.views(images), **drawn)
    assert torch.equal(found.losses["total"], expected.losses["total"])


def with_dropout(tokenizer, dropout):
    config = TunerConfig(RMAdapterConfig(layers="none"), lora=LoraConfig(2, dropout=dropout))
    adapted = inject(small_clip(), config, seed=1, tokenizer=tokenizer, template="a photo of a {}.", class_names=NAMES)
    with torch.no_grad():
        for name, parameter in adapted.adapter_tensors().items():
            if name.endswith(".b"):
                parameter.fill_(0.1)  # as drawn they are zero, and dropout would be seen nowhere
    return RMAdapterCLIP(adapted, tokenizer, NAMES, "a photo of a {}.", loss=LossConfig(0, 0, 0, 0)).train()


def test_dropout_switches_off_what_it_makes_inexact(tokenizer):
    """A mask for every prompt and for every token's keys: no shared start, no last block at one token."""
    exact, drawn = (TrainStep(with_dropout(tokenizer, dropout)) for dropout in (0.0, 0.5))
    assert exact.chunks[0].shared > 1
    assert exact.image.by_token
    assert exact.text.by_token
    assert {chunk.shared for chunk in drawn.chunks} == {0}
    assert not drawn.image.by_token
    assert not drawn.text.by_token


def test_recomputation_draws_the_same_dropout_again(tokenizer):
    found = []
    for recompute in (False, True):
        model = with_dropout(tokenizer, 0.5)
        step = TrainStep(model, recompute=recompute)
        step.prepare()
        torch.manual_seed(3)
        found.append(run(step, model))
    assert_same(found[1], found[0])


@pytest.mark.parametrize("case", ["per image", "class specific", "coupled", "space", "adapters and low rank"])
def test_a_model_is_copied_between_steps_and_with_a_graph(tokenizer, case):
    model = make_tuned(tokenizer, case).train()
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    output = model(images, labels)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    output.losses["total"].backward()
    copies.append(copy.deepcopy(model))
    expected = model.eval()(images).logits
    for each in copies:
        torch.testing.assert_close(each.eval()(images).logits, expected)


@pytest.mark.parametrize("case", ["per image", "space", "cache and class features", "image adapter"])
@torch.no_grad()
def test_what_stands_beside_adapters_goes_into_another_dtype_with_the_model(tokenizer, case):
    model, images = make_tuned(tokenizer, case).eval(), torch.randn(2, 3, 32, 32)
    model.set_strength(1 if model.strength_obstacle else 0.5)
    expected = model(images).logits
    for dtype, tolerance in ((torch.float64, 1e-3), (torch.bfloat16, 1.0)):  # of logits up to 14
        found = model.to(dtype)(images.to(dtype)).logits
        torch.testing.assert_close(found.float(), expected, rtol=0, atol=tolerance)
