"""A second view of each image and sentences on each class: the loss by hand, costs, and what is refused."""

from __future__ import annotations

import pytest
import torch
from conftest import small_clip
from step_cases import NAMES, inputs_of
from torch.nn import functional as F
from tuned_cases import SENTENCES, make_tuned

from rmadapter import InputError, LossConfig, RMAdapterCLIP
from rmadapter.config import HeadConfig, PromptConfig, RMAdapterConfig, TunerConfig
from rmadapter.config.shortcuts import StepConfig
from rmadapter.step.device_step import DeviceStep, StepInputs
from rmadapter.step.plan import Plan
from rmadapter.step.train_step import TrainStep
from rmadapter.tuners.injection import inject

WEIGHTS = LossConfig(0, 0, 2, 2, distance="cosine", target="sentences", second_view=True)


def cosine(a, b):
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


@pytest.mark.parametrize("drawn", [0, 2])
def test_the_loss_by_hand(tokenizer, drawn):
    """CE + 2 [(1 - mean cos(t, g)) + (1 - mean cos(z, z0 of the second view))], features behind their adapters."""
    config = TunerConfig(RMAdapterConfig(layers="none"), head=HeadConfig(image_ratio=0.1, text_ratio=0.2))
    settings = {"tokenizer": tokenizer, "template": "a photo of a {}.", "class_names": NAMES}
    adapted = inject(small_clip(), config, seed=1, **settings)
    model = RMAdapterCLIP(adapted, tokenizer, NAMES, loss=WEIGHTS, sentences=SENTENCES).train()
    (images, labels), _ = inputs_of(model)

    untouched, weights = small_clip(), adapted.adapter_tensors()
    with torch.no_grad():
        first, second = untouched.encode_image(images[:, 0]), untouched.encode_image(images[:, 1])
        prompts = untouched.encode_text(tokenizer([f"a photo of a {name}." for name in NAMES]))
        sentences = untouched.encode_text(tokenizer([SENTENCES[name][drawn] for name in NAMES]))
        found = {}
        for name, features, ratio in (("image", first, 0.1), ("text", prompts, 0.2)):
            hidden = (features @ weights[f"head.{name}.0.weight"].T).clamp_min(0)
            adapter = (hidden @ weights[f"head.{name}.2.weight"].T).clamp_min(0)
            found[name] = ratio * adapter + (1 - ratio) * features
        logits = 1 / 0.07 * cosine(found["image"][:, None], found["text"][None])
        text = 1 - cosine(found["text"], sentences).mean()
        image = 1 - cosine(found["image"], second).mean()
        expected = {"cross_entropy": F.cross_entropy(logits, labels), "consistency_image": image}
        expected |= {"consistency_text": text, "total": expected["cross_entropy"] + 2 * (text + image)}
    for step in (model, TrainStep(model)):
        losses = step(images, labels, drawn=torch.tensor(drawn)).losses
        assert set(losses) == set(expected)
        for name, value in expected.items():
            assert losses[name].item() == pytest.approx(value.item(), rel=1e-5), name


def test_a_recorded_step_reads_what_is_copied_into_its_inputs(tokenizer):
    """Both views and the number of the sentence, as CUDA graphs replay it; without momentum and rate nothing moves."""
    model = make_tuned(tokenizer, "another view and sentences")
    step = TrainStep(model)
    optimizer = torch.optim.SGD(model.adapted.trained().values(), lr=0.0, fused=True)
    device_step = DeviceStep(step, optimizer, torch.amp.GradScaler("cpu", enabled=False))
    (images, labels), _ = inputs_of(model)
    own = StepInputs(labels, images, drawn=torch.tensor(0)).clone()
    for number, pixels in ((1, images), (2, images), (2, images.flip(1))):
        own.copy_(StepInputs(labels, pixels, drawn=torch.tensor(number)))
        device_step(own)
        expected = model(pixels, labels, torch.tensor(number)).losses
        for name in ("consistency_image", "consistency_text", "total"):
            value = device_step.losses[device_step.names.index(name)]
            assert value.item() == pytest.approx(expected[name].item(), rel=1e-4)


