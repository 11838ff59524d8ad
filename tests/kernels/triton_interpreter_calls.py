"""The Triton backend in Triton's interpreter: strides, views, in place, torch's own checks, and what is loaded when.

As triton_interpreter.py.
"""

from __future__ import annotations

import pytest
import torch
from grids import diagonal, slow
from interpreter_cases import columns, fused, name_of, permuted, poisoned, sliced  # noqa: F401
from operator_cases import WEIGHTS, make_case, run
from triton.runtime import interpreter

from rmadapter_kernels import FusedRMAdapter, available_backends, explain, functional, ops, rm_adapter, rm_adapter_
from rmadapter_kernels.reference import reference
from rmadapter_kernels.triton import configure, operators, plans, tuning


@pytest.mark.parametrize(("which", "layout"), diagonal(["x", "residual", "d_out", "all"], [permuted, sliced, columns]))
def test_strides(which, layout):
    case = make_case((3, 6), 64, 4, 4, norm=True, local_reconstruction=False).to(torch.float32)
    plain = run(case, implementation=fused)
    for name in ("x", "residual", "d_out"):
        if which in (name, "all"):
            setattr(case, name, layout(getattr(case, name)))
    found = run(case, implementation=fused)
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)
    assert found["out"].stride() == torch.empty_like(case.residual).stride()
    assert found["grad x"].stride() == torch.empty_like(case.x).stride()


def test_three_dimensions_that_do_not_collapse_and_weights_that_are_views():
    case = make_case((2, 3, 4), 64, 4, 4, norm=True, local_reconstruction=False).to(torch.float32)
    plain = run(case, implementation=fused)
    case.x = case.x.permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3)
    case.weights = [w.t().contiguous().t() if w.dim() == 2 else w.repeat_interleave(2)[::2] for w in case.weights]
    found = run(case, implementation=fused)
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("use", ["out", "loss"])
def test_gradients_that_are_zero_lie_in_views_too(use):
    """Where one result is used, no kernel writes the other's gradients; those of views go through a dense copy."""
    case = make_case((5,), 64, 4, 4).to(torch.float32)
    plain = run(case, implementation=fused, use=use)
    case.weights = [w.t().contiguous().t() if w.dim() == 2 else w for w in case.weights]
    for name, value in run(case, implementation=fused, use=use).items():
        assert torch.equal(value, plain[name]), name


@pytest.mark.parametrize("lead", [(0,), (2, 0), (4, 0, 3, 2)])
def test_no_tokens(lead):
    case = make_case(lead, 64, 4, 4).to(torch.float32)
    case.x = case.x.transpose(0, -2)
    case.residual, case.d_out, case.d_loss = (t.transpose(0, case.x.dim() - 2) for t in (
        case.residual, case.d_out, case.d_loss
    ))  # fmt: skip
    found = run(case, implementation=fused)
    assert found["rec_loss"].shape == case.x.shape[:-1]
    assert not any(found[f"grad {name}"].any() for name in WEIGHTS)
    assert rm_adapter_(case.x, *case.weights[:4], residual=case.x, backend="triton") is case.x


def test_expanded_gradients():
    case = make_case((3, 4), 64, 4, 4).to(torch.float32)
    case.d_out = torch.ones(()).expand(3, 4, 64)
    case.d_loss = torch.full((1, 1), 0.25).expand(3, 4)
    expected = run(case, implementation=reference)
    for name, value in run(case, implementation=fused).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("layout", [lambda t: t, permuted, columns])
def test_in_place(same, layout):
    case = make_case((3, 7), 64, 4, 4, norm=True, reconstruct=False).to(torch.float32)
    residual = layout(case.x if same else case.residual)
    x = residual if same else case.x
    arguments = {"norm": case.norm, "scale": 0.5}
    expected = rm_adapter(x, *case.weights, residual=residual, **arguments)[0]
    storage = residual.data_ptr()
    assert rm_adapter_(x, *case.weights[:4], residual=residual, backend="triton", **arguments) is residual
    assert residual.data_ptr() == storage
    torch.testing.assert_close(residual, expected, rtol=1e-5, atol=1e-5)
    assert residual._version > 0  # autograd refuses a backward pass that needs what was there
    negated = torch._neg_view(case.residual.contiguous())
    expected = rm_adapter(case.x, *case.weights, residual=negated.clone(), **arguments)[0]
    rm_adapter_(case.x, *case.weights[:4], residual=negated, backend="triton", **arguments)
    torch.testing.assert_close(negated, expected, rtol=1e-5, atol=1e-5)


