"""Draw the results of bench/gpu_check.py or of pytest-benchmark.

python -m bench.plot results/benchmark.json --out results
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any


def load(path: Path) -> list[dict[str, Any]]:
    """Rows with case, direction, contender and seconds by kind of time, of either sort of file."""
    data = json.loads(path.read_text(encoding="utf-8"))
    rows = []
    for entry in data.get("rows", []):
        times = {"cold": entry["cold_us"] / 1e6, "wall": entry["wall_us"] / 1e6}
        rows.append({key: entry[key] for key in ("case", "direction", "contender")} | {"seconds": times})
    for entry in data.get("benchmarks", []):
        if not entry["name"].startswith("test_operator["):
            continue
        parameters = entry["name"].removeprefix("test_operator[").removesuffix("]")
        case, direction = entry["group"].rsplit(" ", 1)
        contender = parameters.split(f"-{direction}-", 1)[1]
        times = {"wall": entry["stats"]["median"]}
        if "cold_us" in entry["extra_info"]:
            times["cold"] = entry["extra_info"]["cold_us"] / 1e6
        rows.append({"case": case, "direction": direction, "contender": contender, "seconds": times})
    return rows


def draw(rows: list[dict[str, Any]], out: Path) -> list[Path]:
    """One figure a direction and kind of time: bars by case, one colour a contender; returns the files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    grouped: dict[tuple[str, str], dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        for kind, seconds in row["seconds"].items():
            grouped[row["direction"], kind][row["case"]][row["contender"]] = seconds
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for (direction, kind), by_case in grouped.items():
        names = list(dict.fromkeys(name for times in by_case.values() for name in times))
        figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.22 * len(by_case) * len(names)))
        for index, name in enumerate(names):
            places = [number + 0.8 * index / len(names) for number in range(len(by_case))]
            axes.barh(places, [times.get(name, 0) * 1e6 for times in by_case.values()], 0.8 / len(names), label=name)
        axes.set_yticks([number + 0.4 for number in range(len(by_case))], list(by_case))
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.set_xlabel("microseconds a call, " + ("GPU alone with a cold L2" if kind == "cold" else "with the host"))
        axes.set_title(direction)
        # Bars of a logarithmic axis begin wherever it does: at a tenth of the fastest, not at the fastest itself.
        axes.set_xlim(left=1e5 * min(time for times in by_case.values() for time in times.values()))
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
        path = out / f"operator-{direction}-{kind}.png"
        figure.savefig(path, dpi=120, bbox_inches="tight")
        pyplot.close(figure)
        files.append(path)
    return files


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, default=Path("results"))
    given = parser.parse_args(arguments)
    try:
        rows = load(given.results)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{given.results} cannot be read: {error}") from error
    if not rows:
        raise SystemExit(f"{given.results} has no rows of the operator's benchmark")
    for path in draw(rows, given.out):
        print(path)


if __name__ == "__main__":
    main()
