"""The loss terms, each against numbers worked out by hand or by its definition."""

from __future__ import annotations

import pytest
import torch

from rmadapter.config import LossConfig
from rmadapter.objectives.losses import consistency, gradient_norms, reconstruction, total


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


def test_total():
    names = ["cross_entropy", "reconstruction_vision", "reconstruction_text", "consistency_image", "consistency_text"]
    terms = {name: torch.tensor(10.0**power) for power, name in enumerate(names)}
    assert total(terms, LossConfig(2, 3, 4, 5)).item() == 1 + 20 + 300 + 4000 + 50000
    assert total({"cross_entropy": terms["cross_entropy"]}, LossConfig()).item() == 1


def test_gradient_norms():
    w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    unused = torch.nn.Parameter(torch.ones(2))
    terms = {"cross_entropy": 3 * w.sum(), "reconstruction_text": (w * torch.tensor([3.0, 4.0])).sum()}
    norms = gradient_norms(terms, LossConfig(lambda2=2.0), [w, unused])
    assert norms["grad_norm_cross_entropy"] == pytest.approx(3 * 2**0.5)
    assert norms["grad_norm_reconstruction"] == pytest.approx(10)
    assert w.grad is None
    sum(terms.values()).backward()  # the graph is still there