def test_dynamo_stays_out_of_the_operators():
    """Where it has given up the frame that calls one, which this makes it do."""
    case = make_case((3,), 64, 4, 4).to(torch.float32)
    operator = ops.OPERATORS["triton"][0]

    def call(x):
        with torch.no_grad():
            return rm_adapter(x + 1, *case.weights, backend="triton")[0] * 2

    torch._dynamo.disallow_in_graph(operator)
    try:
        found = torch.compile(call, backend="eager")(case.x)
    finally:
        torch._dynamo.allow_in_graph(operator)
        torch._dynamo.reset()
    torch.testing.assert_close(found, call(case.x))


def test_backends_and_refusals():
    assert available_backends()["triton"].available
    assert explain(torch.zeros(2, 64)).backend == "eager" or "triton" not in explain(torch.zeros(2, 64)).backend
    assert explain(torch.zeros(2, 64), backend="triton").backend == "triton"
    for x, r, h, message in (
        (torch.zeros(2, 64).double(), 32, 32, "x is torch.float64; valid: torch.float32, torch.bfloat16"),
        (torch.zeros(2, 48), 32, 32, "D=48; valid: 64 to 2048 in multiples of 16"),
        (torch.zeros(2, 72), 32, 32, "D=72; valid: 64 to 2048 in multiples of 16"),
        (torch.zeros(2, 2064), 32, 32, "D=2064"),
        (torch.zeros(2, 64), 129, 32, "bottleneck r is 129; valid: 1 to 128"),
        (torch.zeros(2, 64), 32, 200, "reconstruction width h is 200; valid: 1 to 128"),
    ):
        with pytest.raises(ValueError, match=message):
            explain(x, bottleneck=r, rec_hidden=h, backend="triton")


@pytest.mark.parametrize(("layout", "reconstruct"), diagonal([None, permuted], [True, False]))
def test_opcheck(layout, reconstruct):
    case = make_case((2, 3), 64, 4, 4, reconstruct=reconstruct, norm=True, dtype=torch.float32)
    x, residual, d_out = (layout(t) if layout else t for t in (case.x, case.residual, case.d_out))
    shared = (*case.norm, *case.weights, 0.5, "gelu", "l2", False, 2.0)
    torch.library.opcheck(torch.ops.rmadapter.triton_forward.default, (x, residual, *shared))
    needs = [True] * 5 + [reconstruct] * 4
    torch.library.opcheck(
        torch.ops.rmadapter.triton_backward.default, (x, d_out, case.d_loss if reconstruct else None, *shared, needs)
    )
    torch.library.opcheck(
        torch.ops.rmadapter.triton_backward.default, (x, d_out, None, *shared, [False, True] + [False] * 7)
    )
    if not reconstruct:
        torch.library.opcheck(
            torch.ops.rmadapter.triton_forward_.default, (x, residual, *case.norm, *case.weights[:4], 0.5, "gelu")
        )


def test_opcheck_of_prepared_weights():
    case = make_case((2, 3), 64, 4, 5, norm=True, dtype=torch.float32)
    weights = [case.weights[index] for index in (0, 1, 2, 4, 6)]
    prepare = torch.ops.rmadapter.triton_prepare.default
    # Padding between the tensors in the buffer stays unwritten, so that what a compiled call makes is not compared.
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(prepare, (case.x, *case.norm, *weights), test_utils=checks)
    prepared = prepare(case.x, *case.norm, *weights)
    shared = (*case.norm, *case.weights, 0.5, "gelu", "l2", False, 2.0)
    torch.library.opcheck(torch.ops.rmadapter.triton_forward.default, (case.x, case.residual, *shared, prepared))
    torch.library.opcheck(
        torch.ops.rmadapter.triton_backward.default,
        (case.x, case.d_out, case.d_loss, *shared, [True] * 9, prepared),
        test_utils=checks,
    )


