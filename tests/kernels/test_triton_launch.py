"""Launches of the Triton backend that go nowhere: which arguments go where, and what is compiled anew."""

from __future__ import annotations

import inspect
import re

import pytest
import torch
from operator_cases import make_case

pytest.importorskip("triton", reason="Triton is for Linux alone")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from rmadapter_kernels.triton import configure, launch, operators
from rmadapter_kernels.triton.dry import dry_launches


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
    assert (rows["scale"], rows["branch_grad_scale"], total["up_factor"]) == (0.5, 2.0, 1.0)
    assert (rows["D"], rows["R"], rows["H"], rows["BLOCK_R"], rows["LOCAL"], rows["NORM"]) == (
        64,
        4,
        6,
        16,
        False,
        True,
    )
    for name, key in (("z", "z"), ("h", "h"), ("dz", "dz"), ("dh", "dh"), ("mean", "mean"), ("rstd", "rstd")):
        assert rows[f"{name}_out"] == weights[f"{key}_in"] != 0
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
            if name in ("M", "inner", "chunks", "chunk_rows"):
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
        assert len(tries) == 3
        assert tries[1] == 1
        operators.forward(*forward_arguments(case))
        assert record[-1].direct
