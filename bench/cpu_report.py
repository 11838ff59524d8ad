"""The results of bench/test_cpu.py as a table: ``python bench/cpu_report.py cpu.json > bench/results/cpu.md``."""

from __future__ import annotations

import json
import math
import sys

from rmadapter.reports.document import Document
from rmadapter.reports.tables import Table

D, R = 768, 32
FLOP = {"forward": 6 * D * R, "both": 22 * D * R}  # a token
NAMES = {"eager": "eager", "compile": "compile", "compile-max": "max-autotune"}


def geometric_mean(values: list[float]) -> float:
    """exp of the mean logarithm."""
    return math.exp(sum(map(math.log, values)) / len(values))


def report(results: dict) -> str:
    """Markdown: each size and direction, then the means over the sizes."""
    rate, times = {}, {}
    for entry in results["benchmarks"]:
        info, median = entry["extra_info"], entry["stats"]["median"]
        if info["contender"] == "matmul":
            rate[info["dtype"]] = info["flop"] / median
            machine = f"{info['threads']} threads, {info['instructions']}"
        else:
            times[info["dtype"], info["direction"], info["tokens"], info["contender"]] = median
    versions = results["machine_info"]
    lead = (
        f"{versions['cpu']['brand_raw']}, {machine}, torch {versions['torch']}. Medians of one run; share: of the time "
        "that the products alone take\n"
        f"at the rate of a 2048^3 matmul, fp32 {rate['fp32'] / 1e9:.0f} and bf16 {rate['bf16'] / 1e9:.0f} GFLOP/s."
    )
    sizes = []
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
        sizes.append((dtype, direction, f"{tokens:,}", f"{median * 1e3:.2f}", f"{share:.0%}", *others))
    headings = ("dtype", "direction", "tokens", "cpu, ms", "share", *(f"{name}, ms" for name in NAMES.values()))
    columns = [("fp32", "forward"), ("fp32", "both"), ("bf16", "forward"), ("bf16", "both")]
    means = [
        (f"against {label}", *(f"{geometric_mean(ratios[(*column, name)]):.2f}x" for column in columns))
        for name, label in NAMES.items()
    ]
    slowest = min((min(values), key) for key, values in ratios.items())
    blocks = (
        Table("", headings, sizes, words=(0, 1), aligned=False),
        Table("", ("geometric mean", *(f"{way} {dtype}" for dtype, way in columns)), means, aligned=False),
        f"The least advantage in any case: {slowest[0]:.2f}x ({', '.join(slowest[1])}).",
    )
    return Document("", lead, blocks).markdown()


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        print(report(json.load(file)), end="")
