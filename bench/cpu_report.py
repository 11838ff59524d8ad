"""The results of bench/test_cpu.py as a table: ``python bench/cpu_report.py cpu.json > bench/results/cpu.md``."""

from __future__ import annotations

import json
import math
import sys

D, R = 768, 32
FLOP = {"forward": 6 * D * R, "both": 22 * D * R}  # a token
NAMES = {"eager": "eager", "compile": "compile", "compile-max": "max-autotune"}


def geometric_mean(values: list[float]) -> float:
    """exp of the mean logarithm."""
    return math.exp(sum(map(math.log, values)) / len(values))


def table(results: dict) -> list[str]:
    """Markdown lines: each size and direction, then the means over the sizes."""
    rate, times = {}, {}
    for entry in results["benchmarks"]:
        info, median = entry["extra_info"], entry["stats"]["median"]
        if info["contender"] == "matmul":
            rate[info["dtype"]] = info["flop"] / median
            machine = f"{info['threads']} threads, {info['instructions']}"
        else:
            times[info["dtype"], info["direction"], info["tokens"], info["contender"]] = median
    versions = results["machine_info"]
    lines = [
        f"{versions['cpu']['brand_raw']}, {machine}, torch {versions['torch']}. Medians of one run; share: of the time "
        "that the products alone take",
        f"at the rate of a {2048}^3 matmul, fp32 {rate['fp32'] / 1e9:.0f} and bf16 {rate['bf16'] / 1e9:.0f} GFLOP/s.",
        "",
        "| dtype | direction | tokens | cpu, ms | share | " + " | ".join(f"{n}, ms" for n in NAMES.values()) + " |",
        "|---|---|---|---|---|" + "---|" * len(NAMES),
    ]
    ratios: dict[tuple[str, str, str], list[float]] = {}
    for (dtype, direction, tokens, contender), median in times.items():
        if contender != "cpu":
            continue
        share = FLOP[direction] * tokens / rate[dtype] / median
        others = []
        for name in NAMES:
            other = times[dtype, direction, tokens, name]
            others.append(f"{other * 1e3:.2f} ({other / median:.2f}x)")
            ratios.setdefault((dtype, direction, name), []).append(other / median)
        cells = (dtype, direction, f"{tokens:,}", f"{median * 1e3:.2f}", f"{share:.0%}", *others)
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| geometric mean | forward fp32 | both fp32 | forward bf16 | both bf16 |", "|---|---|---|---|---|"]
    columns = [("fp32", "forward"), ("fp32", "both"), ("bf16", "forward"), ("bf16", "both")]
    for name, label in NAMES.items():
        means = (f"{geometric_mean(ratios[(*column, name)]):.2f}x" for column in columns)
        lines.append(f"| against {label} | " + " | ".join(means) + " |")
    slowest = min((min(values), key) for key, values in ratios.items())
    lines += ["", f"The least advantage in any case: {slowest[0]:.2f}x ({', '.join(slowest[1])})."]
    return lines


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        print("\n".join(table(json.load(file))))
