"""Launches of the Triton backend that go nowhere: which arguments go where, and what is compiled anew."""

from __future__ import annotations

import inspect
import re
import weakref
from dataclasses import replace

import pytest
import torch
from operator_cases import make_case

pytest.importorskip("triton", reason="Triton is for Linux alone")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from rmadapter_kernels.triton import configure, launch, operators, prepared, tuning
from rmadapter_kernels.triton.dry import dry_launches
from rmadapter_kernels.triton.launch import Launch


def forward_arguments(case, activation: str = "gelu"):
    norm = case.norm or (None, None, None)
    return (case.x, case.residual, *norm, *case.weights, 0.5, activation, "l2", False, 2.0)


def backward_arguments(case):
    norm = case.norm or (None, None, None)
    return (case.x, case.d_out, case.d_loss, *norm, *case.weights, 0.5, "gelu", "l2", False, 2.0, [True] * 9)


def values(launched) -> list:
    """Arguments with pointers as the compiled kernel gets them."""
    return [a.data_ptr() if isinstance(a, torch.Tensor) else 0 if a is None else a for a in launched.arguments]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", [False, True])
def test_a_second_call_goes_to_the_compiled_kernel_with_the_same_arguments(dtype, norm):
    case = make_case((3, 7), 64, 4, 4, norm=norm).to(dtype, torch.float32)
    for call, count in (
        (lambda: operators.forward(*forward_arguments(case)), 1),
        (lambda: operators.backward(*backward_arguments(case)), 3),
    ):
        record = []
        with dry_launches(record):
            for _ in range(3):
                call()
        first, second, third = record[:count], record[count : 2 * count], record[2 * count :]
        assert [launched.direct for launched in record] == [False] * count + [True] * 2 * count
        for one, other, last in zip(first, second, third, strict=True):
            assert len(one.arguments) == len(other.arguments) == len(one.kernel.arg_names)
            assert one.grid == other.grid == last.grid
            assert one.options["enable_fp_fusion"] is True
            inputs = {t.data_ptr() for t in (case.x, case.residual, case.d_out, *case.weights)}
            for a, b, parameter in zip(values(one), values(other), one.kernel.params, strict=True):
                assert type(a) is type(b), parameter.name
                # Outputs and scratch are new at each call, everything else is the same.
                assert a == b or (a not in inputs and b > 1 << 16), parameter.name


def test_arguments_of_the_call_are_in_the_parameters_places():
    case = make_case((5,), 64, 4, 6, norm=True, residual=False).to(torch.float32)
    record = []
    with dry_launches(record):
        out, _ = operators.forward(*forward_arguments(case))
        dx, *gradients = operators.backward(*backward_arguments(case))
    found = [dict(zip(launched.kernel.arg_names, values(launched), strict=True)) for launched in record]
    forward, rows, weights, total = found
    for name, tensor in zip(
        ("w_down", "b_down", "w_up", "b_up", "w_rec1", "b_rec1", "w_rec2", "b_rec2"), case.weights, strict=True
    ):
        for arguments in found:
            assert arguments.get(name, tensor.data_ptr()) == tensor.data_ptr(), name
    assert forward["x"] == rows["x"] == weights["x"] == case.x.data_ptr()
    assert forward["residual"] == 0
    assert forward["out"] == out.data_ptr()
    assert rows["dx"] == dx.data_ptr()
    assert rows["d_out"] == weights["d_out"] == case.d_out.data_ptr()
    assert rows["d_loss"] == weights["d_loss"] == case.d_loss.data_ptr()
    assert (forward["M"], forward["scale"], forward["eps"]) == (5, 0.5, 1e-5)
    assert (rows["first_row"], rows["last_row"], weights["first_row"], weights["last_row"]) == (0, 5, 0, 5)
    assert (rows["scale"], rows["branch_grad_scale"], total["up_factor"]) == (0.5, 2.0, 1.0)
    assert (rows["D"], rows["R"], rows["H"], rows["BLOCK_R"], rows["LOCAL"], rows["NORM"]) == (
        64,
        4,
        6,
        16,
        False,
        True,
    )
    for name in ("z", "h", "dz", "dh", "mean", "rstd"):
        assert rows[name] == weights[name] != 0
    assert weights["parts"] == total["parts"] != 0
    names = ("dw_down", "db_down", "dw_up", "db_up", "dw_rec1", "db_rec1", "dw_rec2", "db_rec2")
    assert [total[name] for name in names] == [gradient.data_ptr() for gradient in gradients]


