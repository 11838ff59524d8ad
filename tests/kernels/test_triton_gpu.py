"""The Triton backend on a CUDA device: what neither interpreter nor compiler shows. bench/gpu_check.py runs it."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import math
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from operator_cases import WEIGHTS, Case, make_case, run

from rmadapter_kernels import FusedRMAdapter, explain, rm_adapter, rm_adapter_
from rmadapter_kernels.reference import reference

pytestmark = pytest.mark.gpu

fused = functools.partial(rm_adapter, backend="triton")
KINDS = {
    "bf16": (torch.bfloat16, None),
    "fp16": (torch.float16, None),
    "tf32": (torch.float32, "tf32"),
    "tf32x3": (torch.float32, "tf32x3"),
    "ieee": (torch.float32, "ieee"),
}


def on(case: Case, device: torch.device | str) -> Case:
    """The case on a device."""
    moved = copy.copy(case)
    moved.x, moved.d_out, moved.d_loss = (t.to(device) for t in (case.x, case.d_out, case.d_loss))
    moved.residual = case.residual if case.residual is None else case.residual.to(device)
    moved.weights = [w if w is None else w.to(device) for w in case.weights]
    moved.norm = case.norm and (*(t if t is None else t.to(device) for t in case.norm[:2]), case.norm[2])
    return moved


@contextlib.contextmanager
def kind_in_force(kind: str):
    """One dtype and kind of product, in torch and in the kernels."""
    from rmadapter_kernels.triton import configure

    _, precision = KINDS[kind]
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        with configure(fp32_precision=precision):
            yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm().clamp_min(1e-30))


def judge(case: Case, kind: str, weight_dtype: torch.dtype | None = None, **how) -> None:
    """No larger an error against fp64 than autograd through the reference has in this dtype, and a few roundings."""
    with kind_in_force(kind):
        _judge(case, kind, weight_dtype, **how)


def _judge(case: Case, kind: str, weight_dtype: torch.dtype | None, **how) -> None:
    dtype, precision = KINDS[kind]
    narrow = on(case.to(dtype, weight_dtype), "cuda")
    exact = run(narrow.to(torch.float64), implementation=reference, **how)
    theirs = run(narrow, implementation=reference, **how)
    for _ in range(2):  # through Triton's launcher, then through the compiled kernel
        ours = run(narrow, implementation=fused, **how)
        eps = {"tf32": 2**-11, "tf32x3": 2**-21}.get(precision, torch.finfo(dtype).eps)
        for name, value in ours.items():
            if not value.numel() or name not in exact:
                assert not value.any(), name
                continue
            assert torch.isfinite(value).all(), name
            # l1's gradient jumps where rec crosses x, at other elements for each way of rounding.
            factor = 3 if case.settings.get("objective") == "l1" else 1
            bound = factor * relative(theirs[name], exact[name]) + 4 * eps
            if precision in ("ieee", "tf32x3"):
                bound += eps * case.x.shape[-1] ** 0.5 * 4
            error = relative(value, exact[name])
            assert error <= bound, f"{name}: {error:.1e}, valid: {bound:.1e}"


def test_every_kernel_once():
    """Small enough for compute-sanitizer: the prepare kernel and all others, in bf16 and in fp16."""
    from rmadapter_kernels.triton import tuning

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "LAUNCH", 0.0)
        for kind in ("bf16", "fp16"):
            judge(make_case((150,), 256, 16, 16, norm=True, local_reconstruction=False), kind, torch.float32)


FLAGS = [(objective, norm, local) for objective in ("l2", "l1", "cosine") for norm in (False, True)
         for local in (False, True)]  # fmt: skip
# Every flag in 16 bits, which are used, and in fp32 those of the defaults and the most demanding of each objective.
FLAGS_OF_KINDS = [
    *(pytest.param(kind, *flags, marks=pytest.mark.telling) for kind in ("bf16", "fp16") for flags in FLAGS),
    *((kind, *flags) for kind in ("tf32", "tf32x3", "ieee")
      for flags in (("l2", False, True), ("l2", True, False), ("l1", True, False), ("cosine", True, True))),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "objective", "norm", "local"), FLAGS_OF_KINDS)
@pytest.mark.parametrize("tokens", [788, 3152])
def test_every_flag(kind, objective, norm, local, tokens):
    """Below and above the number of tokens from which weights are prepared."""
    if tokens == 3152 and kind not in ("bf16", "fp16"):
        tokens = 2364
    settings = {"norm": norm, "objective": objective, "local_reconstruction": local}
    case = make_case((tokens // 197, 197), 768, 32, 32, scale=0.5, branch_grad_scale=2.0, **settings)
    judge(case, kind, torch.float32)


@pytest.mark.parametrize(("kind", "activation"), [("bf16", "gelu"), ("bf16", "relu"), ("fp16", "quick_gelu"),
                                                  ("ieee", "silu"), ("tf32", "gelu")])  # fmt: skip
def test_every_activation(kind, activation):
    judge(make_case((300,), 512, 16, 16, activation=activation, scale=0.5), kind)


@pytest.mark.parametrize(
    ("kind", "lead", "d", "r", "h"),
    [
        ("bf16", (1,), 64, 1, 1),
        ("fp16", (1, 1), 2048, 128, 128),
        ("tf32", (33,), 1152, 3, 17),
        pytest.param("bf16", (77, 50), 512, 64, 64, marks=pytest.mark.telling),
        ("tf32x3", (5, 7), 80, 33, 128),
        pytest.param("bf16", (6304,), 768, 32, 32, marks=pytest.mark.telling),
        ("ieee", (6304,), 768, 32, 32),
        pytest.param("bf16", (70000,), 1024, 16, 64, marks=pytest.mark.telling),
        ("fp16", (70000,), 768, 32, 32),
        ("fp16", (17,), 1664, 100, 5),
        ("bf16", (3,), 208, 5, 5),
        ("bf16", (1000,), 768, 128, 128),
        ("ieee", (1000,), 768, 128, 128),
    ],
)
def test_shapes(kind, lead, d, r, h):
    judge(make_case(lead, d, r, h, norm=True, local_reconstruction=False, scale=0.5), kind)


@pytest.mark.parametrize("use", ["out", "loss"])
@pytest.mark.parametrize("trained", [{"x"}, {"w_rec1"}, {"b_rec2"}, {"b_up"}, {"w_down"}, {"w_up"}])
def test_partly_used_and_partly_frozen(use, trained):
    frozen = tuple({"x", "residual", *WEIGHTS} - trained)
    judge(make_case((130,), 256, 8, 8, local_reconstruction=False, norm=True), "bf16", use=use, frozen=frozen)


@pytest.mark.parametrize("kind_name", ["bf16", "ieee"])
def test_bit_equal_runs_and_64_bit_addresses(kind_name, monkeypatch):
    from rmadapter_kernels.triton import operators, plans

    dtype = KINDS[kind_name][0]
    case = on(make_case((8, 1001), 768, 32, 32, norm=True, local_reconstruction=False).to(dtype, torch.float32), "cuda")
    first = run(case, implementation=fused)
    runs = [run(case, implementation=fused) for _ in range(5)]
    monkeypatch.setattr(plans, "force_index64", True)
    operators.forget_plans()
    runs.append(run(case, implementation=fused))
    monkeypatch.undo()
    operators.forget_plans()
    for found in runs:
        for name, value in first.items():
            assert torch.equal(found[name], value), name


def test_offsets_beyond_31_bits():
    """Rows 2^30 elements apart: the third lies behind 2^31."""
    case = on(make_case((3,), 768, 32, 32, norm=True, local_reconstruction=False).to(torch.bfloat16), "cuda")
    near = run(case, implementation=fused)
    memory = torch.empty(2**31 + 768, dtype=torch.bfloat16, device="cuda")
    case.x = memory.as_strided((3, 768), (2**30, 1)).copy_(case.x)
    far = run(case, implementation=fused)
    for name, value in near.items():
        assert torch.equal(far[name], value), name


@pytest.mark.telling
@pytest.mark.parametrize("offset", [0, 1, 8])
@pytest.mark.parametrize("name", ["x", "residual", "d_out", "w_down"])
def test_alignment_of_pointers(name, offset):
    """Compiled for aligned pointers, a kernel must not be launched with others."""
    case = on(make_case((100,), 256, 7, 7, norm=True, local_reconstruction=False).to(torch.bfloat16), "cuda")
    plain = run(case, implementation=fused)
    tensor = case.weights[0] if name == "w_down" else getattr(case, name)
    memory = torch.empty(tensor.numel() + offset, dtype=tensor.dtype, device="cuda")
    shifted = memory[offset:].view(tensor.shape).copy_(tensor)
    if name == "w_down":
        case.weights[0] = shifted
    else:
        setattr(case, name, shifted)
    for key, value in run(case, implementation=fused).items():
        assert torch.equal(value, plain[key]), key


def step(adapter, x, residual):
    adapter.zero_grad()
    out, loss = adapter(x, residual, (None, None, 1e-5))
    (out.float().square().mean() + loss.mean()).backward()
    return [out, loss, x.grad, *(p.grad for p in adapter.parameters())]


@pytest.mark.telling
def test_cuda_graph_replays_with_new_inputs():
    torch.manual_seed(0)
    adapter = FusedRMAdapter(768, scale=0.5, device="cuda")
    x, residual = torch.randn(2, 1000, 768, device="cuda", dtype=torch.bfloat16).unbind()
    x = x.requires_grad_()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            x.grad = None
            step(adapter, x, residual)
    torch.cuda.current_stream().wait_stream(side)
    x.grad = None
    adapter.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(adapter, x, residual)
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
        for parameter in adapter.parameters():
            parameter.mul_(1.5)
    graph.replay()
    found = [t.clone() for t in captured]
    leaf = x.detach().clone().requires_grad_()
    other = copy.deepcopy(adapter)
    for one, expected in zip(found, step(other, leaf, residual), strict=True):
        assert torch.equal(one, expected)


@pytest.mark.telling
def test_launches_go_to_the_current_stream():
    """A long kernel on a side stream writes x; only work of the same stream sees what it wrote."""
    adapter = FusedRMAdapter(768, scale=0.5, device="cuda").eval()
    x = torch.zeros(4096, 768, device="cuda", dtype=torch.bfloat16)
    fresh = torch.randn_like(x)
    with torch.no_grad():
        expected = adapter(fresh)[0]
        adapter(x)
        torch.cuda.synchronize()
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            torch.cuda._sleep(200_000_000)
            x.copy_(fresh)
            found = adapter(x)[0]
        side.synchronize()
    assert torch.equal(found, expected)


@pytest.mark.telling
def test_two_threads_and_two_streams():
    from concurrent.futures import ThreadPoolExecutor

    adapter = FusedRMAdapter(512, scale=0.5, device="cuda")
    xs = torch.randn(2, 3000, 512, device="cuda", dtype=torch.bfloat16)
    torch.cuda.synchronize()

    def work(x):
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                leaf = x.clone().requires_grad_()
                out, loss = adapter(leaf, x)
                (gradient,) = torch.autograd.grad(out.sum() + loss.sum(), leaf)
            torch.cuda.current_stream().synchronize()
        return gradient

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(work, xs))
    for gradient, x in zip(found, xs, strict=True):
        assert torch.equal(gradient, work(x))


def test_a_second_device():
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    case = make_case((100,), 256, 8, 8, norm=True).to(torch.bfloat16, torch.float32)
    first = run(on(case, "cuda:0"), implementation=fused)
    for _ in range(2):
        second = run(on(case, "cuda:1"), implementation=fused)
    for name, value in first.items():
        assert torch.equal(second[name].cpu(), value.cpu()), name
    assert torch.cuda.current_device() == 0
    with pytest.raises(ValueError, match="w_down is on cuda:0; valid: the device of x, cuda:1"):
        fused(case.x.to("cuda:1"), *(w.to("cuda:0") for w in case.weights))


@pytest.mark.parametrize("mode", ["default", "max-autotune-no-cudagraphs", "reduce-overhead"])
def test_compiled_equals_eager(mode):
    torch._dynamo.reset()
    torch.manual_seed(0)
    adapter = FusedRMAdapter(256, scale=0.5, backend="triton", device="cuda")
    compiled = torch.compile(adapter, mode=mode, fullgraph=True)
    for tokens in (70, 90, 1, 70):
        x, residual = torch.randn(2, 2, tokens, 256, device="cuda", dtype=torch.bfloat16).unbind()
        found = []
        for call in (adapter, compiled):
            leaf = x.clone().requires_grad_()
            adapter.zero_grad()
            out, loss = call(leaf, residual, (None, None, 1e-5))
            (out.float().square().mean() + loss.mean()).backward()
            found.append([t.detach().clone() for t in (out, loss, leaf.grad, *(p.grad for p in adapter.parameters()))])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


def test_autocast_and_auto():
    adapter = FusedRMAdapter(256, scale=0.5, device="cuda")
    x = torch.randn(20, 256, device="cuda")
    assert explain(x).backend == "triton"
    assert explain(x.double()).backend == "eager"
    assert explain(torch.randn(20, 250, device="cuda")).backend == "eager"
    with torch.autocast("cuda", torch.bfloat16):
        out, loss = adapter(x)
        (out.sum() + loss.sum()).backward()
    assert out.dtype == torch.bfloat16
    assert {p.grad.dtype for p in adapter.parameters()} == {torch.float32}
    with pytest.raises(ValueError, match="backend is 'triton', which cannot take this call: x is on cpu"):
        rm_adapter(x.cpu(), *(p.cpu() for p in adapter.parameters()), backend="triton")


@pytest.mark.telling
def test_in_place_and_memory():
    adapter = FusedRMAdapter(768, scale=0.5, device="cuda")
    weights = [adapter.w_down, adapter.b_down, adapter.w_up, adapter.b_up]
    x, residual = torch.randn(2, 8192, 768, device="cuda", dtype=torch.bfloat16).unbind()
    expected = rm_adapter(x, *weights, residual=residual, scale=0.5)[0]
    prepared = (2 * 768 * 32 + 32 * 32 + 768 * 32) * 2 + 4096
    with torch.no_grad():
        kept = residual.clone()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        rm_adapter_(x, *weights, residual=kept, scale=0.5)
        assert torch.cuda.max_memory_allocated() - before <= prepared
    assert torch.equal(kept, expected)
    leaf = x.requires_grad_()
    before = torch.cuda.memory_allocated()
    out, loss = adapter(leaf, residual)
    after = torch.cuda.memory_allocated()
    # Nothing but the results is kept, and the prepared weights.
    assert after - before <= out.numel() * out.element_size() + loss.numel() * 4 + prepared


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("norm", [False, True])
def test_what_is_not_finite_stays_where_the_reference_has_it(value, norm):
    case = make_case((20,), 80, 5, 20, norm=norm, local_reconstruction=False, activation="relu").to(torch.float32)
    case.x[3, 7] = value
    case.d_out[11, 70] = value
    case = on(case, "cuda")
    ours, theirs = run(case, implementation=fused), run(case, implementation=reference)
    for name in ("out", "rec_loss", "grad x", "grad residual"):
        assert torch.equal(ours[name].isfinite(), theirs[name].isfinite()), name


@pytest.mark.telling
def test_another_thread_records_a_graph_while_calls_are_made_for_the_first_time():
    """A first call compiles and launches; it must do nothing that a recording elsewhere forbids."""
    from rmadapter_kernels.triton import operators

    adapter = FusedRMAdapter(256, bottleneck=16, scale=0.5, device="cuda")
    x = torch.randn(100, 256, device="cuda", dtype=torch.bfloat16)
    adapter(x)  # compiled, its memory taken
    torch.cuda.synchronize()
    begun, done = threading.Event(), threading.Event()

    def other():
        begun.wait(60)
        operators.forget_plans()
        with torch.cuda.stream(torch.cuda.Stream()):
            adapter(x)
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        begun.set()
        assert done.wait(120)
        y = x * 2
    thread.join()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, x * 2)


@pytest.mark.telling
@pytest.mark.parametrize("tokens", [788, 70000])
def test_a_graph_is_launched_as_an_ordinary_call_is(tokens):
    """The first call of this shape is recorded: the configuration, and so every bit, is that of a call outside."""
    from rmadapter_kernels.triton import operators

    case = on(make_case((tokens,), 256, 16, 16, norm=True).to(torch.bfloat16, torch.float32), "cuda")
    with torch.no_grad():
        expected = fused(case.x, *case.weights, residual=case.residual, norm=case.norm)
        operators.forget_plans()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = fused(case.x, *case.weights, residual=case.residual, norm=case.norm)
        graph.replay()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_the_sweep_of_configurations_measures(tmp_path):
    """bench/tune.py on the device: workers that compile, the check, times from graphs."""
    command = ["-m", "bench.tune", "--out", str(tmp_path), "--dtype", "bf16", "--d", "512", "--r", "16", "--most", "1"]
    subprocess.run([sys.executable, *command, "--jobs", "2"], cwd=Path(__file__).parents[2], check=True)
    rows = json.loads((tmp_path / "tune.json").read_text())["rows"]
    assert {row["kernel"] for row in rows} == {"forward", "rows", "weights"}
    for row in rows:
        assert row["outcome"] == "measured"
        assert row["microseconds"] > 0


def training_losses(backend: str, seed: int, steps: int) -> torch.Tensor:
    """Each step's loss, [steps] float32, of a small training run in bfloat16 autocast."""
    torch.manual_seed(seed)
    adapter = FusedRMAdapter(256, bottleneck=16, scale=0.1, backend=backend, device="cuda")
    optimizer = torch.optim.SGD(adapter.parameters(), lr=1e-3, momentum=0.9)
    x, goal = torch.randn(2, 500, 256, device="cuda").unbind()
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            out, rec_loss = adapter(x, x)
        loss = (out - goal).square().mean() + rec_loss.mean() / 256
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def test_a_training_run_follows_the_reference():
    eager, triton = (training_losses(backend, 0, 50).tolist() for backend in ("eager", "triton"))
    assert triton[-1] < triton[0]
    assert triton == pytest.approx(eager, rel=5e-3)


def test_training_ends_within_the_spread_of_seeds():
    """2,000 steps from 3 seeds: the backends' losses differ less than the seeds' do."""
    ends: dict[str, list[float]] = {"eager": [], "triton": []}
    for seed in range(3):
        curves = {}
        for backend, found in ends.items():
            curves[backend] = training_losses(backend, seed, 2000)
            found.append(curves[backend][-1].item())
        difference = (curves["eager"] - curves["triton"]).abs().max().item()
        print(f"seed {seed}: largest difference of the loss curves {difference:.1e}")
    spread = max(ends["eager"]) - min(ends["eager"])
    for one, other in zip(*ends.values(), strict=True):
        assert abs(one - other) < spread
