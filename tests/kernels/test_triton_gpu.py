"""The Triton backend's results on a CUDA device, against fp64. bench/gpu_check.py runs it."""

from __future__ import annotations

import math

import pytest
import torch
from gpu_cases import KINDS, fused, judge, on
from operator_cases import WEIGHTS, make_case, run

from rmadapter_kernels.reference import reference

pytestmark = pytest.mark.gpu


def test_every_kernel_once():
    """Small enough for compute-sanitizer: the prepare kernel and all others, in bf16 and in fp16."""
    from rmadapter_kernels.triton import tuning

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "LAUNCH", 0.0)
        for kind in ("bf16", "fp16"):
            case = make_case((150,), 256, 16, 16, norm=True, local_reconstruction=False)
            judge(case, kind, torch.float32, judge_on="cpu")


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
        ("ieee", (6304,), 768, 32, 32),
        pytest.param("bf16", (70000,), 1024, 16, 64, marks=pytest.mark.telling),
        ("fp16", (70000,), 768, 32, 32),
        ("fp16", (17,), 1664, 100, 5),
        # The numbers of tokens and widths whose configurations were measured.
        *(
            pytest.param("bf16", (tokens,), 768, r, r, marks=pytest.mark.telling)
            for tokens in (788, 6304, 65536)
            for r in (32, 64, 128)
        ),
        ("bf16", (3,), 208, 5, 5),
        ("bf16", (1000,), 768, 128, 128),
        ("ieee", (1000,), 768, 128, 128),
    ],
)
def test_shapes(kind, lead, d, r, h):
    # Of 70,000 tokens the gradient of w_down goes up to 212,194, which fp16 cannot hold: that of fp32 weights can.
    weight_dtype = torch.float32 if (kind, lead) == ("fp16", (70000,)) else None
    judge(make_case(lead, d, r, h, norm=True, local_reconstruction=False, scale=0.5), kind, weight_dtype)


@pytest.mark.parametrize("use", ["out", "loss"])
@pytest.mark.parametrize("trained", [{"x"}, {"w_rec1"}, {"b_rec2"}, {"b_up"}, {"w_down"}, {"w_up"}])
def test_partly_used_and_partly_frozen(use, trained):
    frozen = tuple({"x", "residual", *WEIGHTS} - trained)
    judge(make_case((130,), 256, 8, 8, local_reconstruction=False, norm=True), "bf16", use=use, frozen=frozen)


@pytest.mark.telling
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
