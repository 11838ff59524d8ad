"""Training steps of the module on CUDA under torch's profiler, and what a call of it takes of the host."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

from rmadapter_kernels import FusedRMAdapter

# Images of 197 tokens in the steps that are profiled.
PROFILED = (32, 333)


def profile(out: Path) -> None:
    """Five steps of each kind: tables and host times in profile.txt, traces for chrome://tracing."""
    adapter = FusedRMAdapter(768, scale=0.001, device="cuda", backend="triton")
    optimizer = torch.optim.SGD(adapter.parameters(), lr=1e-3, momentum=0.9)
    tables = []
    for images in PROFILED:
        for norm in (None, (None, None, 1e-5)):
            x = torch.randn(images, 197, 768, device="cuda", dtype=torch.bfloat16)

            def step(x: torch.Tensor = x, norm: Any = norm) -> None:
                optimizer.zero_grad()
                leaf = x.detach().requires_grad_()
                out, loss = adapter(leaf, x, norm)
                (out.float().square().mean() + loss.mean()).backward()
                optimizer.step()

            for _ in range(5):
                step()
            torch.cuda.synchronize()
            with profiler(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
                for _ in range(5):
                    step()
                torch.cuda.synchronize()
            name = f"{images}-images{'' if norm is None else '-norm'}"
            found.export_chrome_trace(str(out / f"trace-{name}.json"))
            table = found.key_averages().table(sort_by="cuda_time_total", row_limit=30, max_name_column_width=60)
            tables.append(f"{name}, five steps\n{table}")
    tables.append(_host_times(adapter))
    (out / "profile.txt").write_text("\n".join(tables), encoding="utf-8")


def _host_times(adapter: torch.nn.Module) -> str:
    """Microseconds of the host by call, on so few tokens that the device waits for it: what a launch costs here."""
    x = torch.randn(16, 768, device="cuda", dtype=torch.bfloat16)
    leaf = x.clone().requires_grad_()

    def forward() -> None:
        with torch.no_grad():
            adapter(x, x)

    def both() -> None:
        out, loss = adapter(leaf, x)
        torch.autograd.backward((out, loss), (out, loss))

    calls: dict[str, Callable[[], Any]] = {
        "empty_like": lambda: torch.empty_like(x), "add_": lambda: x.add_(1), "forward": forward, "both": both,
    }  # fmt: skip
    found = []
    for name, call in calls.items():
        for _ in range(50):
            call()
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(500):
            call()
        queued = time.perf_counter() - began
        torch.cuda.synchronize()
        found.append(f"{name}: {2e3 * queued:.1f} us queued, {2e3 * (time.perf_counter() - began):.1f} us done")
    return "\n".join(found)