def test_what_changes_the_compiled_code_is_compiled_again():
    """Another alignment, shape, dtype, activation or option; not another scale or tensor."""
    plain = make_case((8,), 64, 4, 4).to(torch.float32)
    record = []

    def compiled(case, **changes) -> bool:
        operators.forward(*forward_arguments(case, **changes))
        return not record[-1].direct

    with dry_launches(record):
        assert compiled(plain)
        assert not compiled(make_case((8,), 64, 4, 4, seed=1).to(torch.float32))
        shifted = make_case((8,), 64, 4, 4).to(torch.float32)
        shifted.x = torch.empty(8 * 64 + 1)[1:].view(8, 64)
        assert compiled(shifted)
        assert not compiled(shifted)
        assert not compiled(plain)
        assert compiled(plain, activation="silu")
        assert compiled(make_case((9,), 64, 4, 4).to(torch.float32))
        assert compiled(plain.to(torch.float16))
        assert compiled(plain.to(torch.float16, torch.float32))
        with configure(fp32_precision="tf32x3"):
            assert compiled(plain)
            assert not compiled(plain)
        triton.knobs.runtime.launch_enter_hook.add(print)
        try:  # a profiler listens: Triton's own path calls it
            compiled(plain)
            assert not record[-1].direct
        finally:
            triton.knobs.runtime.launch_enter_hook.remove(print)


def test_an_unknown_triton_is_launched_through_its_own_path(monkeypatch):
    case = make_case((8,), 64, 4, 4).to(torch.float32)
    record = []
    with dry_launches(record):
        monkeypatch.setattr(launch, "DIRECT", False)
        for _ in range(2):
            operators.forward(*forward_arguments(case))
    assert not any(launched.direct for launched in record)


def test_triton_specialises_on_nothing_that_a_plan_leaves_open():
    """Triton's own binder: M, strides, scale and eps never change what is compiled, alignment does."""
    backend = make_backend(GPUTarget("cuda", 90, 32))

    def specialisations(case) -> list:
        record = []
        with dry_launches(record):
            operators.forward(*forward_arguments(case))
            operators.backward(*backward_arguments(case))
        found = []
        for launched in record:
            kernel = launched.kernel
            assert isinstance(kernel, JITFunction)
            binder = create_function_from_signature(kernel.signature, kernel.params, backend)
            _, specialisation, _ = binder(*launched.arguments, **launched.options)
            first = len(kernel.arg_names) - len([p for p in kernel.params if p.is_constexpr])
            found.append([(name, *rest) for name, rest in zip(kernel.arg_names, specialisation[:first], strict=False)])
        return found

    one = make_case((1, 7), 64, 4, 4, norm=True).to(torch.float32)
    other = make_case((4, 16), 64, 4, 4, norm=True).to(torch.float32)
    other.x = torch.randn(4, 20, 96)[:, :16, :64]
    assert specialisations(one) == specialisations(other)
    for kernel in specialisations(one):
        for name, kind, specialised in kernel:
            if name in ("M", "inner", "chunks", "chunk_rows", "first_row", "last_row", "first_chunk"):
                assert (kind, specialised) == ("i32", None), name
            if name.endswith(("stride0", "stride1")):
                assert (kind, specialised) == ("i64", None), name
            if name in ("scale", "eps", "branch_grad_scale", "up_factor"):
                assert kind == "fp32", name


def test_the_launcher_is_called_as_this_triton_calls_it():
    """What is read off Triton's source for the versions in KNOWN_TRITON; fails where a new one differs."""
    from triton.backends.nvidia.driver import CudaLauncher

    run = re.sub(r"\s+", " ", inspect.getsource(JITFunction.run))
    assert (
        "kernel.run(grid_0, grid_1, grid_2, stream, kernel.function, kernel.packed_metadata, launch_metadata, "
        "knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook, *bound_args.values())"
    ) in run
    names = list(inspect.signature(CudaLauncher.__call__).parameters)
    assert names[:6] == ["self", "gridX", "gridY", "gridZ", "stream", "function"]
    assert names[6:] in (
        ["args"],
        ["kernel_metadata", "launch_metadata", "launch_enter_hook", "launch_exit_hook", "args"],
    )
    assert launch.DIRECT


