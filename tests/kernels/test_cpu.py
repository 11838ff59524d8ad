"""The cpu backend: results and gradients of every instruction set, against fp64."""

from __future__ import annotations

import itertools
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from cpu_cases import DTYPES, asked_for, instructions, judge, poisoned_memory, with_backend
from operator_cases import WEIGHTS, make_case, run

from rmadapter_kernels import ACTIVATIONS, OBJECTIVES, available_backends, cpu, explain, rm_adapter
from rmadapter_kernels.reference import activation as reference_activation

SETS = cpu.instruction_sets() or ["none"]
needs_the_extension = pytest.mark.skipif(not cpu.AVAILABLE, reason=cpu.reason())
every_set = pytest.mark.parametrize("name", SETS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(autouse=True)
def no_state_left():
    """Threads and instruction set are as before after each test."""
    threads, name = torch.get_num_threads(), asked_for()
    yield
    torch.set_num_threads(threads)
    if cpu.AVAILABLE:
        cpu.use_instruction_set(name)


def small(**changes):
    return make_case(**{"lead": (3, 5), "d": 64, "r": 8, "h": 12, "scale": 0.5, "dtype": torch.float64, **changes})


@pytest.mark.skipif(os.environ.get("RMADAPTER_NO_EXT", "0") not in ("", "0"), reason="RMADAPTER_NO_EXT is set")
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here")
def test_the_extension_is_there():
    assert available_backends()["cpu"].available, available_backends()["cpu"].reason


@needs_the_extension
@every_set
@every_dtype
def test_every_flag(name, dtype):
    """The reference's whole grid."""
    with instructions(name):
        flags = itertools.product(ACTIVATIONS, OBJECTIVES, (True, False), (True, False))
        for number, (activation, objective, norm, local) in enumerate(flags):
            case = small(
                activation=activation,
                objective=objective,
                norm=norm,
                local_reconstruction=local,
                residual=number % 3 > 0,
                branch_grad_scale=(1.0, 40.0)[number % 2],
            )
            judge(case.to(dtype))


@needs_the_extension
@every_set
@every_dtype
def test_without_reconstruction(name, dtype):
    with instructions(name):
        for activation in ACTIVATIONS:
            found = judge(small(reconstruct=False, norm=True, activation=activation, branch_grad_scale=7.0).to(dtype))
            assert found["rec_loss"].shape == (0,)


@needs_the_extension
@every_set
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_fp32_weights_and_residual_beside_16_bits(name, dtype):
    with instructions(name):
        for norm, local in itertools.product((True, False), (True, False)):
            case = small(norm=norm, local_reconstruction=local).to(dtype, torch.float32)
            case.residual, case.d_out = case.residual.float(), case.d_out.float()
            found = judge(case)
            assert (found["out"].dtype, found["grad w_up"].dtype) == (torch.float32, torch.float32)


@needs_the_extension
def test_fp32_residual_keeps_what_16_bits_would_drop():
    case = make_case((64,), 64, 8, 8, scale=1e-4).to(torch.bfloat16, torch.float32)
    exact = run(case.to(torch.float64))["out"] - case.residual.double()
    case.residual, case.d_out = case.residual.float(), case.d_out.float()
    kept = run(with_backend(case, "cpu"))["out"] - case.residual
    assert (kept - exact).abs().max() < 0.02 * exact.abs().max()


@needs_the_extension
@every_set
@every_dtype
@pytest.mark.parametrize(
    ("lead", "d", "r", "h"),
    [((), 64, 1, 1), ((1,), 80, 1, 100), ((2, 37), 80, 17, 3), ((97,), 64, 128, 128), ((25,), 2048, 33, 40)],
    ids=str,
)
def test_odd_shapes(name, dtype, lead, d, r, h):
    with instructions(name):
        for norm, objective in ((False, "l2"), (True, "cosine"), (True, "l1")):
            judge(make_case(lead, d, r, h, norm=norm, objective=objective, local_reconstruction=False).to(dtype))


@needs_the_extension
@every_set
def test_many_blocks_and_chunks(name):
    with instructions(name):
        judge(make_case((3, 211), 64, 16, 16, norm=True, scale=0.5).to(torch.float32))
        judge(make_case((633,), 80, 8, 24, local_reconstruction=False).to(torch.bfloat16))


@needs_the_extension
@pytest.mark.parametrize("affine", [(True, False), (False, True), (False, False)])
@every_dtype
def test_norm_without_weight_or_bias(affine, dtype):
    case = small(norm=True, local_reconstruction=False).to(dtype)
    case.norm = (*(t if kept else None for t, kept in zip(case.norm, affine, strict=False)), 1e-3)
    judge(case)


@needs_the_extension
@every_dtype
def test_norm_of_inputs_far_from_zero(dtype):
    """Ten standard deviations of mean: E[x^2] - E[x]^2 would lose two digits."""
    case = small(norm=True, local_reconstruction=False)
    case.x += 10
    judge(case.to(dtype))


@needs_the_extension
@every_set
def test_norm_of_equal_numbers(name):
    """Of a token without a deviation nothing is left but what rounds off its mean, times 1 / sqrt(eps)."""
    case = small(d=768, norm=True, local_reconstruction=False)
    case.x[0] = torch.tensor([0.3, -10.1, 1000.3, 0.0, 1e-3], dtype=torch.float64)[:, None]
    with instructions(name):
        judge(case.to(torch.float32))


@needs_the_extension
@pytest.mark.parametrize("use", ["out", "loss"])
@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("norm", [False, True])
@every_dtype
def test_one_result_unused(use, local, norm, dtype):
    judge(small(local_reconstruction=local, norm=norm).to(dtype), use=use)


@needs_the_extension
@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("objective", ["l2", "cosine"])
@pytest.mark.parametrize(
    "trained",
    [{"x"}, {"residual"}, {"w_rec1"}, {"b_rec2"}, {"w_down", "b_up"}, {"b_down"}],
    ids=lambda names: "-".join(sorted(names)),  # a set's own order is another in every process
)
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_partly_frozen(local, objective, trained, dtype):
    frozen = tuple({"x", "residual", *WEIGHTS} - trained)
    case = small(local_reconstruction=local, objective=objective, branch_grad_scale=3.0).to(dtype)
    found = judge(case, frozen=frozen)
    assert {key for key in found if key.startswith("grad")} == {f"grad {key}" for key in trained}


@needs_the_extension
@pytest.mark.parametrize("lead", [(0,), (3, 0), (0, 4)])
@pytest.mark.parametrize("norm", [False, True])
def test_no_tokens_give_empty_results_and_zero_gradients(lead, norm):
    with poisoned_memory():
        found = run(with_backend(small(lead=lead, norm=norm, dtype=torch.float32), "cpu"))
    assert found["out"].shape == (*lead, 64)
    assert found["rec_loss"].shape == lead
    assert not any(found[f"grad {key}"].any() for key in WEIGHTS)


@needs_the_extension
@every_set
@every_dtype
def test_the_number_of_threads_changes_no_bit(name, dtype):
    """1,300 tokens are 6 chunks on as many threads; the second run with one thread shows that runs agree too."""
    case = with_backend(make_case((1300,), 64, 32, 32, norm=True, local_reconstruction=False).to(dtype), "cpu")
    with instructions(name):
        torch.set_num_threads(1)
        expected = run(case)
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            for key, value in run(case).items():
                assert torch.equal(value, expected[key]), f"{key} with {threads} threads"


@needs_the_extension
@every_set
@every_dtype
def test_a_token_does_not_depend_on_those_beside_it(name, dtype):
    case = make_case((131,), 80, 16, 16, norm=True, objective="cosine").to(dtype)
    with instructions(name):
        out, loss = rm_adapter(case.x, *case.weights, norm=case.norm, objective="cosine", backend="cpu")
        few, few_loss = rm_adapter(case.x[101:108], *case.weights, norm=case.norm, objective="cosine", backend="cpu")
        assert torch.equal(out[101:108], few)
        assert torch.equal(loss[101:108], few_loss)


@needs_the_extension
@every_set
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_over_their_whole_range(name, activation):
    """Through weights that are the identity; the tail of gelu is judged relatively, where 1 + erf loses everything."""
    x = torch.cat(
        [torch.linspace(-12, 12, 64 * 64), torch.tensor([-1e4, -200.0, -88.0, -0.0, 0.0, 1e-30, 88.0, 1e4] * 8)]
    )
    x = x.reshape(-1, 64)
    eye, zeros = torch.eye(64), torch.zeros(64)
    with instructions(name):
        out, _ = rm_adapter(x, eye, zeros, eye, zeros, activation=activation, backend="cpu")
        one = x.clone().requires_grad_()
        rm_adapter(one, eye, zeros, eye, zeros, activation=activation, backend="cpu")[0].sum().backward()
    wide = x.double().requires_grad_()
    exact = reference_activation(activation, wide)
    exact.sum().backward()
    if activation == "gelu":
        exact = wide * torch.special.erfc(-wide / 2**0.5) / 2
    # exp(-t^2 / 2) takes over the rounding of its argument: 72 half steps at t = 12.
    assert ((out - exact).abs() <= (5e-7 + x * x * 6e-8) * exact.abs() + 1e-34).all()
    assert (one.grad - wide.grad).abs().max() < 4e-6


@needs_the_extension
@every_set
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(name, activation, value):
    case = with_backend(small(activation=activation).to(torch.float32), "cpu")
    case.x[1, 2, 3] = value
    with instructions(name):
        found = run(case)
    assert not found["out"][1, 2].isfinite().all()
    assert not found["rec_loss"][1, 2].isfinite()
    assert found["out"][0].isfinite().all()
    assert not found["grad w_down"].isfinite().all()


@needs_the_extension
@every_set
def test_16_bit_outputs_are_rounded_as_torch_rounds(name):
    """out = residual + 0: every bf16 and fp16 number, then ties and overflows from an fp32 residual's neighbours."""
    zero = {"w_down": torch.zeros(64, 1), "b_down": torch.zeros(1), "w_up": torch.zeros(1, 64), "b_up": torch.zeros(64)}
    with instructions(name):
        for dtype in DTYPES[1:]:
            every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).reshape(-1, 64)
            out, _ = rm_adapter(every * 0, **zero, residual=every, backend="cpu")
            finite = every.isfinite() & (every.abs() >= torch.finfo(dtype).tiny)
            assert torch.equal(out[finite], every[finite])
            assert torch.equal(out.isnan(), every.isnan() | every.isinf())
        for dtype in DTYPES[1:]:
            # z = 1, w_up = 1: out = scale (1 + b_up), and b_up is rounded; so the sum meets every tie.
            ones = {**zero, "b_down": torch.ones(1), "w_up": torch.ones(1, 64)}
            x = torch.zeros(1, 64, dtype=dtype)
            for scale in [*torch.linspace(0.5, 3, 40).tolist(), 60000.0, 1e30]:
                out, _ = rm_adapter(x, **ones, scale=scale, activation="relu", backend="cpu")
                assert torch.equal(out, torch.full((1, 64), scale, dtype=torch.float32).to(dtype))


