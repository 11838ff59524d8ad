"""Calls of the Triton backend on a CUDA device: graphs, streams, threads, torch.compile, memory, training.

bench/gpu_check.py runs it.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from gpu_cases import fused, on
from operator_cases import make_case, run

from rmadapter_kernels import FusedRMAdapter, explain, rm_adapter, rm_adapter_

pytestmark = pytest.mark.gpu


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


@pytest.mark.telling
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
