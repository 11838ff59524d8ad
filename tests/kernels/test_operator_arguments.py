"""Arguments that cannot be: each error names the argument, what it is and what is valid."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from operator_cases import WEIGHTS, make_case

from rmadapter_kernels import FusedRMAdapter, available_backends, backends, explain, rm_adapter, rm_adapter_


def call(**changes):
    case = make_case(norm=True)
    arguments = {"x": case.x, **dict(zip(WEIGHTS, case.weights, strict=True))}
    arguments |= {"residual": case.residual, "norm": case.norm}
    return rm_adapter(**{**arguments, **changes})


D = torch.zeros(12, dtype=torch.float64)
NESTED = torch.nested.as_nested_tensor([torch.zeros(2, 12)], layout=torch.jagged)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, r"x is list; valid: a floating-point tensor \[\.\.\., D\]"),
        ({"x": torch.zeros(2, 12, dtype=torch.long)}, TypeError, r"x is a tensor of torch\.int64"),
        ({"x": torch.tensor(1.0)}, ValueError, "x has no dimension"),
        ({"w_down": torch.zeros(11, 5).double()}, ValueError, r"w_down has shape \[11, 5\]; valid: \[D=12, r=5\]"),
        ({"w_up": torch.zeros(5, 11).double()}, ValueError, r"w_up has shape \[5, 11\]; valid: \[r=5, D=12\]"),
        ({"b_down": torch.zeros(4).double()}, ValueError, r"b_down has shape \[4\]; valid: \[r=5\]"),
        ({"w_rec2": torch.zeros(6, 12).double()}, ValueError, r"w_rec2 has shape \[6, 12\]; valid: \[h=7, D=12\]"),
        ({"b_up": torch.zeros(1, 12).double()}, ValueError, r"b_up has shape \[1, 12\]"),
        ({"b_rec1": None}, TypeError, "b_rec1 is None.*all of its four weights or none"),
        (
            {"w_rec1": torch.zeros(5, 0).double()},
            ValueError,
            r"w_rec1 has shape \[5, 0\]; valid: \[r=5, h\] with h >= 1",
        ),
        ({"w_rec1": None}, TypeError, "w_rec1 is None.*all of its four weights or none"),
        ({"w_up": None}, TypeError, "w_up is None"),
        ({"w_up": "no"}, TypeError, "w_up is str; valid: a tensor"),
        ({"b_up": D.half()}, TypeError, r"b_up is torch\.float16; valid: the dtype of x, torch\.float64"),
        ({"b_up": torch.zeros(12, device="meta")}, ValueError, "b_up is on meta; valid: the device of x, cpu"),
        ({"residual": D}, ValueError, r"residual has shape \[12\]; valid: that of x, \[2, 3, 12\]"),
        ({"residual": torch.zeros(2, 3, 12).half()}, TypeError, "residual is torch.float16"),
        ({"norm": (D, D)}, TypeError, r"norm is tuple; valid: \(weight or None, bias or None, eps\)"),
        ({"norm": (D, D, torch.tensor(1e-5))}, TypeError, "norm's eps is a tensor of torch.float32; valid: a float"),
        ({"norm": (D[:3], D, 1e-5)}, ValueError, r"norm's weight has shape \[3\]; valid: \[D=12\]"),
        ({"norm": (D, D.clone().requires_grad_(), 1e-5)}, ValueError, "norm's bias requires grad"),
        ({"activation": "tanh"}, ValueError, "activation is 'tanh'; valid: gelu, relu, quick_gelu, silu"),
        ({"objective": "l3"}, ValueError, "objective is 'l3'; valid: l2, l1, cosine"),
        ({"branch_grad_scale": 0.0}, ValueError, "branch_grad_scale is 0"),
        ({"activation": None}, TypeError, "activation is NoneType; valid: gelu, relu, quick_gelu, silu"),
        ({"local_reconstruction": "no"}, TypeError, "local_reconstruction is str; valid: True, False"),
        ({"backend": None}, TypeError, "backend is NoneType; valid: auto, .*eager"),
        ({"x": torch.zeros(2, 12).to(torch.float8_e4m3fn)}, TypeError, r"x is a tensor of torch\.float8_e4m3fn"),
        (
            {"x": torch.zeros(2, 12).to_sparse()},
            TypeError,
            r"x is a tensor of layout torch\.sparse_coo; valid: a",
        ),
        ({"x": NESTED}, TypeError, "x is a nested tensor; valid: a dense"),
        ({"w_up": torch.zeros(5, 12).double().to_sparse()}, TypeError, "w_up is a tensor of layout torch.sparse_coo"),
        ({"residual": torch.zeros(2, 3, 12).double().to_sparse()}, TypeError, "residual is a tensor of layout"),
        ({"backend": "nonesuch"}, ValueError, "backend is 'nonesuch'; valid: auto, .*eager"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_refusals(changes, error, message):
    with pytest.raises(error, match=message):
        call(**changes)


NO_NUMBERS = {
    "tensor": (torch.tensor(1.0), TypeError, r"is a tensor of torch\.float32; valid: a number \(a tensor would get no"),
    "parameter": (torch.nn.Parameter(torch.ones(())), TypeError, r"is a parameter of torch\.float32; valid: a number"),
    "none": (None, TypeError, "is NoneType; valid: a number"),
    "text": ("0.1", TypeError, "is str; valid: a number"),
    "bool": (True, TypeError, "is bool; valid: a number"),
    "nan": (float("nan"), ValueError, "is nan; valid: a finite number"),
    "infinite": (float("inf"), ValueError, "is inf; valid: a finite number"),
}


@pytest.mark.parametrize("kind", NO_NUMBERS)
@pytest.mark.parametrize("name", ["scale", "branch_grad_scale"])
def test_settings_are_plain_numbers(name, kind):
    """By the function, by the one in place, by the module when it is made and when its setting is changed."""
    value, error, message = NO_NUMBERS[kind]
    x, module = torch.zeros(2, 64), FusedRMAdapter(64, bottleneck=4)
    calls = [lambda: call(**{name: value}), lambda: FusedRMAdapter(64, **{name: value})]
    if name == "scale":
        calls.append(lambda: rm_adapter_(x, *list(module.parameters())[:4], residual=x, scale=value))
    for refused in calls:
        with pytest.raises(error, match=f"{name} {message}"):
            refused()
    setattr(module, name, value)
    with pytest.raises(error, match=f"{name} {message}"):
        module(x)


def test_meta_tensors_have_shapes_alone():
    case = make_case(dtype=torch.bfloat16)
    x, residual, *weights = (t.to("meta").requires_grad_() for t in (case.x, case.residual, *case.weights))
    out, loss = rm_adapter(x, *weights, residual=residual)
    assert (out.shape, out.dtype, out.device.type) == (x.shape, torch.bfloat16, "meta")
    assert (loss.shape, loss.dtype) == (x.shape[:-1], torch.float32)
    (out.sum() + loss.sum()).backward()
    for tensor in (x, residual, *weights):
        assert tensor.grad.shape == tensor.shape
    with torch.no_grad():
        assert rm_adapter_(x, *weights[:4], residual=residual) is residual
    module = FusedRMAdapter(64, bottleneck=4, device="meta")
    assert module(torch.zeros(2, 5, 64, device="meta"))[0].shape == (2, 5, 64)


def test_backends_are_explained():
    call(backend="eager")
    backends = available_backends()
    assert backends["eager"].available
    assert list(backends)[-1] == "eager"  # the fastest first
    chosen = explain(torch.zeros(2, 16))
    assert chosen.backend in backends
    assert str(chosen).startswith(chosen.backend)
    assert explain(torch.zeros(2), backend="eager").reason == "asked for by name"
    with pytest.raises(ValueError, match="nonesuch"):
        explain(torch.zeros(2), backend="nonesuch")


def test_a_call_on_the_cpu_asks_for_no_cuda_device(monkeypatch):
    """Asking makes a context, and fails in a forked process."""

    def refuse():
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess")

    entry = backends.BACKENDS["triton"]
    monkeypatch.setitem(backends.BACKENDS, "triton", replace(entry, status=refuse))
    assert explain(torch.zeros(2, 64)).backend in ("cpu", "eager")
