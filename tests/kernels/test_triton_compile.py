"""Launch configurations of the Triton backend: which are chosen, and what their machine code takes of GPUs that are not
here."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest
import torch
from grids import slow

pytest.importorskip("triton", reason="Triton is for Linux alone")

import triton

from bench import machine_code, sass
from bench.compiled import Case, compile_case
from rmadapter_kernels.triton import configure, options, tuning
from rmadapter_kernels.triton.devices import KNOWN_DEVICES
from rmadapter_kernels.triton.tuning import Config, Problem, config_for, model

pytestmark = pytest.mark.skipif(bool(os.environ.get("TRITON_INTERPRET")), reason="the interpreter compiles nothing")

PROBLEMS = [
    Problem(kernel, dtype, precision, d, r, h, tokens)
    for kernel in tuning.KERNELS
    for dtype, precision in (
        (torch.bfloat16, ""), (torch.float16, ""), *((torch.float32, p) for p in ("ieee", "tf32", "tf32x3")),
    )
    for d in (64, 80, 208, 768, 1152, 2048)
    for r, h in ((1, 0), (16, 16), (33, 128), (128, 1))
    for tokens in (1, 788, 6304, 262144)
]  # fmt: skip


@pytest.mark.parametrize("arch", KNOWN_DEVICES)
def test_the_model_serves_every_problem(arch):
    device = KNOWN_DEVICES[arch]
    for problem in PROBLEMS:
        config = config_for(problem, device)
        assert config == model(problem, device)
        assert config.block_m <= 128
        chunk = tuning.chunks_of(problem, config, device, problem.tokens)
        assert chunk % config.block_m == 0
        rows = dataclasses.replace(problem, kernel="rows")
        assert tuning.slice_rows(problem, config_for(rows, device), device) >= 1


@pytest.mark.parametrize("arch", KNOWN_DEVICES)
def test_programs_of_the_weights_kernel_fill_one_wave(arch):
    """Without a second wave for a few of them; with few tokens a chunk has at least two tiles, and is a multiple of
    them."""
    device = KNOWN_DEVICES[arch]
    for tokens in (1, 197, 788, 3152, 6304, 65536, 262144):
        problem = Problem("weights", torch.bfloat16, "", 768, 32, 32, tokens)
        config = config_for(problem, device)
        fact = dict(tuning.candidates(problem, device))[config]
        slots = device.programs(fact.registers, fact.shared, config.num_warps) * device.multiprocessors
        chunk = tuning.chunks_of(problem, config, device, tokens)
        chunks = -(-tokens // chunk)
        programs = chunks * tuning.weights_tiles(problem, config)
        assert programs <= max(slots, tuning.weights_tiles(problem, config))
        if tokens >= 65536:
            assert programs > 0.85 * slots
        assert chunks == 1 or chunk >= tuning.LEAST_TILES * config.block_m


@pytest.mark.parametrize("arch", KNOWN_DEVICES)
def test_no_stack_where_none_has_been_measured(arch):
    """In 16 bits up to r = h = 64. K1 at 64 has no tile without on an A100 that takes less than twice as long; on an
    H100 time ranks, by measurement."""
    device = KNOWN_DEVICES[arch]
    for kernel in tuning.KERNELS:
        for dtype in (torch.bfloat16, torch.float16):
            for width in (16, 32, 64):
                for tokens in (197, 788, 3152, 6304, 25216, 65536):
                    problem = Problem(kernel, dtype, "", 768, width, width, tokens)
                    fact = dict(tuning.candidates(problem, device))[model(problem, device)]
                    most = tuning.STACK if (kernel, width) != ("rows", 64) else 88 if arch == "sm_90" else 24
                    assert fact.stack <= most, f"{problem}: {fact}"


def test_slices_are_whole_waves_that_lie_in_l2():
    for arch in ("sm_80", "sm_90", "sm_100"):
        device = KNOWN_DEVICES[arch]
        problem = Problem("rows", torch.bfloat16, "", 768, 32, 32, 1 << 18)
        config = config_for(problem, device)
        rows = tuning.slice_rows(problem, config, device)
        if rows < problem.tokens:
            assert rows % (config.block_m * device.multiprocessors) == 0
            assert rows * 2 * 768 * 2 <= device.l2_bytes
        assert tuning.slice_rows(dataclasses.replace(problem, tokens=6304), config, device) == 6304
    assert any(
        tuning.slice_rows(problem, config_for(problem, KNOWN_DEVICES[arch]), KNOWN_DEVICES[arch]) < problem.tokens
        for arch in ("sm_80", "sm_90", "sm_100")
    )


def test_rows_take_at_least_64_columns_in_16_bits():
    for device in KNOWN_DEVICES.values():
        for tokens in (1, 197, 788, 3152, 6304, 8384, 65536):
            for width in (16, 32):
                config = config_for(Problem("rows", torch.bfloat16, "", 768, width, width, tokens), device)
                assert config.block_d >= 64


def test_preparing_pays_from_2000_tokens_on():
    assert not tuning.worth_preparing(1999)
    assert tuning.worth_preparing(2001)


def test_smaller_configurations_end():
    config, seen = Config(64, 64, 8, 3), 0
    while config is not None:
        config, seen = tuning.smaller(config), seen + 1
    assert seen == 7


def test_a_config_checks_itself():
    with pytest.raises(ValueError, match="block_m is 48; valid: a power of two from 16 on"):
        Config(48, 64, 4, 2)


def test_options_say_what_is_valid():
    with pytest.raises(TypeError, match="nonesuch"):
        configure(nonesuch=1)
    with pytest.raises(TypeError, match="max_autotune"):
        configure(max_autotune=True)
    assert options().fp32_precision is None


def chosen(
    arch: str, kernel: str, dtype: str = "bf16", width: int = 32, tokens: int = 65536, norm: bool = True
) -> Case:
    (case,) = machine_code.cases([arch], [dtype], [width], [kernel], [tokens], [norm])
    return case


# The most demanding of each kernel in the usual run; make test-triton and make test-all have the others.
HELD = [
    (kernel, tokens, norm) if (kernel, tokens, norm) == ("rows", 6304, True) else slow(kernel, tokens, norm)
    for kernel in tuning.KERNELS
    for tokens in (6304, 65536)
    for norm in (False, True)
]


@pytest.mark.parametrize(("kernel", "tokens", "norm"), HELD)
def test_what_is_promised_is_held(kernel, tokens, norm):
    """Instructions and weights' bytes a token, two tiles ahead, no synchronous load of rows, no stack."""
    row = machine_code.examine(chosen("sm_90", kernel, tokens=tokens, norm=norm))
    assert machine_code.faults([row]) == []
    assert row.exposed == 0 or kernel == "weights"
    assert row.classes["async copy"] > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_what_is_promised_in_16_bits_up_to_64(arch, dtype):
    """No loop uses a stack, and at r = h = 32 there are at most a few bytes of it; copies are two tiles ahead."""
    cases = machine_code.cases([arch], [dtype], [16, 32, 64], tuning.KERNELS, machine_code.TOKENS)
    rows = list(machine_code.rows_of(cases, jobs=2))
    assert machine_code.faults(rows) == []