def test_a_device_with_less_memory_gets_smaller_tiles(monkeypatch):
    case = make_case((300,), 64, 4, 4).to(torch.float16)
    record = []
    with dry_launches(record):
        slowly, tries = launch.Launch._launch_slowly, []

        def scarce(self, *arguments):
            tries.append(self.options["num_stages"])
            if len(tries) < 3:
                raise launch.OutOfResources(1, 0, "shared memory")
            return slowly(self, *arguments)

        monkeypatch.setattr(launch.Launch, "_launch_slowly", scarce)
        operators.forward(*forward_arguments(case))
        assert tries == [3, 2, 1]
        operators.forward(*forward_arguments(case))
        assert record[-1].direct


def names(record) -> list[str]:
    return [launched.kernel.fn.__name__.removeprefix("rm_adapter_").removesuffix("_kernel") for launched in record]


@pytest.fixture
def always_prepared(monkeypatch):
    """Weights are prepared whatever the number of tokens."""
    monkeypatch.setattr(tuning, "LAUNCH", 0.0)


def test_arguments_go_by_name():
    case = make_case((8,), 64, 4, 4).to(torch.float32)
    record = []
    with dry_launches(record):
        operators.forward(*forward_arguments(case))
    kernel = record[0].kernel
    with pytest.raises(TypeError, match="rm_adapter_forward_kernel has no parameter nonesuch"):
        Launch(kernel, {"nonesuch": 1}, {}, {})
    with pytest.raises(TypeError, match="rm_adapter_forward_kernel lacks a value of D, R, H"):
        Launch(kernel, {"M": 1}, {}, {})


def test_prepared_weights_are_those_of_the_other_kernels(always_prepared):
    case = make_case((8,), 64, 5, 6, norm=True).to(torch.bfloat16, torch.float32)
    record = []
    with dry_launches(record):
        operators.forward(*forward_arguments(case))
        made = operators.prepare(case.x, *case.norm, *(case.weights[index] for index in (0, 1, 2, 4, 6)))
        operators.backward(*backward_arguments(case), made)
    assert names(record) == [
        "prepare", "forward", "prepare", "backward_rows", "backward_weights", "backward_sum",
    ]  # fmt: skip
    found = [dict(zip(launched.kernel.arg_names, values(launched), strict=True)) for launched in record]
    for place, others in ((0, [1]), (2, [3, 4])):
        for other in others:
            for name in ("w_down", "b_down", "column_sum", "w_up", "w_rec1", "w_rec2"):
                assert found[other].get(name, found[place][f"{name}_out"]) == found[place][f"{name}_out"], name
            assert found[other]["PREPARED"]
    assert made.data_ptr() <= found[3]["w_down"] < made.data_ptr() + made.numel()
    # Nobody reads the weights that were prepared where they were.
    for name, index in (("w_down", 0), ("w_up", 2), ("w_rec2", 6)):
        address = case.weights[index].data_ptr()
        assert all(arguments.get(name) != address for arguments in (found[1], found[3], found[4])), name


def test_prepared_weights_are_kept_while_their_versions_stand(always_prepared, monkeypatch):
    """Only where the user asked for it, and never in a graph: what it replays it has to make."""
    case = make_case((8,), 64, 5, 6, norm=True).to(torch.bfloat16, torch.float32)
    record = []

    def prepares(arguments) -> bool:
        record.clear()
        operators.forward(*arguments)
        return "prepare" in names(record)

    with dry_launches(record):
        arguments = forward_arguments(case)
        assert [prepares(arguments) for _ in range(2)] == [True, True]
        with configure(keep_prepared=True):
            assert [prepares(arguments) for _ in range(3)] == [True, False, False]
            for tensor in (case.weights[0], case.weights[6], case.norm[0]):
                tensor.mul_(2)
                assert [prepares(arguments) for _ in range(2)] == [True, False]
            other = make_case((8,), 64, 5, 6, norm=True, seed=1).to(torch.bfloat16, torch.float32)
            assert [prepares(forward_arguments(other)) for _ in range(2)] == [True, False]
            assert not prepares(arguments)
            assert len(prepared._kept) == 2
            del other
            assert len(prepared._kept) == 1  # another tensor may lie there now
            waiting = len(weakref.finalize._registry)
            for _ in range(3):  # one weight that ends, beside those that live on
                assert prepares(forward_arguments(replace(case, weights=[case.weights[0].clone(), *case.weights[1:]])))
                record.clear()
            assert len(weakref.finalize._registry) == waiting
            monkeypatch.setattr(prepared, "_recording", lambda tensor: True)
            assert [prepares(arguments) for _ in range(2)] == [True, True]
            monkeypatch.undo()
        with torch.inference_mode():
            blind = make_case((8,), 64, 5, 6).to(torch.bfloat16, torch.float32)
    with pytest.raises(TypeError, match="keep_prepared is 'yes'; valid: True, False"):
        configure(keep_prepared="yes")
    assert blind.x.is_inference()


