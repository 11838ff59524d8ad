"""Device, precision and backend: what is chosen, what is refused."""

from __future__ import annotations

import pytest
import torch
from conftest import small_clip

from rmadapter import InputError, RMAdapterConfig, inject
from rmadapter.runtime import (
    choose_backend,
    environment,
    residual_dtype,
    resolve_device,
    resolve_precision,
)
from rmadapter.training.arriving import Arriving
from rmadapter_kernels import available_backends, explain

CPU = torch.device("cpu")


def test_devices():
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto").type in ("cpu", "cuda")
    with pytest.raises(InputError, match="device is 'gpu'; valid: auto, cpu, cuda"):
        resolve_device("gpu")
    with pytest.raises(InputError, match="device is 'cuda:99'"):
        resolve_device("cuda:99")
    with pytest.raises(InputError, match="device"):
        resolve_device("meta")


def test_precisions_on_the_cpu():
    assert resolve_precision("bf16", CPU) == "bf16"
    with pytest.raises(InputError, match=r"precision is 'fp16'.*valid on cpu: bf16, fp32"):
        resolve_precision("fp16", CPU)


def test_auto_is_bf16_where_the_cpu_has_it(monkeypatch):
    for has, chosen in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("rmadapter.runtime.cpu_has_bf16", lambda has=has: has)
        assert resolve_precision("auto", CPU) == chosen


def test_what_is_on_its_way_keeps_the_values_it_had():
    tensor = torch.tensor([1.0, float("inf")], requires_grad=True)
    arriving = Arriving(tensor)
    with torch.no_grad():
        tensor.zero_()
    assert arriving.wait().tolist() == [1.0, float("inf")]


def test_residual_stream():
    assert residual_dtype("auto", "bf16") == residual_dtype("fp32", "bf16") == torch.float32
    assert residual_dtype("compute", "bf16") == torch.bfloat16


def test_backends():
    model = inject(small_clip(), RMAdapterConfig(layers="3"))

    def used():
        return {a.adapter.branch.backend for a in model.adapters()}

    assert choose_backend(model, False, None) == ("eager", "adapters: backend eager (--no-fused)")
    assert used() == {"eager"}
    chosen, sentence = choose_backend(model, True, None)
    assert used() == {"auto"}
    expected = {explain(torch.zeros(1, width), bottleneck=32).backend for width in (64, 32)}
    assert chosen == "+".join(sorted(expected))
    assert all(name in sentence for name in expected)
    assert choose_backend(model, True, "eager") == ("eager", "adapters: backend eager (as asked for)")
    assert used() == {"eager"}
    with pytest.raises(InputError, match=r"backend is 'eagr'.*valid: auto.*did you mean 'eager'"):
        choose_backend(model, True, "eagr")


def test_a_named_backend_says_which_tower_it_does_not_take():
    fused = [n for n, status in available_backends().items() if status.available and n != "eager"]
    model = inject(small_clip(), RMAdapterConfig(layers="3"))  # the text tower is 32 wide
    for name in fused:
        with pytest.raises(InputError, match=f"adapters of the text tower: backend is '{name}'.*D=32"):
            choose_backend(model, True, name)
        assert {a.adapter.branch.backend for a in model.adapters()} == {"auto"}


def test_variants_say_that_they_run_in_plain_pytorch():
    model = inject(small_clip(), RMAdapterConfig(layers="3", rec_layers=3))
    assert choose_backend(model, True, None) == (
        "eager",
        "adapters: plain PyTorch (this variant is outside the fused operator)",
    )
    with pytest.raises(InputError, match="does not cover this variant"):
        choose_backend(model, True, "triton")


def test_environment_names_versions_and_revision():
    found = environment(CPU)
    assert found["torch"] == torch.__version__
    assert {"python", "open_clip", "threads", "git", "command"} <= set(found)
