"""Launch configurations of the Triton backend: which are chosen, and what they take of GPUs that are not here."""

from __future__ import annotations

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from grids import slow

pytest.importorskip("triton", reason="Triton is for Linux alone")

from rmadapter_kernels import report
from rmadapter_kernels.triton import autotune, configure, options, tuning
from rmadapter_kernels.triton.tuning import KNOWN_DEVICES, Config, Problem


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


def test_large_configurations_use_wgmma():
    """With many tokens: in the forward at every width, in K1 up to 32."""
    cases = report.cases(["sm_90"])
    for kernel, widths in (("forward", report.WIDTHS), ("rows", (16, 32))):
        for dtype in ("bf16", "fp16"):
            for width in widths:
                assert any(
                    (c.arch, c.kernel, c.dtype, c.r) == ("sm_90", kernel, dtype, width) and c.config.block_m >= 64
                    for c in cases
                ), (kernel, dtype, width)


@pytest.mark.parametrize(
    ("arch", "kernel", "dtype", "width"),
    [
        ("sm_90", "rows", "bf16", 32),
        slow("sm_90", "forward", "bf16", 32),
        slow("sm_90", "weights", "bf16", 128),
        slow("sm_80", "rows", "fp16", 128),
        slow("sm_86", "forward", "bf16", 128),
        slow("sm_100", "rows", "tf32", 32),
        slow("sm_120", "weights", "fp16", 32),
    ],
)
def test_a_sample_compiles_without_spills(arch, kernel, dtype, width):
    case = report.cases([arch], [dtype], [width], [kernel])[-1]
    check_row(report.examine(case))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_configuration_compiles_without_spills():
    cases = report.cases(KNOWN_DEVICES)
    assert len(cases) <= report.MOST_COMPILES
    for row in report.report(cases, jobs=os.cpu_count(), progress=False):
        check_row(row)


@pytest.mark.parametrize("pool", [slow("processes"), "threads"])
def test_what_does_not_compile_is_named_after_the_rest(pool, monkeypatch, tmp_path):
    """A thread starts at once; test_report_command has a process."""
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path))
    if pool == "threads":
        monkeypatch.setattr(report, "ProcessPoolExecutor", lambda jobs, mp_context: ThreadPoolExecutor(jobs))
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