@needs_the_extension
def test_the_caller_keeps_its_denormals():
    run(with_backend(small().to(torch.float32), "cpu"))
    assert (torch.tensor(1e-40) * 0.5).item() > 0


@needs_the_extension
def test_explain_and_refusals():
    x = torch.zeros(2, 64)
    weights = [torch.zeros(64, 8), torch.zeros(8), torch.zeros(8, 64), torch.zeros(64)]
    assert explain(x.double()).backend == "eager"
    if cpu.instruction_sets()[0] != "portable":
        with instructions(cpu.instruction_sets()[0]):
            assert explain(x) == ("cpu", f"{cpu.instruction_set()} kernels, asked for by name")
    with instructions("portable"):  # never measured to be faster
        assert explain(x).backend == "eager"
        assert explain(x, backend="cpu").backend == "cpu"
    for wrong, message in (
        (explain_arguments(x.double()), r"x is torch\.float64; valid: torch\.float32"),
        (explain_arguments(torch.zeros(2, 72)), "x has width D=72; valid: 64 to 2048 in multiples of 16"),
        (explain_arguments(torch.zeros(2, 48)), "x has width D=48"),
        (explain_arguments(torch.zeros(2, 2064)), "x has width D=2064"),
        (explain_arguments(x, bottleneck=129), "bottleneck r is 129; valid: 1 to 128"),
        (explain_arguments(x, rec_hidden=200), "reconstruction width h is 200; valid: 1 to 128"),
        (explain_arguments(x.to("meta")), "x is on meta; valid: a CPU tensor"),
    ):
        with pytest.raises(ValueError, match=f"backend is 'cpu', which cannot take this call: {message}"):
            explain(**wrong, backend="cpu")
        assert explain(**wrong).backend == "eager"
    with pytest.raises(ValueError, match="cannot take this call"):
        rm_adapter(x.double(), *(w.double() for w in weights), backend="cpu")