def test_faults_are_found():
    good = machine_code.Row(
        "a case", "sm_90", "forward", "bf16", 32, 65536, True, 64, 64, 4, 3, "3.8.0", "wgmma", 198, 0, 0, 67584, 2,
        682.0, {}, 0, 2.0, 0, 4612.0, 7144.0, 2336.0, 0.8, 1.1, 1.3, 1.4,
    )  # fmt: skip
    assert machine_code.faults([good]) == []
    for change in (
        {"r": 64, "stack": 88},
        {"r": 64, "synchronous": 1},
        {"dtype": "fp16", "synchronous": 1},
        {"arch": "sm_80", "synchronous": 1},
    ):
        assert machine_code.faults([dataclasses.replace(good, **change)]) == []
    assert good.bound_ns == 1.4
    for change, message in (
        ({"instructions": 900.0}, "a case: 900 instructions a token; valid: at most 720"),
        ({"weights": 4672.0}, "a case: 4672 bytes of weights a token from L2; valid: at most 2336"),
        ({"stack": 24}, "a case: 24 bytes of stack, 0 spills"),
        ({"stack": 8, "spills": 2}, "a case: 8 bytes of stack, 2 spills"),
        ({"r": 64, "stack": 88, "spills": 2}, "a case: 88 bytes of stack, 2 spills"),
        ({"synchronous": 1}, "a case: 1 loads of a wide tensor in a loop are synchronous"),
        ({"ahead": 1.0}, "a case: 1.0 tiles ahead; valid: 2"),
        ({"r": 64, "ahead": 1.0}, "a case: 1.0 tiles ahead; valid: 2"),
    ):
        assert machine_code.faults([dataclasses.replace(good, **change)]) == [message]
    assert "wgmma" in machine_code.table([good])