def test_the_frozen_pass_of_another_view_shares_nothing(tokenizer):
    def plan(**changes):
        model = make_tuned(tokenizer, "adapters, another view and sentences")
        model.loss = LossConfig(0, 0, 1, 1, **changes)
        return Plan.of(TrainStep(model), 8)

    one, two = plan(), plan(second_view=True)
    assert two.cost.image_frozen == pytest.approx(one.cost.image_frozen + one.cost.image_prefix)
    assert two.cost.flop - two.cost.image_frozen == pytest.approx(one.cost.flop - one.cost.image_frozen)
    assert "the frozen pass is of a second view" in str(two)
    assert "the frozen pass is of a second view" not in str(one)
    assert plan(second_view=True).without("image_prefix").flop == two.cost.flop


def test_images_of_the_wrong_number_of_views(tokenizer):
    model = make_tuned(tokenizer, "another view and sentences")
    (images, labels), drawn = inputs_of(model)
    other = make_tuned(tokenizer, "words")
    for step in (model, TrainStep(model)):
        with pytest.raises(
            InputError, match=r"shape \[4, 3, 32, 32\], which is not 2 views, .*; valid: \[n, 2, 3, size"
        ):
            step(images[:, 0], labels, **drawn)
    for step in (other, TrainStep(other)):
        with pytest.raises(
            InputError, match=r"shape \[4, 2, 3, 32, 32\], which is not one view of each; valid: \[n, 3"
        ):
            step(images, labels)


def test_a_step_is_told_which_sentence(tokenizer):
    model = make_tuned(tokenizer, "another view and sentences")
    (images, labels), drawn = inputs_of(model)
    for step in (model, TrainStep(model)):
        with pytest.raises(
            InputError, match=r"drawn is None, but there are 3 sentences a class; valid: a number below 3"
        ):
            step(images, labels)
    # Of other classes there are none: they can be classified, and not trained on.
    model.set_classes(["hen", "cow"], "a photo of a {}.")
    assert model.eval()(images[:, 0], labels.clamp(max=1)).logits.shape == (4, 2)
    with pytest.raises(InputError, match=r"sentences for the first classes of the model alone"):
        model.train()(images, labels.clamp(max=1), **drawn)


def test_what_does_not_go_together(tokenizer):
    def make(prompt, loss, **changes):
        config = TunerConfig(RMAdapterConfig(layers="none"), prompt)
        adapted = inject(small_clip(), config, tokenizer=tokenizer, template="a photo of a {}.", class_names=NAMES)
        return RMAdapterCLIP(adapted, tokenizer, NAMES, loss=loss, **changes)

    with pytest.raises(
        InputError, match=r"second_view is True, but prompt.per_image reads .* the first view; valid: False"
    ):
        make(PromptConfig(4, per_image=True), LossConfig(0, 0, 1, 0, second_view=True))
    make(PromptConfig(4, per_image=True), LossConfig(0, 0, 0, 0, second_view=True))  # nothing reads it
    with pytest.raises(InputError, match=r"loss.sentences has none for class 'dog'"):
        make(PromptConfig(4), WEIGHTS, sentences={"cat": ["a"], NAMES[1]: ["b"]})
    with pytest.raises(InputError, match=r"prompt 'it purrs and it purrs .* is longer than the model's context of 77"):
        make(PromptConfig(4), WEIGHTS, sentences={name: [" and ".join(["it purrs"] * 30)] for name in NAMES})
    with pytest.raises(
        InputError, match=r"loss.sentences is 's.json', but loss.target is 'prompt'; valid: loss.target"
    ):
        LossConfig(sentences="s.json")


def test_nothing_is_kept_of_sentences_without_that_shortcut(tokenizer):
    step = TrainStep(make_tuned(tokenizer, "another view and sentences"), StepConfig(frozen_targets=False))
    step.prepare()
    assert [classes.target for classes in step._classes] == [None] * len(step._classes)
    kept = TrainStep(make_tuned(tokenizer, "another view and sentences"))
    kept.prepare()
    assert sum(classes.target.shape[1] for classes in kept._classes) == len(NAMES)
    assert {classes.target.shape[0] for classes in kept._classes} == {3}