def explain_arguments(x, **widths):
    return {"x": x, **widths}


@needs_the_extension
def test_the_instruction_set_can_be_chosen():
    assert SETS[-1] == "portable"
    for name in SETS:
        cpu.use_instruction_set(name)
        assert cpu.instruction_set() == name
        assert cpu.reason().startswith(f"{name} kernels, asked for by name")
    cpu.use_instruction_set(None)
    assert cpu.instruction_set() == SETS[0]
    assert cpu.reason().startswith(f"{SETS[0]} kernels, the fastest ones, ")
    with pytest.raises(ValueError, match=r"'sse9'; valid on this processor: .*portable"):
        cpu.use_instruction_set("sse9")
    assert cpu.instruction_set() == SETS[0]


RUNS = [
    cpu.Measured(("GenuineIntel 6 207",), "amx_bf16", "intel.md", {"float32": 0.9, "bfloat16": 2.5}),
    cpu.Measured(("AuthenticAMD 25 ",), "avx512_bf16", "amd.md", {"float32": 1.4}),
]


@pytest.mark.parametrize(
    ("dtype", "name", "model", "asked", "faster", "why"),
    [
        (torch.bfloat16, "amx_bf16", "GenuineIntel 6 207", False, True, "at least 2.50 times as fast .*intel.md"),
        (torch.float32, "amx_bf16", "GenuineIntel 6 207", False, False, "is at 0.90 times the speed of eager or torch"),
        (torch.float16, "amx_bf16", "GenuineIntel 6 207", False, False, "was not measured in float16 .*intel.md"),
        (torch.bfloat16, "avx512", "GenuineIntel 6 207", False, False, "avx512 kernels .* not measured .*6 207"),
        (torch.bfloat16, "avx2", "GenuineIntel 6 207", True, True, "avx2 kernels, asked for by name"),
        (torch.bfloat16, "portable", "GenuineIntel 6 207", True, False, "only plain loops"),
        (torch.float32, "avx512_bf16", "AuthenticAMD 25 17", False, True, "at least 1.40 times"),
        (torch.float32, "avx512_bf16", "AuthenticAMD 26 2", False, False, "not measured on such processors"),
    ],
)  # fmt: skip
def test_auto_asks_the_committed_benchmark_of_the_family(dtype, name, model, asked, faster, why):
    found = cpu.judge(dtype, name, model, asked, RUNS)
    assert found[0] is faster
    assert re.search(why, found[1])