def test_forward_prepares_for_its_backward(monkeypatch):
    """Once for both; a step later the weights are others, and so is what was prepared of them."""
    monkeypatch.setattr(tuning, "LAUNCH", 0.0)
    calls = []
    prepare = plans.PreparePlan.__init__
    launch = operators.prepare
    monkeypatch.setattr(operators, "prepare", lambda *arguments: calls.append(prepare) or launch(*arguments))
    monkeypatch.setattr(ops, "PREPARE", {"triton": operators.prepare})
    monkeypatch.setattr(functional, "PREPARE", {"triton": operators.prepare})
    case = make_case((9,), 64, 4, 4, norm=True).to(torch.float32)
    for _ in range(2):
        count = len(calls)
        found = run(case, implementation=fused)
        assert len(calls) == count + 1
        expected = run(case, implementation=reference)
        for name, value in found.items():
            # Rounding of sums over tokens: of a gradient's largest elements, which are a thousand times its smallest.
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-5 * float(expected[name].abs().max()))
        case.weights = [weight * 1.5 for weight in case.weights]
    with torch.no_grad():
        count = len(calls)
        fused(case.x, *case.weights)
        assert len(calls) == count + 1


def test_kept_weights_are_those_of_the_same_strides(monkeypatch):
    monkeypatch.setattr(tuning, "LAUNCH", 0.0)
    case = make_case((9,), 64, 64, 4, reconstruct=False).to(torch.float32)
    w_down, *others = case.weights[:4]
    with configure(keep_prepared=True), torch.no_grad():
        for weight in (w_down, w_down.t(), w_down):
            found, _ = fused(case.x, weight, *others)
            torch.testing.assert_close(found, reference(case.x, weight, *others)[0], rtol=1e-4, atol=1e-4)


def test_compiled_equals_eager():
    torch._dynamo.reset()
    torch.manual_seed(0)
    adapter = FusedRMAdapter(64, bottleneck=4, scale=0.5, backend="triton")
    compiled = torch.compile(adapter, backend="aot_eager", fullgraph=True)
    for tokens in (7, 1):
        x, residual = torch.randn(2, 2, tokens, 64).unbind()
        found = []
        for call in (adapter, compiled):
            adapter.zero_grad()
            leaf = x.clone().requires_grad_()
            out, loss = call(leaf, residual, (None, None, 1e-5))
            (out.square().mean() + loss.mean()).backward()
            found.append([out, loss, leaf.grad, *(p.grad.clone() for p in adapter.parameters())])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("prepared", [False, True])
def test_vmap_over_x(prepared, monkeypatch):
    if prepared:
        monkeypatch.setattr(tuning, "LAUNCH", 0.0)
    case = make_case((3, 5), 64, 4, 4).to(torch.float32)
    out, loss = torch.func.vmap(lambda x: fused(x, *case.weights))(case.x)
    expected = fused(case.x, *case.weights)
    assert torch.equal(out, expected[0])
    assert torch.equal(loss, expected[1])


def test_a_short_training_run_ends_where_every_backend_ends():
    """On the same inputs from the same weights: the loss curves differ by far less than those of other seeds do."""
    curves = {}
    backends = [name for name, status in available_backends().items() if status.available]
    for backend, seed in [*((name, 0) for name in backends), ("eager", 1)]:
        torch.manual_seed(seed)
        adapter = FusedRMAdapter(64, bottleneck=8, scale=0.1, backend=backend)
        optimizer = torch.optim.SGD(adapter.parameters(), lr=1e-3, momentum=0.9)
        x, goal = torch.randn(2, 12, 64).unbind()
        losses = []
        for _ in range(4):
            optimizer.zero_grad()
            out, rec_loss = adapter(x, x)
            loss = (out - goal).square().mean() + rec_loss.mean() / 64
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves[backend, seed] = torch.tensor(losses)
    usual = curves["eager", 0]
    spread = (curves["eager", 1] - usual).abs().max()
    for backend in backends:
        difference = (curves[backend, 0] - usual).abs().max()
        print(f"{backend}: largest difference of the loss curves {difference:.1e}, of another seed {spread:.1e}")
        assert curves[backend, 0][-1] < curves[backend, 0][0]
        assert difference <= 1e-5 * usual.max() < spread


class Traffic:
    """Loads and stores of the interpreter by element of the tensors that are watched."""

    def __init__(self, monkeypatch, **tensors):
        self.tensors = tensors
        self.loads = {name: torch.zeros(t.numel(), dtype=torch.long) for name, t in tensors.items()}
        self.stores = {name: torch.zeros(t.numel(), dtype=torch.long) for name, t in tensors.items()}
        builder = interpreter.InterpreterBuilder
        load, store = builder.create_masked_load, builder.create_masked_store

        def masked_load(own, pointers, mask, *rest):
            self._count(self.loads, pointers.data, mask.data)
            return load(own, pointers, mask, *rest)

        def masked_store(own, pointers, value, mask, *rest):
            self._count(self.stores, pointers.data, mask.data)
            return store(own, pointers, value, mask, *rest)

        monkeypatch.setattr(builder, "create_masked_load", masked_load)
        monkeypatch.setattr(builder, "create_masked_store", masked_store)

    def _count(self, counts, addresses, mask):
        found = torch.from_numpy(addresses[mask].astype("int64")).flatten()
        for name, tensor in self.tensors.items():
            index = (found - tensor.data_ptr()) // tensor.element_size()
            inside = index[(index >= 0) & (index < tensor.numel())]
            # An element that a tile has twice, as the last row of the last block, is read once.
            counts[name][inside.unique()] += 1


