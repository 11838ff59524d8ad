"""Temperature and conformal sets on drawn logits and on the test bed: what they state holds, over twenty draws."""

from __future__ import annotations

import math

import pytest
import torch

from rmadapter.clip.backbone import load_backbone
from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.data import load_data
from rmadapter.data.catalog import zeroshot_template
from rmadapter.errors import InputError
from rmadapter.evaluation.answers import answers_of, encode
from rmadapter.evaluation.calibration import fit_temperature
from rmadapter.evaluation.conformal import SCORES, class_scores, conformal_sets, threshold, true_scores
from rmadapter.evaluation.eval_images import Loading
from rmadapter.evaluation.metrics import quality

DRAWS, CLASSES = 20, 12


def drawn(seed: int, images: int, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a model that is ``1 / temperature`` times as sure as it may be, and labels; hard and easy images."""
    generator = torch.Generator().manual_seed(seed)
    sharpness = 4 * torch.rand(images, 1, generator=generator)
    logits = sharpness * torch.randn(images, CLASSES, generator=generator)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator).flatten()
    return logits * temperature, labels


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("coverage", [0.8, 0.9])
@pytest.mark.parametrize("score", SCORES)
def test_sets_have_the_stated_coverage_however_sure_the_model_is(score, coverage, temperature):
    """Over the draws not below it but for chance, and above it by no more than 1 / (n + 1) and chance."""
    hits, sizes = [], []
    for seed in range(DRAWS):
        logits, labels = drawn(seed, 100 + 1000, temperature)
        probabilities = logits.softmax(-1)
        scores = true_scores(score, probabilities[:100], labels[:100])
        sets = conformal_sets(score, probabilities[100:], scores, coverage)
        hits.append(float(sets.gather(-1, labels[100:, None]).double().mean()))
        sizes.append(float(sets.sum(-1).double().mean()))
    mean = sum(hits) / DRAWS
    # A draw's coverage deviates by sqrt(c (1 - c) / 100), at most 0.04; the mean of twenty by 0.009.
    assert mean > coverage - 0.02
    assert mean < coverage + 0.03
    assert sum(sizes) / DRAWS < 0.8 * CLASSES


@pytest.fixture(scope="module")
def emoji_answers():
    """Probabilities and labels of the small CLIP, zero-shot, for all test images of a group among all its names."""
    backbone = load_backbone("emoji-clip")
    data = load_data("emoji_food", style="fluent")
    model = CLIPClassifier(backbone.clip, backbone.tokenizer, data.class_names, zeroshot_template(data.name))
    images = encode(model, data.read, data.test, Loading(backbone.preprocessing, workers=0))
    with torch.no_grad():
        answers = answers_of(model, images, model.text_features())
    return answers.logits.softmax(-1), answers.labels


@pytest.mark.parametrize("coverage", [0.8, 0.9])
@pytest.mark.parametrize("score", SCORES)
def test_sets_have_the_stated_coverage_on_the_test_bed(score, coverage, emoji_answers):
    """Twenty draws of who calibrates: the images of one draw are like those to come, as far as chance has it."""
    probabilities, labels = emoji_answers
    hits, sizes = [], []
    for seed in range(DRAWS):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        ours, theirs = order[:200], order[200:]
        scores = true_scores(score, probabilities[ours], labels[ours])
        sets = conformal_sets(score, probabilities[theirs], scores, coverage)
        hits.append(float(sets.gather(-1, labels[theirs, None]).double().mean()))
        sizes.append(float(sets.sum(-1).double().mean()))
    # A draw's coverage deviates by sqrt(c (1 - c) (1 / 200 + 1 / 680)), at most 0.032; the mean of twenty by 0.007.
    assert coverage - 0.02 < sum(hits) / DRAWS < coverage + 1 / 201 + 0.02
    # Less would not be sets of a model that is right for half of the images.
    assert 1 < sum(sizes) / DRAWS < probabilities.shape[1] / 2


def test_scores_by_hand():
    probabilities = torch.tensor([[0.2, 0.5, 0.3]])
    assert class_scores("lac", probabilities).tolist() == [pytest.approx([0.8, 0.5, 0.7])]
    assert class_scores("aps", probabilities).tolist() == [pytest.approx([0.8, 0.0, 0.5])]
    assert true_scores("aps", probabilities.expand(3, -1), torch.tensor([0, 1, 2])) == pytest.approx([0.0, 0.5, 0.8])


def test_the_quantile_is_the_one_of_a_further_image():
    scores = [0.1 * number for number in range(1, 10)]
    assert threshold(scores, 0.9) == scores[8]
    assert threshold(scores, 0.7) == scores[6]
    assert threshold(scores, 0.71) == scores[7]
    assert threshold(scores, 0.91) == math.inf
    assert threshold([], 0.1) == math.inf


def test_no_set_is_empty_and_too_few_images_give_every_class():
    sure = torch.tensor([[0.99, 0.005, 0.005]])
    for score in SCORES:
        assert conformal_sets(score, sure, [0.0] * 99, 0.9).tolist() == [[True, False, False]]
        assert conformal_sets(score, sure, [0.1] * 5, 0.9).tolist() == [[True, True, True]]
    with pytest.raises(InputError, match=r"coverage is 1.5; valid: a number >= 0 and <= 1"):
        conformal_sets("lac", sure, [0.1], 1.5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_spoilt_the_logits_is_found(temperature):
    logits, labels = drawn(0, 20_000, temperature)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.05)
    names = [str(number) for number in range(CLASSES)]
    before, after = (quality(logits / t, labels, names) for t in (1, found))
    assert after["nll"] <= before["nll"]
    assert after["ece"] < 0.02


def test_where_every_answer_is_right_the_temperature_stays():
    """The likelihood of twenty such images grows without end as it gets colder; that of the images to come does not."""
    logits, labels = drawn(0, 2000, 4.0)
    right = (logits.argmax(-1) == labels).nonzero().flatten()[:20]
    assert fit_temperature(logits[right], labels[right]) == 1
    wrong = (logits.argmax(-1) != labels).nonzero().flatten()[:1]
    few = torch.cat([right, wrong])
    assert fit_temperature(logits[few], labels[few]) != 1
