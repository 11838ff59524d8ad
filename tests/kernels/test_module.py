"""FusedRMAdapter: parameters, initialisation, modes, copies; and an import that needs torch alone."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from rmadapter_kernels import FusedRMAdapter, rm_adapter

SHAPES = {
    "w_down": (64, 8),
    "b_down": (8,),
    "w_up": (8, 64),
    "b_up": (64,),
    "w_rec1": (8, 16),
    "b_rec1": (16,),
    "w_rec2": (16, 64),
    "b_rec2": (64,),
}


def test_parameters():
    adapter = FusedRMAdapter(64, bottleneck=8, rec_hidden=16)
    assert {name: tuple(p.shape) for name, p in adapter.named_parameters()} == SHAPES
    assert list(adapter.state_dict()) == list(SHAPES)
    single = FusedRMAdapter(64, bottleneck=8, reconstruct=False)
    assert list(single.state_dict()) == list(SHAPES)[:4]
    assert FusedRMAdapter(64).rec_hidden == FusedRMAdapter(64).bottleneck == 32
    half = FusedRMAdapter(64, dtype=torch.bfloat16, device="meta")
    assert (half.w_up.dtype, half.w_up.device.type) == (torch.bfloat16, "meta")


def test_initialisation():
    """Kaiming over the outputs of each layer: variance 2 / out."""
    torch.manual_seed(0)
    adapter = FusedRMAdapter(1024, bottleneck=64, rec_hidden=128)
    for name, outputs in (("w_down", 64), ("w_up", 1024), ("w_rec1", 128), ("w_rec2", 1024)):
        assert getattr(adapter, name).std().item() == pytest.approx((2 / outputs) ** 0.5, rel=0.05), name
    assert not any(p.any() for name, p in adapter.named_parameters() if name.startswith("b_"))
    zero = FusedRMAdapter(64, init="zero_up", scale=3.0)
    x = torch.randn(5, 64)
    assert torch.equal(zero(x, x)[0], x)
    assert zero.w_down.any()
    assert zero.w_rec2.any()


def test_what_fsdp_shards_is_drawn():
    """From a module on the meta device, as FSDP2's own recipe has it."""
    adapter = FusedRMAdapter(64, bottleneck=8, device="meta")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        fully_shard(adapter, mesh=init_device_mesh("cpu", (1,))).to_empty(device="cpu")
        torch.manual_seed(0)
        adapter.reset_parameters()
        drawn = {name: weight.full_tensor() for name, weight in adapter.state_dict().items()}
    finally:
        distributed.destroy_process_group()
    torch.manual_seed(0)
    for name, weight in FusedRMAdapter(64, bottleneck=8).named_parameters():
        assert torch.equal(drawn[name], weight), name


def test_forward_is_the_operator():
    adapter = FusedRMAdapter(
        64,
        bottleneck=8,
        activation="silu",
        objective="cosine",
        scale=0.5,
        local_reconstruction=False,
        branch_grad_scale=4.0,
    )
    x, residual = torch.randn(2, 3, 64).unbind()
    norm = (torch.rand(64), None, 1e-6)
    arguments = {"activation": "silu", "objective": "cosine", "scale": 0.5, "local_reconstruction": False}
    expected = rm_adapter(x, *adapter.parameters(), residual=residual, norm=norm, branch_grad_scale=4.0, **arguments)
    for one, other in zip(adapter(x, residual, norm), expected, strict=True):
        assert torch.equal(one, other)


def test_no_reconstruction_in_eval_mode():
    adapter = FusedRMAdapter(64, bottleneck=8)
    x = torch.randn(3, 64)
    out, loss = adapter(x)
    assert loss.shape == (3,)
    evaluated, nothing = adapter.eval()(x)
    assert nothing.shape == (0,)
    assert torch.equal(out, evaluated)
    assert FusedRMAdapter(64, reconstruct=False)(x)[1].shape == (0,)


def test_copies_are_independent():
    adapter = FusedRMAdapter(64, bottleneck=8)
    for twin in (copy.deepcopy(adapter), pickle.loads(pickle.dumps(adapter))):
        assert torch.equal(twin.w_up, adapter.w_up)
        with torch.no_grad():
            twin.w_up.add_(1)
        assert not torch.equal(twin.w_up, adapter.w_up)


def test_print():
    text = repr(FusedRMAdapter(64, bottleneck=8, scale=0.001))
    assert text.startswith("FusedRMAdapter(64, bottleneck=8, rec_hidden=8")
    assert "scale=0.001" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d_model": 0}, "d_model is 0; valid: a whole number >= 1"),
        ({"bottleneck": 0}, "bottleneck is 0"),
        ({"rec_hidden": 0}, "rec_hidden is 0"),
        ({"rec_hidden": 1.5}, r"rec_hidden is 1\.5"),
        ({"activation": "tanh"}, "activation is 'tanh'; valid: gelu"),
        ({"objective": "l3"}, "objective is 'l3'; valid: l2"),
        ({"init": "ones"}, "init is 'ones'; valid: kaiming, zero_up"),
        ({"bottleneck": True}, "bottleneck is True"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        FusedRMAdapter(**{"d_model": 64, **arguments})


@pytest.mark.parametrize("dtype", [torch.int64, torch.float8_e4m3fn])
def test_parameters_of_no_dtype_that_the_operator_takes(dtype):
    with pytest.raises(TypeError, match=rf"dtype is {dtype}; valid: float64, float32, bfloat16, float16"):
        FusedRMAdapter(64, dtype=dtype)


def test_the_import_needs_torch_alone():
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("open_clip", "triton", "torchvision", "timm", "rmadapter", "safetensors", "yaml"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Refuse())
import torch
from rmadapter_kernels import FusedRMAdapter, available_backends
available_backends()
out, loss = FusedRMAdapter(16, bottleneck=4)(torch.zeros(2, 16))
assert out.shape == (2, 16) and loss.shape == (2,)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