def loads_of_x(objective: str, norm: bool, local: bool, need_x: bool) -> int:
    """What kernels.md allows K1: two, once more for the cosine, once more for LayerNorm or the non-local gradient."""
    return 2 + (objective == "cosine") + (need_x and (norm or not local))


@pytest.mark.parametrize(
    ("dtype", "objective", "norm", "local"),
    [
        slow(torch.float32, "l2", False, True),
        (torch.float16, "l2", False, True),
        slow(torch.bfloat16, "l2", True, True),
        slow(torch.float16, "l1", True, False),
        slow(torch.bfloat16, "l1", True, False),
        (torch.float32, "l2", False, False),
        slow(torch.float16, "cosine", False, True),
        (torch.bfloat16, "cosine", True, False),
    ],
    ids=name_of,
)
def test_traffic(dtype, objective, norm, local, monkeypatch):
    case = make_case((21,), 80, 5, 20, norm=norm, objective=objective, local_reconstruction=local).to(dtype)
    shared = (*(case.norm or (None, None, None)), *case.weights, 0.5, "gelu", objective, local, 2.0)
    forward, backward = operators.forward, operators.backward
    with monkeypatch.context() as patch:
        traffic = Traffic(patch, x=case.x, residual=case.residual)
        seen = []
        empty_like = torch.empty_like
        patch.setattr(torch, "empty_like", lambda t: seen.append(empty_like(t)) or seen[-1])
        launch = plans.TunedLaunch.__call__

        def watched(self, device, values, *rest):
            traffic.tensors["out"] = seen[0]
            for counts in (traffic.loads, traffic.stores):
                counts["out"] = torch.zeros(seen[0].numel(), dtype=torch.long)
            return launch(self, device, values, *rest)

        patch.setattr(plans.TunedLaunch, "__call__", watched)
        forward(case.x, case.residual, *shared)
    # And once more where LayerNorm's sums begin.
    most = torch.full((21, 80), 2)
    most[:, : 16 if dtype == torch.float32 else 1] += norm
    assert (traffic.loads["x"] <= most.flatten()).all()
    assert set(traffic.loads["residual"].tolist()) == {1}
    assert set(traffic.stores["out"].tolist()) == {1}
    assert not traffic.loads["out"].any()
    assert not traffic.stores["x"].any()
    for need_x in (True, False):
        with monkeypatch.context() as patch:
            traffic = Traffic(patch, x=case.x, d_out=case.d_out)
            launch = plans.TunedLaunch.__call__
            counted = []

            def watched(self, *arguments, launch=launch, traffic=traffic, counted=counted):
                before = {name: count.clone() for name, count in traffic.loads.items()}
                launch(self, *arguments)
                counted.append({name: traffic.loads[name] - before[name] for name in before})

            patch.setattr(plans.TunedLaunch, "__call__", watched)
            backward(case.x, case.d_out, case.d_loss, *shared, [need_x] + [True] * 8)
        rows, weights = counted
        most = torch.full((21, 80), loads_of_x(objective, norm, local, need_x))
        most[:, : 16 if dtype == torch.float32 else 1] += norm
        assert (rows["x"] <= most.flatten()).all()
        assert set(rows["d_out"].tolist()) == {1}
        assert set(weights["x"].tolist()) == {1}
        assert set(weights["d_out"].tolist()) == {1}


def test_precision_is_torchs_or_the_option():
    assert plans.precision_of(torch.float16) == ""
    assert plans.precision_of(torch.float32) == "ieee"
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    assert plans.precision_of(torch.float32) == "tf32"
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    assert plans.precision_of(torch.float32) == "ieee"
    with configure(fp32_precision="tf32x3"):
        assert plans.precision_of(torch.float32) == "tf32x3"
    assert plans.precision_of(torch.float32) == "ieee"
    with pytest.raises(ValueError, match="fp32_precision is 'half'; valid: None, ieee, tf32, tf32x3"):
        configure(fp32_precision="half")
