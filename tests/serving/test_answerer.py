"""Probabilities and reconstruction errors of many requests at a time, against one at a time and against other code."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import run_config
from open_clip import SimpleTokenizer
from PIL import Image
from served_cases import NAMES, picture, served_model

from rmadapter.cli import main
from rmadapter.data import eval_transform
from rmadapter.errors import InputError
from rmadapter.evaluation.calibration import Calibration
from rmadapter.evaluation.class_texts import ClassTexts
from rmadapter.serving.answerer import Answerer, Asked, ClassQuestion
from rmadapter.training.probe_run import train_probe

TEMPLATE = "a photo of a {}."


def image_of(served, seed):
    with Image.open(io.BytesIO(picture(seed))) as image:
        return eval_transform(served.backbone.preprocessing)(image)


@pytest.fixture(scope="module")
def served(base_run):
    return served_model(base_run / "adapter")


def test_a_batch_answers_as_each_request_alone(served):
    questions = [
        ClassQuestion(NAMES, served.template),
        ClassQuestion(NAMES[::-1], served.template),
        ClassQuestion(NAMES, "a drawing of a {}."),
        ClassQuestion(NAMES, served.template, 0.5),
        ClassQuestion(NAMES, served.template),
    ]
    several = [Asked(image_of(served, seed), question, seed != 1) for seed, question in enumerate(questions)]
    together = Answerer(served)(several)
    for asked, answer in zip(several, together, strict=True):
        (alone,) = Answerer(served)([asked])
        for one, other in ((answer.zeroshot, alone.zeroshot), (answer.adapted, alone.adapted)):
            assert one == pytest.approx(other, abs=1e-6)
        assert len(answer.errors) == (2 if asked.errors else 0)
        for one, other in zip(answer.errors, alone.errors, strict=True):
            torch.testing.assert_close(one, other)
    assert together[0].adapted != pytest.approx(together[3].adapted, abs=1e-3)


def test_strength_0_is_zero_shot(served):
    (answer,) = Answerer(served)([Asked(image_of(served, 0), ClassQuestion(NAMES, served.template, 0.0))])
    assert answer.adapted == pytest.approx(answer.zeroshot, abs=1e-6)
    (answer,) = Answerer(served)([Asked(image_of(served, 0), ClassQuestion(NAMES, served.template))])
    assert answer.adapted != pytest.approx(answer.zeroshot, abs=1e-3)


def test_errors_are_those_of_the_training_pass(served):
    """By the hooks of the plain step, in training mode: what the loss is made of."""
    image = image_of(served, 0)
    (answer,) = Answerer(served)([Asked(image, ClassQuestion(NAMES, served.template), errors=True)])
    adapted = served.model.adapted
    adapted.train()
    try:
        with adapted.collect("vision") as losses:
            adapted.clip.encode_image(image[None])
    finally:
        adapted.eval()
    assert served.layers == [2, 3]
    for error, loss in zip(answer.errors, losses, strict=True):
        assert error.shape == (2, 2)
        torch.testing.assert_close(error.flatten(), loss[0, 1:].detach() / 64)  # without the class token, a channel


def test_classes_that_do_not_fit_are_no_matter_of_the_others(served):
    fine = Asked(image_of(served, 0), ClassQuestion(NAMES, served.template))
    long = replace(fine, question=ClassQuestion(("ant", "bee " * 80), served.template))
    answers = Answerer(served)([fine, long])
    assert sum(answers[0].adapted) == pytest.approx(1, abs=1e-5)
    assert isinstance(answers[1], InputError)


def test_text_features_are_kept_as_many_as_allowed(served, monkeypatch):
    calls, real = [], ClassTexts.features

    def features(self, model):
        calls.append((tuple(self.names), model is served.zeroshot))
        return real(self, model)

    monkeypatch.setattr(ClassTexts, "features", features)
    answerer, image = Answerer(served, most_kept=2), image_of(served, 0)

    def found(*questions):
        calls.clear()
        asked = (ClassQuestion(names, served.template, strength) for names, strength in questions)
        return answerer([Asked(image, question) for question in asked])

    one, other, third = NAMES, NAMES[:2], NAMES[2:]
    first, _ = found((one, 1.0), (other, 1.0))
    assert calls == [(one, False), (one, True), (other, False), (other, True)]
    again, _ = found((one, 1.0), (other, 1.0))
    assert not calls
    assert again.adapted == pytest.approx(first.adapted, abs=1e-6)
    found((one, 0.5))  # the frozen model's are the same; the tuned model's of `one` at 1 fall out
    assert calls == [(one, False)]
    found((third, 1.0), (one, 1.0))
    assert calls == [(third, False), (third, True), (one, False)]


@pytest.mark.parametrize("adapted", [True, False])
def test_classes_that_take_turns_are_tokenised_once(base_run, clip_folder, monkeypatch, adapted):
    asked_for, real = [], SimpleTokenizer.__call__

    def tokens(self, texts, context_length=None):
        asked_for.append(texts)
        return real(self, texts, context_length)

    monkeypatch.setattr(SimpleTokenizer, "__call__", tokens)
    served = served_model(base_run / "adapter") if adapted else served_model(None, model=f"local-dir:{clip_folder}")
    answerer, image = Answerer(served), image_of(served, 0)

    def found():
        asked_for.clear()
        return answerer([Asked(image, ClassQuestion(names, TEMPLATE)) for names in (NAMES, NAMES[::-1])])

    first = found()
    assert len(asked_for) <= 4  # each list with the model's context, and with room for one token more
    again = found()
    assert not asked_for
    for one, other in zip(first, again, strict=True):
        assert one.zeroshot == pytest.approx(other.zeroshot, abs=1e-6)


def test_a_calibration_is_used_where_it_holds(base_run, animals, tmp_path):
    folder = shutil.copytree(base_run / "adapter", tmp_path / "adapter")
    own = served_model(folder)
    calibrate = ["calibrate", "--adapter", str(folder), "--data", str(animals), "--workers", "0", "--precision", "fp32"]
    assert main(calibrate) == 0
    served, calibration = served_model(folder), Calibration.load(folder)
    asked = Asked(image_of(served, 0), ClassQuestion(("ant", "bee"), served.template))
    (before,), (after,) = Answerer(own)([asked]), Answerer(served)([asked])
    assert after.temperature == calibration.temperature
    assert after.adapted == pytest.approx(calibration.calibrated(torch.tensor([before.adapted]))[0].tolist(), abs=1e-6)
    assert after.zeroshot == pytest.approx(before.zeroshot, abs=1e-6)
    (other,) = Answerer(served)([replace(asked, question=ClassQuestion(NAMES, served.template))])
    assert other.temperature is None
    asked_and_own = f"classes are {', '.join(map(repr, NAMES))}, and it is of the classes 'ant', 'bee'"
    assert other.notes == (f"the calibration beside the adapter is not used: {asked_and_own}",)


def test_the_base_model_alone(clip_folder):
    served = served_model(None, model=f"local-dir:{clip_folder}")
    (answer,) = Answerer(served)([Asked(image_of(served, 0), ClassQuestion(NAMES, served.template), errors=True)])
    assert (answer.adapted, answer.errors) == (None, ())
    assert sum(answer.zeroshot) == pytest.approx(1, abs=1e-5)
    assert "no adapter" in served.reconstruction_obstacle
    assert served.class_names == ()


def test_a_linear_probe(animals, clip_folder, tmp_path):
    train_probe(run_config(animals, clip_folder, tmp_path / "run", evaluate=False))
    served = served_model(tmp_path / "run" / "adapter")
    answerer = Answerer(served)
    answer, turned, again = (
        answerer([Asked(image_of(served, 0), ClassQuestion(names, served.template))])[0]
        for names in (("bee", "ant"), ("ant", "bee"), ("bee", "ant"))
    )
    assert answer.adapted != pytest.approx(answer.zeroshot, abs=1e-3)
    assert again.adapted == pytest.approx(answer.adapted, abs=1e-6)  # with the biases of the classes at hand
    assert turned.adapted[::-1] == pytest.approx(answer.adapted, abs=1e-6)
    assert "linear probe" in served.reconstruction_obstacle
    assert "linear probes have no number" in served.model.strength_obstacle


def test_words_that_the_small_clip_does_not_know_are_named():
    served = served_model(None, model="emoji-clip")
    asked = Asked(image_of(served, 0), ClassQuestion(("pizza", "qwertz"), served.template))
    (answer,) = Answerer(served)([asked])
    assert answer.notes == ("emoji-clip was not pretrained on 'qwertz': what it says of such a class is chance",)
