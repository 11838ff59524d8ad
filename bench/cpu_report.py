"""The results of bench/test_cpu.py as a table, and what `auto` takes from them.

    python bench/cpu_report.py cpu.json --results bench/results/cpu_intel.md

writes the table, and into rmadapter_kernels/cpu_measured.json the least advantage in each dtype over eager and
torch.compile on this family of processors; without --results the table is printed.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from rmadapter.reports.document import Document
from rmadapter.reports.tables import Table
from rmadapter_kernels.cpu import MEASURED

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
    # A product in bf16 can be made in fp32 too, which is the faster way where the library has no bf16 for a processor.
    quickest = {dtype: max(rate["fp32"], rate.get(dtype, 0.0)) for dtype in ("fp32", "bf16")}
    fp32, bf16 = (f"{quickest[dtype] / 1e9:.0f}" for dtype in ("fp32", "bf16"))
    own = rate.get("bf16", 0.0) == quickest["bf16"]
    rates = f"fp32 {fp32} and bf16 {bf16} GFLOP/s" if own else f"fp32 {fp32} GFLOP/s, of bf16 products too"
    versions = results["machine_info"]
    commit = f", commit {results['commit_info']['id'][:7]}" if "commit_info" in results else ""
    timers = {entry.get("options", {}).get("timer", "perf_counter") for entry in results["benchmarks"]}
    # Of the process where others share the machine: what the program did, not what it waited for.
    machine += "".join(f", timed by {timer}" for timer in sorted(timers - {"perf_counter"}))
    lead = (
        f"{versions['cpu']['brand_raw']}, {machine}, torch {versions['torch']}{commit}. Medians of one run; share: of "
        "the time that the products alone take\n"
        f"at the rate of a 2048^3 matmul, {rates}."
    )
    sizes = []
    ratios: dict[tuple[str, str, str], list[float]] = {}
    for (dtype, direction, tokens, contender), median in times.items():
        if contender != "cpu":
            continue
        share = FLOP[direction] * tokens / quickest[dtype] / median
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


def measured(results: dict, path: str) -> dict[str, Any]:
    """The entry of cpu_measured.json for a table at ``path``: the least ratio to the fastest other, by dtype."""
    entries = [entry["extra_info"] | {"median": entry["stats"]["median"]} for entry in results["benchmarks"]]
    matmul = next(entry for entry in entries if entry["contender"] == "matmul")
    times: dict[tuple[str, str, int], dict[str, float]] = {}
    for entry in entries:
        if entry["contender"] != "matmul":
            case = times.setdefault((entry["dtype"], entry["direction"], entry["tokens"]), {})
            case[entry["contender"]] = entry["median"]
    least: dict[str, float] = {}
    for (dtype, _, _), case in times.items():
        name = {"fp32": "float32", "bf16": "bfloat16"}[dtype]
        ratio = min(case[other] for other in NAMES) / case["cpu"]
        least[name] = min(least.get(name, math.inf), round(ratio, 2))
    return {
        "processors": [matmul["processor"]],
        "instructions": matmul["instructions"],
        "results": path,
        "least": least,
    }


def keep(entry: dict[str, Any], path: Path = MEASURED) -> None:
    """Puts ``entry`` in the place of the one with the same table, which may stand for more processors."""
    runs = json.loads(path.read_text(encoding="utf-8"))
    others = [run for run in runs if run["results"] != entry["results"]]
    for run in runs:
        if run["results"] == entry["results"]:
            known = run["processors"]
            new = [p for p in entry["processors"] if not p.startswith(tuple(known))]
            entry = {**entry, "processors": known + new}
    text = json.dumps(sorted([*others, entry], key=lambda run: run["results"]), indent=1)
    path.write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, help="what pytest wrote by --benchmark-json")
    parser.add_argument("--results", type=Path, help="the table's file, relative to the root of the repository")
    given = parser.parse_args()
    results = json.loads(given.json.read_text(encoding="utf-8"))
    if given.results is None:
        print(report(results), end="")
        return
    given.results.write_text(report(results), encoding="utf-8")
    keep(measured(results, given.results.as_posix()))


if __name__ == "__main__":
    main()
