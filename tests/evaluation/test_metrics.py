"""Metrics of small logits against what they are by hand."""

from __future__ import annotations

import math

import pytest
import torch

from rmadapter.evaluation.metrics import calibration_error, confusion, largest, per_class, quality

NAMES = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu"]


def test_top_5_nll_and_per_class_accuracy_by_hand():
    logits = torch.zeros(4, 7)
    logits[0, 0] = 5  # right
    logits[1, 1], logits[1, 0] = 4, 5  # the second
    logits[2] = torch.tensor([7.0, 6, 1, 5, 4, 3, 2])  # the last
    logits[3, 3] = 9  # right
    labels = torch.tensor([0, 1, 2, 3])
    found = quality(logits, labels, NAMES)
    assert (found["top1"], found["top5"]) == (50.0, 75.0)
    assert found["per_class"] == {"ant": 100.0, "bee": 0.0, "cat": 0.0, "dog": 100.0}
    nll = sum(math.log(row.exp().sum()) - float(row[label]) for row, label in zip(logits.double(), labels, strict=True))
    assert found["nll"] == pytest.approx(nll / 4, abs=1e-5)


def test_calibration_error_by_hand():
    """Three images in the bin up to 0.6, one in that up to 1: (3 |1/3 - 0.57| + |1 - 0.95|) / 4."""
    confidence = torch.tensor([0.55, 0.58, 0.58, 0.95])
    right = torch.tensor([True, False, False, True])
    assert calibration_error(confidence, right) == pytest.approx((3 * (0.57 - 1 / 3) + 0.05) / 4, abs=1e-6)
    # Fifteen bins part 0.52 from 0.55; ten would not, and their gaps would cancel.
    parted = calibration_error(torch.tensor([0.52, 0.55]), torch.tensor([True, False]))
    assert parted == pytest.approx((0.48 + 0.55) / 2)
    assert calibration_error(torch.tensor([1.0, 1.0]), torch.tensor([True, True])) == 0
    assert calibration_error(torch.full((4,), 0.75), torch.tensor([True, True, True, False])) == pytest.approx(0)


def test_a_perfectly_calibrated_model_has_almost_no_error_and_an_overconfident_one_has():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator).flatten()
    names = NAMES[:5]
    assert quality(logits, labels, names)["ece"] < 0.02
    assert quality(4 * logits, labels, names)["ece"] > 0.25


def test_the_confidence_tells_right_from_wrong():
    logits = torch.tensor([[3.0, 0.0], [2.0, 0.0], [1.0, 0.0], [0.5, 0.0]])
    assert quality(logits, torch.tensor([0, 0, 1, 1]), NAMES[:2])["auroc"] == 1.0
    assert quality(logits, torch.tensor([1, 1, 0, 0]), NAMES[:2])["auroc"] == 0.0
    assert quality(logits, torch.tensor([0, 1, 0, 1]), NAMES[:2])["auroc"] == 0.75
    for all_alike in ([0] * 4, [1] * 4):
        assert quality(logits, torch.tensor(all_alike), NAMES[:2])["auroc"] is None


def test_confidences_that_round_to_one_are_told_apart():
    """In fp32 a class that is 17 ahead of the others has a probability of 1, in fp64 one that is 37 ahead."""
    logits = torch.tensor([[90.0, 0.0, 1.0], [60.0, 0.0, 1.0], [30.0, 0.0, 1.0], [20.0, 0.0, 1.0]])
    assert quality(logits, torch.tensor([0, 0, 1, 1]), NAMES[:3])["auroc"] == 1.0
    assert quality(logits, torch.tensor([1, 0, 1, 0]), NAMES[:3])["auroc"] == 0.25


def test_the_answer_is_the_largest_logit_where_probabilities_round_to_one_number():
    logits = torch.tensor([[1e-9, 2e-9]])
    found = quality(logits, torch.tensor([1]), NAMES[:2])
    assert (found["top1"], found["per_class"]) == (100.0, {"bee": 100.0})


def test_of_equals_the_first_ones_are_among_the_first_five():
    """As top-1 counts them: a model that answers alike for all classes has not more right by one than by five."""
    logits = torch.zeros(3, 40)
    logits[1, 30:] = 1
    found = quality(logits, torch.tensor([0, 34, 5]), [str(number) for number in range(40)])
    assert (found["top1"], found["top5"]) == (pytest.approx(100 / 3), pytest.approx(200 / 3))


def test_rows_without_equals_are_not_sorted_whole(monkeypatch):
    """Of ImageNet's 50,000 tests that would be 16 s and 600 MB, for what topk has in one."""
    logits = torch.randn(400, 12, generator=torch.Generator().manual_seed(0))
    logits[1::2] = logits[1::2].round()
    argsort, rows = torch.Tensor.argsort, []
    expected = logits.argsort(dim=-1, descending=True, stable=True)
    monkeypatch.setattr(
        torch.Tensor, "argsort", lambda self, **options: rows.append(len(self)) or argsort(self, **options)
    )
    for count in (1, 3, 12, 20):
        assert torch.equal(largest(logits, count), expected[:, :count])
    assert all(0 < each <= 200 for each in rows)
    assert largest(logits[:0], 3).shape == (0, 3)


def test_a_row_of_the_confusion_matrix_is_the_true_class():
    predicted, labels = torch.tensor([1, 1, 2, 0]), torch.tensor([0, 0, 2, 0])
    counts = confusion(predicted, labels, 3)
    assert counts.tolist() == [[1, 2, 0], [0, 0, 0], [0, 0, 1]]
    assert per_class(counts, ["a", "b", "c"]) == {"a": pytest.approx(100 / 3, abs=1e-5), "c": 100.0}


def test_classes_of_one_name_are_told_apart():
    assert per_class(confusion(torch.tensor([0, 0]), torch.tensor([0, 1]), 2), ["crane", "crane"]) == {
        "crane (label 0)": 100.0,
        "crane (label 1)": 0.0,
    }
