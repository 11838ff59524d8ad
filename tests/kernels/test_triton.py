"""The Triton backend without a GPU: the interpreter's tests, launches that go nowhere, compilation for GPUs."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from operator_cases import make_case

triton = pytest.importorskip("triton", reason="Triton is for Linux alone")

from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

import rmadapter_kernels
from rmadapter_kernels import available_backends, explain, report
from rmadapter_kernels.triton import autotune, configure, launch, operators, options, tuning
from rmadapter_kernels.triton.dry import dry_launches
from rmadapter_kernels.triton.tuning import KNOWN_DEVICES, Config, Problem

HERE = Path(__file__).parent


def environment(**changes: str) -> dict[str, str]:
    """This process's, with the packages under test in front."""
    root = str(Path(rmadapter_kernels.__file__).parents[1])
    return os.environ | {"PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])} | changes


@pytest.mark.timeout(1800)
def test_under_the_interpreter():
    """In a process of its own: the variable counts when Triton is imported."""
    command = [sys.executable, "-m", "pytest", "--confcutdir", str(HERE), str(HERE / "triton_interpreter.py")]
    done = subprocess.run(
        command, env=environment(TRITON_INTERPRET="1"), cwd=HERE.parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "passed" in done.stdout


@pytest.mark.timeout(600)
def test_data_parallel_under_the_interpreter(tmp_path):
    """Two processes over gloo: weights stay those of one process, also those that a loss leaves unused."""
    command = [sys.executable, str(HERE / "triton_ddp.py")]
    started = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "meeting")],
            env=environment(TRITON_INTERPRET="1"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        printed = [process.communicate(timeout=500)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    for rank, text in enumerate(printed):
        assert f"rank {rank} done" in text, text[-4000:]


def test_importing_needs_no_triton():
    """Nor does using another backend."""
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, rmadapter_kernels as kernels; kernels.available_backends()\n"
        "kernels.FusedRMAdapter(64, backend='eager')(torch.zeros(2, 64))"
    )
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is so without a CUDA device")
def test_without_a_device():
    status = available_backends()["triton"]
    assert not status.available
    assert status.reason == "there is no CUDA device"
    with pytest.raises(ValueError, match="backend is 'triton', which is not available here: there is no CUDA device"):
        explain(torch.zeros(2, 64), backend="triton")


# Launches


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


# Choices of launch configurations


def test_the_heuristic_serves_every_problem():
    precisions = [(torch.bfloat16, ""), (torch.float16, ""), *((torch.float32, p) for p in ("ieee", "tf32", "tf32x3"))]
    for device in KNOWN_DEVICES.values():
        for kernel in tuning.KERNELS:
            for dtype, precision in precisions:
                for d in (64, 80, 208, 768, 1152, 1664, 2048):
                    for r, h in ((1, 0), (16, 16), (33, 128), (128, 1)):
                        for tokens in (1, 788, 6304, 262144):
                            problem = Problem(kernel, dtype, precision, d, r, h, tokens)
                            config = tuning.config_for(problem, device)
                            assert config.block_m <= 64
                            assert tuning.chunk_count(problem, config, device) >= 1


def test_smaller_configurations_end():
    config, seen = Config(64, 64, 8, 2), 0
    while config is not None:
        config, seen = tuning.smaller(config), seen + 1
    assert seen == 6


def test_a_config_checks_itself():
    with pytest.raises(ValueError, match="block_m is 48; valid: a power of two from 16 on"):
        Config(48, 64, 4, 2)


def test_autotune_measures_once_and_remembers_on_disk(monkeypatch, tmp_path):
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path))
    monkeypatch.setattr(autotune, "device_name", lambda: "Test GPU")
    monkeypatch.setattr(autotune, "_measured", {})
    device = KNOWN_DEVICES["sm_90"]
    problem = Problem("forward", torch.bfloat16, "", 768, 32, 32, 6304)
    usual = tuning.config_for(problem, device)
    measured = []

    def measure(config):
        measured.append(config)
        return 1.0 if config.block_m == 128 and config.num_warps == 8 else 2.0

    assert autotune.choose_config(problem, device, measure) == usual
    assert not measured  # only by option
    with configure(max_autotune=True):
        assert autotune.choose_config(problem, device, None) == usual  # nothing may be measured in a capture
        best = autotune.choose_config(problem, device, measure)
        assert best.block_m == 128
        assert measured[0] == usual
        count = len(measured)
        assert autotune.choose_config(problem, device, measure) == best
        monkeypatch.setattr(autotune, "_measured", {})  # another process
        assert autotune.choose_config(dataclasses.replace(problem, tokens=5000), device, measure) == best
        assert len(measured) == count
        (path,) = tmp_path.glob("autotune-Test-GPU-*.json")
        path.write_text("{ broken")
        monkeypatch.setattr(autotune, "_measured", {})
        assert autotune.choose_config(problem, device, measure) == best  # measured again
    assert not options().max_autotune