def test_the_first_call_chooses_nothing_that_a_later_one_would_not(monkeypatch):
    """A first call that is recorded into a graph, or made while another thread records one: nothing is measured or
    synchronised, and the configuration is that of every other call."""
    case = make_case((300,), 64, 4, 4).to(torch.float16)

    def forbidden(*arguments, **options):
        raise AssertionError("a launch measures or waits")

    def configuration() -> tuple:
        record = []
        with dry_launches(record):
            operators.forward(*forward_arguments(case))
            operators.backward(*backward_arguments(case))
            return [(launched.arguments[-20:], launched.options) for launched in record if not launched.direct]

    usual = configuration()
    monkeypatch.setattr(triton.testing, "do_bench", forbidden)
    monkeypatch.setattr(torch.cuda, "synchronize", forbidden)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert len(configuration()) == len(usual)
    assert [options for _, options in configuration()] == [options for _, options in usual]


def test_options_are_read_once_a_call(monkeypatch):
    """Another thread changes them between a call's key and its plan: the plan is of the precision in the key."""
    case = make_case((8,), 64, 4, 4).to(torch.float32)
    answers = iter(["ieee", "tf32", "tf32", "ieee", "tf32", "tf32"])
    monkeypatch.setattr(operators, "precision_of", lambda dtype: next(answers))
    record = []
    with dry_launches(record):
        operators.forward(*forward_arguments(case))
        operators.forward(*forward_arguments(case))
        operators.forward(*forward_arguments(case))
        operators.backward(*backward_arguments(case))
    found = [dict(zip(launched.kernel.arg_names, launched.arguments, strict=True)) for launched in record]
    assert [arguments["PRECISION"] for arguments in found[:4]] == ["ieee", "tf32", "tf32", "ieee"]


def test_backward_goes_in_slices_that_lie_in_l2(monkeypatch):
    """K1 and K2 of the same rows, one slice after the other, whole waves of K1; every row and chunk once."""
    from rmadapter_kernels.triton import plans

    monkeypatch.setattr(plans, "slice_rows", lambda problem, config, device: 4 * config.block_m)
    case = make_case((700,), 64, 4, 4, norm=True).to(torch.bfloat16, torch.float32)
    record = []
    with dry_launches(record):
        operators.backward(*backward_arguments(case))
    order = names(record)
    assert order[-1] == "backward_sum"
    pairs = len(order) // 2
    assert order[:-1] == ["backward_rows", "backward_weights"] * pairs
    assert pairs > 1
    found = [dict(zip(launched.kernel.arg_names, launched.arguments, strict=True)) for launched in record]
    covered, chunks = [], 0
    for rows, weights, launched in zip(found[:-1:2], found[1:-1:2], record[1:-1:2], strict=True):
        assert (rows["first_row"], rows["last_row"]) == (weights["first_row"], weights["last_row"])
        covered += range(rows["first_row"], rows["last_row"])
        assert weights["first_chunk"] == chunks
        assert weights["chunk_rows"] % weights["BLOCK_M"] == 0
        chunks += launched.grid[1]
        assert (launched.grid[1] - 1) * weights["chunk_rows"] < rows["last_row"] - rows["first_row"]
    assert covered == list(range(700))
    assert found[-1]["chunks"] == chunks
