"""The loss terms, each against numbers worked out by hand or by its definition."""

from __future__ import annotations

import math

import pytest
import torch

from rmadapter.config import LossConfig
from rmadapter.objectives.losses import consistency, distillation, gradient_norms, reconstruction, with_total
from rmadapter.objectives.projection import project_gradients


def test_reconstruction_is_a_sum_over_layers_of_means_over_tokens_over_the_width():
    layers = [torch.tensor([[2.0, 4.0], [6.0, 8.0]]), torch.tensor([[1.0, 1.0], [1.0, 5.0]])]
    assert reconstruction(layers, "l2", 4).item() == pytest.approx((5 + 2) / 4)
    assert reconstruction(layers, "l1", 4).item() == pytest.approx((5 + 2) / 4)
    assert reconstruction(layers, "cosine", 4).item() == pytest.approx(5 + 2)


def test_tokens_after_the_end_do_not_count():
    valid = torch.tensor([[True, True], [True, False]])
    poisoned = torch.tensor([[2.0, 4.0], [6.0, float("nan")]])
    assert reconstruction([poisoned], "l2", 2, valid).item() == pytest.approx(4 / 2)


def test_consistency_is_the_mean_absolute_difference_of_unit_vectors():
    adapted, frozen = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]])
    assert consistency(adapted, frozen).item() == pytest.approx((0.6 + 0.2) / 2)
    assert consistency(adapted, 5 * adapted).item() == pytest.approx(0, abs=1e-7)


def test_the_terms_and_their_total():
    names = ["cross_entropy", "reconstruction_vision", "reconstruction_text", "consistency_image", "consistency_text"]
    terms = {name: torch.tensor(10.0**power) for power, name in enumerate(names)}
    found = with_total(terms, LossConfig(2, 3, 4, 5))
    assert found["total"].item() == 1 + 20 + 300 + 4000 + 50000
    assert list(found)[-1] == "total"
    assert with_total({"cross_entropy": terms["cross_entropy"]}, LossConfig())["total"].item() == 1


def test_gradient_norms():
    w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    unused = torch.nn.Parameter(torch.ones(2))
    terms = {"cross_entropy": 3 * w.sum(), "reconstruction_text": (w * torch.tensor([3.0, 4.0])).sum()}
    norms = gradient_norms(terms, LossConfig(lambda2=2.0), [w, unused])
    assert norms["grad_norm_cross_entropy"] == pytest.approx(3 * 2**0.5)
    assert norms["grad_norm_reconstruction"] == pytest.approx(10)
    assert w.grad is None
    sum(terms.values()).backward()  # the graph is still there


def test_the_divergence_is_over_images_and_classes():
    """By hand: two classes at probabilities 1/2 each, where the frozen model has 3/4 and 1/4."""
    frozen = torch.tensor([[3.0, 1.0]]).log()
    value = (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)) / 2
    assert distillation(torch.zeros(1, 2), frozen).item() == pytest.approx(value, rel=1e-5)


def test_the_cosine_distance():
    one, other = torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 1.0], [0.0, 2.0]])
    assert consistency(one, other, "cosine").item() == pytest.approx((1 - 0.5**0.5) / 2, rel=1e-6)


def test_the_gradient_s_part_against_another_is_taken_out():
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    weight.grad = torch.tensor([-3.0, 4.0])
    project_gradients(weight[0] * 2, [weight], 1.0)  # its gradient is along the first axis, against the one there
    assert weight.grad.tolist() == [0.0, 4.0]
    project_gradients(weight[1] * 5, [weight], 1.0)  # along it: nothing to take out
    assert weight.grad.tolist() == [0.0, 4.0]
    weight.grad = torch.tensor([-3.0, 4.0])
    project_gradients(weight[0], [weight], 0.5)
    assert weight.grad.tolist() == [-1.5, 4.0]