def test_options_say_what_is_valid():
    with pytest.raises(TypeError, match="max_autotune is 'yes'; valid: True, False"):
        configure(max_autotune="yes")
    with pytest.raises(TypeError, match="nonesuch"):
        configure(nonesuch=1)


# Compilation for GPUs that are not here


def check_row(row: report.Row) -> None:
    where = f"{row.arch} {row.kernel} {row.dtype} r={row.r}"
    assert row.shared <= tuning.SHARED_LIMIT[row.arch], where
    assert row.tmem <= tuning.TMEM_LIMIT, where
    if row.dtype in ("bf16", "fp16", "tf32") or row.r <= 64:
        assert (row.stack, row.spills) == (0, 0), where
    if row.arch == "sm_90" and row.dtype in ("bf16", "fp16") and row.block_m >= 64:
        assert row.instruction == "wgmma", where
    if row.dtype != "ieee":
        assert row.instruction != "fma", where


def large_configurations_use_wgmma(cases: list[report.Case]) -> None:
    """With many tokens: in the forward at every width, in K1 up to 32."""
    for kernel, widths in (("forward", report.WIDTHS), ("rows", (16, 32))):
        for dtype in ("bf16", "fp16"):
            for width in widths:
                assert any(
                    (c.arch, c.kernel, c.dtype, c.r) == ("sm_90", kernel, dtype, width) and c.config.block_m >= 64
                    for c in cases
                ), (kernel, dtype, width)


SAMPLE = [
    ("sm_90", "forward", "bf16", 32),
    ("sm_90", "rows", "bf16", 32),
    ("sm_90", "weights", "bf16", 128),
    ("sm_80", "rows", "fp16", 128),
    ("sm_86", "forward", "bf16", 128),
    ("sm_100", "rows", "tf32", 32),
    ("sm_120", "weights", "fp16", 32),
]


def test_a_sample_compiles_without_spills(monkeypatch, tmp_path):
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path))
    cases = report.cases(["sm_90"])
    large_configurations_use_wgmma(cases)
    for arch, kernel, dtype, width in SAMPLE:
        case = report.cases([arch], [dtype], [width], [kernel])[-1]
        check_row(report.examine(case))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_configuration_compiles_without_spills():
    cases = report.cases(KNOWN_DEVICES)
    assert len(cases) <= report.MOST_COMPILES
    for row in report.report(cases, jobs=os.cpu_count(), progress=False):
        check_row(row)


def test_what_does_not_compile_is_named_after_the_rest(monkeypatch, tmp_path):
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path))
    (good,) = report.cases(["sm_80"], ["bf16"], [16], ["weights"])
    broken = dataclasses.replace(good, config=Config(16, 1 << 21, 4, 2))
    rows = []
    with pytest.raises(RuntimeError, match=r"1 of 2 do not compile\nsm_80 weights bf16 .* 16x2097152"):
        rows.extend(report.report([broken, good], progress=False))
    (row,) = report.report([good], progress=False)
    assert row.clean


def test_report_command(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path))
    command = ["--arch", "sm_80", "--dtype", "bf16", "--kernel", "weights", "--width", "16", "--jobs", "1"]
    report.main([*command, "--json", str(tmp_path / "report.json")])
    printed = capsys.readouterr()
    assert "sm_80  weights  bf16      768   16" in printed.out
    assert "1 of 1 clean" in printed.out
    assert "1/1 compiled" in printed.err
    assert '"registers"' in (tmp_path / "report.json").read_text()
    monkeypatch.setattr(report, "examine", None)  # from the cache now
    report.main(command)
    assert "1 of 1 clean" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--arch is 'sm_70'; valid: sm_80, sm_86"):
        report.main(["--arch", "sm_70"])