def test_a_loop_without_stages_is_seen_to_wait():
    """One stage: every copy is waited for at once. The tool that judges the others has to see it."""
    case = chosen("sm_90", "weights", norm=False)
    compiled = compile_case(dataclasses.replace(case, config=dataclasses.replace(case.config, num_stages=2)))
    loops, _ = sass.loops_of(compiled.asm["ttgir"])
    assert loops[0].ahead < 2
    assert {load.role for load in loops[0].loads} == {"rows", "between"}
    machine = sass.machine_of(compiled.asm["cubin"])
    assert len(sass.counterparts(loops, machine)) == len(loops) == 2


def test_a_barrier_that_is_tried_again_is_no_loop(monkeypatch):
    """Behind the end of a kernel with tensor memory lies what tries a barrier again and branches back into a loop."""
    again = ["SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR9], R6", "@!P1 BRA `(.L_x_9)"]
    body = [".L_x_0:", *["FADD R1, R1, R2"] * 8, *again, ".L_x_1:", *["FADD R1, R1, R2"] * 30, "@P0 BRA `(.L_x_0)"]
    lines = [*body, "EXIT", ".L_x_9:", *again, "BRA `(.L_x_1)"]
    listing = "\n".join(line if line.endswith(":") else f"        /*00{place:02x}*/  {line} ;"
                        for place, line in enumerate(lines))  # fmt: skip
    monkeypatch.setattr(sass, "_run", lambda tool, *_: listing if tool == "nvdisasm" else "REG:40 STACK:0")
    machine = sass.machine_of(b"")
    assert [sum(loop.classes.values()) for loop in machine.loops] == [41]
    assert sum(machine.outside.classes.values()) == 4


@pytest.mark.slow
def test_every_candidate_is_in_the_facts():
    facts = json.loads(tuning.FACTS_FILE.read_text())
    for kernel, kinds in tuning.CANDIDATES.items():
        for (kind, width), tiles in kinds.items():
            for family in tuning.FAMILIES:
                keys = [tuning.fact_key(kernel, kind, width, family, tile) for tile in tiles]
                assert any(key in facts for key in keys), (kernel, kind, width, family)


def test_command(monkeypatch, tmp_path, capsys):
    row = machine_code.Row(
        "a case", "sm_90", "forward", "bf16", 32, 65536, True, 64, 64, 4, 3, triton.__version__, "wgmma", 198, 0, 0,
        67584, 2, 682.0, {"float": 3.0}, 0, 2.0, 0, 4612.0, 7144.0, 2336.0, 0.8, 1.1, 1.3, 1.4,
    )  # fmt: skip

    def examined(cases, jobs, progress):
        yield from (dataclasses.replace(row, case=str(case)) for case in cases)

    monkeypatch.setattr(machine_code, "rows_of", examined)
    command = ["--arch", "sm_90", "--kernel", "forward", "--tokens", "65536", "--json", str(tmp_path / "rows.json")]
    assert machine_code.main([*command, "--check", "--classes"]) == 0
    printed = capsys.readouterr().out
    assert "2 rows, all as promised" in printed
    assert "sm_90" in printed
    assert json.loads((tmp_path / "rows.json").read_text())[0]["registers"] == 198
    row = dataclasses.replace(row, stack=24)
    assert machine_code.main(command) == 0
    assert machine_code.main([*command, "--check"]) == 1
    assert "24 bytes of stack" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--arch is 'sm_70'; valid: sm_80, sm_86"):
        machine_code.main(["--arch", "sm_70"])
    with pytest.raises(SystemExit, match="--tokens is '0'; valid: numbers from 1 on"):
        machine_code.main(["--tokens", "0"])


def test_what_does_not_compile_is_named_after_the_rest(monkeypatch):
    good = chosen("sm_90", "weights", width=16, norm=False)
    broken = dataclasses.replace(good, d=70)

    def examine(case):
        if case.d == 70:
            raise ValueError("no such width")
        return case

    monkeypatch.setattr(machine_code, "examine", examine)
    rows = []
    with pytest.raises(RuntimeError, match=r"1 of 2 do not compile\nsm_90 weights bf16 D=70 .*: ValueError: no such"):
        rows.extend(machine_code.rows_of([broken, good]))
    assert rows == [good]