def test_the_committed_runs_name_their_tables():
    root = Path(__file__).parents[2]
    for found in cpu.read_measured():
        assert found.processors
        assert set(found.least) <= {str(dtype).removeprefix("torch.") for dtype in DTYPES}
        assert found.instructions in (root / found.results).read_text(encoding="utf-8").splitlines()[0]


@needs_the_extension
def test_eager_says_why_the_backend_was_not_taken(monkeypatch):
    monkeypatch.setattr(cpu, "_judgements", {torch.float32: (False, "it was measured to be slower")})
    assert explain(torch.zeros(2, 64)) == ("eager", "it was measured to be slower")


@needs_the_extension
def test_sets_can_be_timed():
    assert all(0 < cpu.trial_seconds(name) < 10 for name in SETS)
    with pytest.raises(ValueError, match="'sse9'; valid on this processor"):
        cpu.trial_seconds("sse9")


@needs_the_extension
@every_set
@every_dtype
def test_packed_weights_are_kept_while_the_weights_hold_what_they_held(name, dtype):
    """Changes that a version counter misses too: through .data, and of two elements at once."""
    case = with_backend(small().to(dtype, torch.float32), "cpu")

    def out():
        return rm_adapter(case.x, *case.weights, residual=case.residual, norm=(gamma, None, 1e-5), backend="cpu")

    def fresh():
        """Of copies one of whose strides nothing is kept for."""
        apart = [w.repeat_interleave(2, -1)[..., ::2] for w in case.weights]
        return rm_adapter(case.x, *apart, residual=case.residual, norm=(gamma, None, 1e-5), backend="cpu")

    gamma = torch.ones(64)
    with instructions(name), torch.no_grad():
        for _ in range(3):
            first = out()
        for number, tensor in enumerate([*case.weights, gamma]):
            for change in (lambda t: t.data.view(-1)[-1].add_(1), lambda t: t.data.view(-1)[:2].neg_()):
                before = tensor.clone()
                change(tensor)
                for _ in range(3):
                    for one, other in zip(out(), fresh(), strict=True):
                        assert torch.equal(one, other), number
                tensor.data.copy_(before)
        for one, other in zip(out(), first, strict=True):
            assert torch.equal(one, other)


