"""Results and gradients of the operator against the reference under autograd, in fp64."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_cases import WEIGHTS, against_reference, make_case, run

from rmadapter_kernels import ACTIVATIONS, OBJECTIVES, rm_adapter
from rmadapter_kernels.eager import activation_backward
from rmadapter_kernels.reference import reference


def test_the_reference_is_the_method():
    """The equations once more, without a word of the reference's code."""
    case = make_case(scale=0.3)
    x, (w_down, b_down, w_up, b_up, w_rec1, b_rec1, w_rec2, b_rec2) = case.x, case.weights

    def gelu(t):
        return t * 0.5 * (1 + torch.erf(t / 2**0.5))

    z = gelu(torch.einsum("abd,dr->abr", x, w_down) + b_down)
    rec = gelu(z @ w_rec1 + b_rec1) @ w_rec2 + b_rec2
    out, loss = reference(x, *case.weights, residual=case.residual, scale=0.3)
    torch.testing.assert_close(out, case.residual + 0.3 * (z @ w_up + b_up))
    torch.testing.assert_close(loss, ((x - rec) ** 2).sum(-1))
    torch.testing.assert_close(reference(x, *case.weights, objective="l1")[1], (x - rec).abs().sum(-1))
    cosine = torch.nn.functional.cosine_similarity(x, rec, dim=-1)
    torch.testing.assert_close(reference(x, *case.weights, objective="cosine")[1], 1 - cosine)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("norm", [False, True])
def test_every_flag(activation, objective, norm):
    for local, residual, c in itertools.product((True, False), (True, False), (1.0, 40.0)):
        case = make_case(
            residual=residual,
            norm=norm,
            scale=0.3,
            activation=activation,
            objective=objective,
            local_reconstruction=local,
            branch_grad_scale=c,
        )
        against_reference(case)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", [False, True])
def test_without_reconstruction(activation, norm):
    case = make_case(reconstruct=False, norm=norm, scale=0.3, activation=activation, branch_grad_scale=7.0)
    against_reference(case)
    assert rm_adapter(case.x, *case.weights)[1].shape == (0,)


@pytest.mark.parametrize("affine", [(True, False), (False, True), (False, False)])
def test_norm_without_weight_or_bias(affine):
    case = make_case(norm=True, local_reconstruction=False)
    case.norm = (*(t if kept else None for t, kept in zip(case.norm, affine, strict=False)), 1e-3)
    against_reference(case)


@pytest.mark.parametrize("use", ["out", "loss"])
@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("norm", [False, True])
def test_one_result_unused(use, local, norm):
    against_reference(make_case(local_reconstruction=local, norm=norm), use=use)


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("trained", [{"x"}, {"residual"}, {"w_rec1"}, {"b_rec2"}, {"w_down", "b_up"}, {"b_down"}])
def test_partly_frozen(local, trained):
    frozen = tuple({"x", "residual", *WEIGHTS} - trained)
    case = make_case(local_reconstruction=local, branch_grad_scale=3.0)
    against_reference(case, frozen=frozen)
    assert {name for name in run(case, frozen=frozen) if name.startswith("grad")} == {f"grad {n}" for n in trained}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("norm", [False, True])
def test_gradcheck_of_all_inputs(objective, norm):
    """Without the local cut and with c = 1 the operator is an ordinary function of everything."""
    case = make_case((2,), 6, 3, 4, norm=norm, objective=objective, local_reconstruction=False, scale=0.7)
    inputs = [t.requires_grad_() for t in (case.x, case.residual, *case.weights)]
    assert torch.autograd.gradcheck(
        lambda x, residual, *w: rm_adapter(x, *w, residual=residual, norm=case.norm, **case.settings), inputs
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck_of_the_weights_with_local_reconstruction(activation):
    case = make_case((3,), 6, 3, 4, activation=activation, scale=0.7)
    weights = [w.requires_grad_() for w in case.weights]
    assert torch.autograd.gradcheck(lambda *w: rm_adapter(case.x, *w, residual=case.residual, **case.settings), weights)


@settings(max_examples=40)
@given(
    lead=st.lists(st.integers(0, 4), min_size=0, max_size=3).map(tuple),
    d=st.integers(1, 20),
    r=st.integers(1, 9),
    h=st.integers(1, 9),
    norm=st.booleans(),
    reconstruct=st.booleans(),
)
def test_any_shape(lead, d, r, h, norm, reconstruct):
    against_reference(make_case(lead, d, r, h, norm=norm, reconstruct=reconstruct, scale=0.5), tolerance=1e-10)


@pytest.mark.parametrize("lead", [(0,), (3, 0), (0, 4)])
@pytest.mark.parametrize("norm", [False, True])
def test_no_tokens_give_empty_results_and_zero_gradients(lead, norm):
    found = run(make_case(lead, norm=norm))
    assert found["out"].shape == (*lead, 12)
    assert found["rec_loss"].shape == lead
    for name in WEIGHTS:
        assert found[f"grad {name}"].shape == dict(zip(WEIGHTS, make_case().weights, strict=True))[name].shape
        assert not found[f"grad {name}"].any()


def test_a_reconstruction_of_zero_has_a_finite_cosine():
    case = make_case(objective="cosine", local_reconstruction=False)
    case.weights[6] = torch.zeros_like(case.weights[6])
    case.weights[7] = torch.zeros_like(case.weights[7])
    found = run(case)
    assert all(torch.isfinite(t).all() for t in found.values())
    assert torch.equal(found["rec_loss"], torch.ones_like(found["rec_loss"]))


def test_x_and_the_weights_are_all_that_is_kept():
    case = make_case(norm=True)
    given_tensors = {t.data_ptr() for t in (case.x, *case.weights, *case.norm[:2])}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        leaves = [w.requires_grad_() for w in case.weights]
        rm_adapter(case.x.requires_grad_(), *leaves, residual=case.residual.requires_grad_(), norm=case.norm)
    assert set(kept) == given_tensors
    assert len(kept) == len(given_tensors)


def test_nothing_needless_is_computed(monkeypatch):
    """No backward operator at all where only the residual is trained."""
    from rmadapter_kernels import functional

    forward, backward = functional.OPERATORS["eager"]
    calls = []
    monkeypatch.setitem(functional.OPERATORS, "eager", (forward, lambda *a: calls.append(a[-1]) or backward(*a)))
    run(make_case(), frozen=("x", *WEIGHTS))
    assert calls == []
    run(make_case(), frozen=("x", *WEIGHTS[1:]))
    assert calls == [[False, True] + [False] * 7]


def test_activations_far_from_zero_send_no_denormals():
    """On a CPU a product with denormals takes twenty times as long; a written-out gelu' gives them below -13."""
    x = torch.linspace(-40, -10, 2001, dtype=torch.float32)
    for name in ACTIVATIONS:
        found = activation_backward(name, torch.ones_like(x), x)
        tiny = (found != 0) & (found.abs() < torch.finfo(torch.float32).tiny)
        assert not tiny.any(), name
