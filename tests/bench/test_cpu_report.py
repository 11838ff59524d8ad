"""The report of bench/test_cpu.py's times, against ratios worked out by hand."""

from __future__ import annotations

import json

from bench.cpu_report import FLOP, keep, report
from bench.cpu_report import measured as measured_entry

MATMUL = 1e9
# As many times what the backend takes.
TIMES = {"cpu": 1, "eager": 4, "compile": 2, "compile-max": 1.5}


def measured(contender, seconds, **info):
    return {"extra_info": {"contender": contender, **info}, "stats": {"median": seconds}}


def test_each_size_stands_beside_the_others_and_their_means_below():
    found = [
        measured("matmul", 1.0, dtype=dtype, flop=rate * MATMUL, threads=2, instructions="avx512")
        for dtype, rate in (("fp32", 100), ("bf16", 200))
    ]
    for dtype, rate in (("fp32", 100), ("bf16", 200)):
        for direction in FLOP:
            for tokens, slower in ((1000, 1), (4000, 2 if direction == "both" else 1)):
                floor = FLOP[direction] * tokens / (rate * MATMUL)
                # Twice the floor; of the second size both ways the others are twice as far behind.
                for name, times in TIMES.items():
                    seconds = 2 * floor * times * (slower if name != "cpu" else 1)
                    found.append(measured(name, seconds, dtype=dtype, direction=direction, tokens=tokens))
    text = report({"benchmarks": found, "machine_info": {"cpu": {"brand_raw": "Some CPU"}, "torch": "2.12"}})
    heading, rule, *rows = [line for line in text.splitlines() if line.startswith("|")]
    assert text.startswith("Some CPU, 2 threads, avx512, torch 2.12. ")
    assert "fp32 100 and bf16 200 GFLOP/s" in text
    assert heading == "| dtype | direction | tokens | cpu, ms | share | eager, ms | compile, ms | max-autotune, ms |"
    assert rule == "|---|---|--:|--:|--:|--:|--:|--:|"
    milliseconds = 2e3 * FLOP["forward"] * 1000 / (100 * MATMUL)
    assert rows[0].startswith(f"| fp32 | forward | 1,000 | {milliseconds:.2f} | 50% | {4 * milliseconds:.2f} (4.00x) |")
    assert len(rows) == 8 + 2 + 3
    assert rows[8:10] == [
        "| geometric mean | forward fp32 | both fp32 | forward bf16 | both bf16 |",
        "|---|--:|--:|--:|--:|",
    ]
    assert rows[10] == "| against eager | 4.00x | 5.66x | 4.00x | 5.66x |"
    assert "\n\nThe least advantage in any case: 1.50x (" in text
    assert text.endswith(", compile-max).\n")


def test_a_library_without_bf16_is_judged_by_its_fp32():
    """The floor of a bf16 product is then the fp32 product."""
    for others in ([], [("bf16", 1)]):
        found = [
            measured("matmul", 1.0, dtype=dtype, flop=rate * MATMUL, threads=2, instructions="avx2")
            for dtype, rate in (("fp32", 100), *others)
        ]
        for dtype in ("fp32", "bf16"):
            for direction in FLOP:
                seconds = 2 * FLOP[direction] * 1000 / (100 * MATMUL)
                for name in TIMES:
                    found.append(measured(name, seconds, dtype=dtype, direction=direction, tokens=1000))
        text = report({"benchmarks": found, "machine_info": {"cpu": {"brand_raw": "Some CPU"}, "torch": "2.12"}})
        assert "fp32 100 GFLOP/s, of bf16 products too." in text
        assert [line.split("|")[5].strip() for line in text.splitlines() if line.startswith("| bf16")] == ["50%", "50%"]


def test_auto_gets_the_least_advantage_over_the_fastest_other(tmp_path):
    found = [measured("matmul", 1.0, dtype="bf16", processor="Vendor 6 9", instructions="avx2")]
    for tokens, slower in ((1000, 1.0), (4000, 0.5)):
        for name, times in TIMES.items():
            seconds = times * (slower if name == "compile" else 1)
            found.append(measured(name, seconds, dtype="bf16", direction="both", tokens=tokens))
    entry = measured_entry({"benchmarks": found}, "some.md")
    assert entry == {
        "processors": ["Vendor 6 9"],
        "instructions": "avx2",
        "results": "some.md",
        "least": {"bfloat16": 1.0},
    }
    path = tmp_path / "measured.json"
    other = {**entry, "results": "other.md"}
    path.write_text(json.dumps([{**entry, "processors": ["Vendor 6 ", "Else"], "least": {}}, other]))
    keep(entry, path)
    assert json.loads(path.read_text()) == [other, {**entry, "processors": ["Vendor 6 ", "Else"]}]