@needs_the_extension
@every_set
def test_matmuls_of_the_library_between_calls(name):
    """oneDNN configures the same tile registers on the same threads."""
    torch.set_num_threads(2)
    case = with_backend(make_case((700,), 256, 32, 32, norm=True).to(torch.bfloat16), "cpu")
    a, b = torch.randn(2, 300, 300, generator=torch.Generator().manual_seed(0)).bfloat16()
    product = a @ b
    with instructions(name):
        expected = run(case)
        for _ in range(3):
            assert torch.equal(a @ b, product)
            for key, value in run(case).items():
                assert torch.equal(value, expected[key]), key
    assert torch.equal(a @ b, product)


@needs_the_extension
def test_tiles_read_rows_at_any_distance():
    """Rows of two strides, which tiles cannot read in place, those of one, and a block that is not full."""
    torch.manual_seed(0)
    x = torch.randn(5, 67, 256).bfloat16()
    weights = [w.bfloat16() for w in make_case((1,), 256, 32, 16, dtype=torch.float32).weights]
    for name in SETS:
        with instructions(name):
            out, loss = rm_adapter(x, *weights, backend="cpu")
            swapped = x.transpose(0, 1).contiguous().transpose(0, 1)
            apart = x.repeat_interleave(2, 1)[:, ::2]
            for view in (swapped, apart):
                other, other_loss = rm_adapter(view, *weights, backend="cpu")
                assert torch.equal(other, out)
                assert torch.equal(other_loss, loss)
