"""Table, targets and plot of ``bench.step``'s samples."""

from __future__ import annotations

import statistics
from operator import ge, le
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.step_contenders import BACKBONE, COMPARED, GRAPHS, NO_RECONSTRUCTION, RECORDED, VIEWS, unrecorded
from bench.step_methods import DEFAULT
from bench.step_targets import (
    ASKED,
    GPU_ADAPTERS,
    GPU_BACKBONE,
    GPU_BATCH,
    GPU_CLASSES,
    GPU_TIMES,
    MODELS,
    MODELS_CLASSES,
    RECONSTRUCTION_MEMORY,
    RECONSTRUCTION_TIME,
    REFERENCE,
    SHARE_OF_EXPECTED,
    SLOPE,
    TARGETS,
    Asked,
)
from rmadapter.reports.document import Document
from rmadapter.reports.tables import Table

HEADINGS = (
    "method",
    "batch",
    "classes",
    "precision",
    "step",
    "seconds",
    "images/s",
    "held GB",
    "added GB",
    "GFLOP",
    "times plain",
    "expected",
    "samples",
    "GPU kernels",
    "GPU busy ms",
)
MEMORY = ("held", "allocated")  # a case's ..._bytes, whose sum is its peak


class Time(NamedTuple):
    """Seconds a step, and what has to be said of them: "" for a median of undisturbed samples."""

    seconds: float
    mark: str = ""

    def __str__(self) -> str:
        return f"{self.seconds:.2f}{self.mark}" if self.seconds >= 0.1 else f"{self.seconds:.3g}{self.mark}"


class Times:
    """Seconds a step of one method by (contender, precision, classes).

    The median of the samples; where every one was disturbed their least, marked by *; a plain step that was not
    measured is taken from the line through those of fewer and more classes, marked by (extrapolated).
    """

    def __init__(self, cases: dict[str, dict[str, Any]], method: str = DEFAULT):
        own = (case for case in cases.values() if _method(case) == method)
        self.cases = {(c["contender"], c["precision"], c["classes"]): c for c in own}

    def measured(self, contender: str, precision: str, classes: int) -> Time | None:
        """From the samples of this one case alone."""
        case = self.cases.get((contender, precision, classes), {})
        if case.get("seconds"):
            return Time(statistics.median(case["seconds"]))
        disturbed = case.get("disturbed")
        return Time(min(seconds for seconds, _ in disturbed), "*") if disturbed else None

    def line(self, contender: str, precision: str) -> tuple[float, float] | None:
        """Seconds a class, and seconds without any, by least squares; None for fewer than two measured numbers."""
        points = [
            (classes, self.measured(contender, precision, classes))
            for name, kind, classes in self.cases
            if (name, kind) == (contender, precision)
        ]
        points = [(classes, time.seconds) for classes, time in points if time is not None]
        if len(points) < 2:
            return None
        slope, begin = np.polyfit(*zip(*points, strict=True), 1)
        return float(slope), float(begin)

    def of(self, contender: str, precision: str, classes: int) -> Time | None:
        """Measured, or for the plain step extrapolated."""
        found = self.measured(contender, precision, classes)
        if found is None and contender == "plain" and (line := self.line(contender, precision)) is not None:
            return Time(line[0] * classes + line[1], " (extrapolated)")
        return found


def _method(case: dict[str, Any]) -> str:
    """The method of a case; samples from before there were several are of one."""
    return case.get("method", DEFAULT)


def methods(kept: dict[str, Any]) -> list[str]:
    """Those that there are samples of, in their order."""
    return list(dict.fromkeys(map(_method, kept["cases"].values())))


def as_table(kept: dict[str, Any]) -> str:
    """All cases in Markdown; ratios are to the plain step of the same method, precision and number of classes.

    Memory that was not measured is left empty, its columns out where none was; what they are stands under the table.
    """
    found = methods(kept)
    rows = [row for method in found for row in _rows(kept, method, named=len(found) > 1)]
    blocks: list[Table | str] = [
        Table("", HEADINGS, rows, words=(0, 3, 4), aligned=False),
        "held: tensors that are kept from step to step: weights, what is kept of the prompts, the batch, momentum; "
        "added: the most that a step has allocated beside them at one time",
    ]
    if any("gpu" in case for case in kept["cases"].values()):
        blocks.append("GPU busy: the time in which a kernel or a copy runs, of one step under the profiler")
    if any(case.get("disturbed") and not case["seconds"] for case in kept["cases"].values()):
        blocks.append("* every sample was taken while others used the machine: the least of them")
    return Document("", "", blocks).markdown()


def _rows(kept: dict[str, Any], method: str, named: bool) -> list[tuple[str, ...]]:
    """The cases of one method; ``named``: with its name, and its batch."""
    times = Times(kept["cases"], method)
    rows = []
    for (name, precision, classes), case in sorted(times.cases.items(), key=lambda item: (item[0][2], item[0][1])):
        time = times.measured(name, precision, classes)
        if time is None:
            continue
        plain = times.of("plain", precision, classes)
        ratio = f"{plain.seconds / time.seconds:.2f}{plain.mark}" if plain else ""
        # The plan counts whole steps; these are parts of one.
        whole = unrecorded(name) not in ("floor", BACKBONE)
        counted = f"{case['flop'] / 1e9:.0f}" if whole else ""
        expected = f"{case['plain_flop'] / case['flop']:.2f}" if whole else ""
        held, added = (f"{case[f'{kind}_bytes'] / 1e9:.2f}" if f"{kind}_bytes" in case else "" for kind in MEMORY)
        batch = batch_of(kept, case)
        rate, samples = f"{batch / time.seconds:.1f}", str(len(case["seconds"]))
        what = (method, str(batch)) if named else ("", "")
        gpu = case.get("gpu", {})
        work = (str(gpu["kernels"]), f"{1e3 * gpu['busy_seconds']:.2f}") if gpu else ("", "")
        measured = (str(time), rate, held, added, counted, ratio, expected, samples, *work)
        rows.append((*what, str(classes), precision, name, *measured))
    return rows


def batch_of(kept: dict[str, Any], case: dict[str, Any]) -> int:
    """Images a step of a case."""
    return case.get("batch") or kept["group"]["batch"]


class Target(NamedTuple):
    """One row of the table of targets."""

    what: str
    asked: str
    measured: str
    met: bool


def targets(kept: dict[str, Any]) -> str:
    """What is asked for beside what was measured, in Markdown; rows whose samples are missing are left out."""
    default = kept["default"]
    rows = [row for method in methods(kept) if method != DEFAULT for row in _asked(kept, method)]
    times = Times(kept["cases"])
    model = kept["group"].get("model", REFERENCE)
    rows += [row for classes in TARGETS for row in _ratios(times, classes, default, model)]
    for precision in dict.fromkeys(("fp32", default)):
        plain, fast = times.line("plain", precision), times.line("all", precision)
        if plain and fast and fast[0] > 0:
            found = plain[0] / fast[0]
            what = f"seconds a class, {precision}, plain / all"
            rows.append(Target(what, f"{SLOPE:.0f}", f"{found:.1f}", found >= SLOPE))
    rows += [row for ending in ("", RECORDED) for row in _reconstruction(times, ending)]
    if model == REFERENCE and kept["group"]["batch"] == GPU_BATCH:
        rows += _recorded(times, default)
    if not rows:
        return ""
    cells = [(row.what, row.asked, row.measured, "yes" if row.met else "no") for row in rows]
    headings = ("target", "asked for", "measured", "met")
    return Table("", headings, cells, words=(0, 3), aligned=False).markdown() + "\n"


def _asked(kept: dict[str, Any], method: str) -> list[Target]:
    """What is asked of a method, and of every whole step of it the share of what --explain predicts."""
    times, rows = Times(kept["cases"], method), list[Target]()
    for (name, precision, classes), case in sorted(times.cases.items(), key=lambda item: (item[0][2], item[0][1])):
        plain, fast = times.of("plain", precision, classes), times.measured(name, precision, classes)
        if name not in ("all", VIEWS) or plain is None or fast is None:
            continue
        batch = batch_of(kept, case)
        what, found = f"{method}, batch {batch}, {classes} classes, {name}, {precision}", plain.seconds / fast.seconds
        asked = Asked((method,), batch, classes, name)
        for one in ASKED if precision == "fp32" else ():
            if method in one.methods and one[1:4] == asked[1:4]:
                asked = one
        if asked.times is not None:
            measured = f"{found:.2f}{_marks(plain, fast)}"
            rows.append(Target(what, f"{asked.times:.1f}", measured, found >= asked.times))
        peak = _peak(case)
        if asked.gigabytes is not None and peak is not None:
            peak /= 1e9
            rows.append(Target(f"{what}: GB", f"{asked.gigabytes:.1f}", f"{peak:.2f}", peak <= asked.gigabytes))
        rows.append(_share(what, case, found, _marks(plain, fast)))
    return rows


def _share(what: str, case: dict[str, Any], found: float, mark: str) -> Target:
    """What was measured of the ratio that --explain predicts."""
    expected = case["plain_flop"] / case["flop"]
    share = found / expected
    what = f"{what}: share of the {expected:.2f} expected"
    return Target(what, f"{SHARE_OF_EXPECTED:.0%}", f"{share:.0%}{mark}", share >= SHARE_OF_EXPECTED)


def _ratios(times: Times, classes: int, default: str, model: str) -> list[Target]:
    """Times faster than plain at one number of classes, and the share of what --explain predicts."""
    rows: list[Target] = []
    fp32, views, wide = TARGETS[classes]
    asked = {"all": fp32, VIEWS: views}
    if model != REFERENCE:
        asked = {"all": MODELS[model]} if model in MODELS and classes == MODELS_CLASSES else {}
    plain = times.of("plain", "fp32", classes)
    for name in ("all", VIEWS):
        fast = times.measured(name, "fp32", classes)
        if plain is None or fast is None:
            continue
        what, found = f"{classes} classes, {name}, fp32", plain.seconds / fast.seconds
        mark = _marks(plain, fast)
        if name in asked:
            rows.append(Target(what, f"{asked[name]:.1f}", f"{found:.2f}{mark}", found >= asked[name]))
        rows.append(_share(what, times.cases[name, "fp32", classes], found, mark))
    # Weights that are stored in 16 bits are one of the shortcuts, so that of plain is not the one to beat.
    plains = [time for p in ("fp32", "autocast") if (time := times.of("plain", p, classes)) is not None]
    fast = times.measured("all", default, classes)
    if plains and fast and model == REFERENCE:
        plain = min(plains, key=lambda time: time.seconds)
        found = plain.seconds / fast.seconds
        what = f"{classes} classes, all, {default}, against the faster plain of fp32 and autocast"
        rows.append(Target(what, f"{wide:.1f}", f"{found:.2f}{_marks(plain, fast)}", found >= wide))
    return rows


def _marks(*times: Time) -> str:
    """What has to be said of a ratio of these."""
    return "".join(dict.fromkeys(time.mark for time in times))


def _recorded(times: Times, default: str) -> list[Target]:
    """What is asked of recorded steps on a GPU."""
    own, backbone = NO_RECONSTRUCTION + RECORDED, BACKBONE + RECORDED
    rows = []
    for name, what, above, below, asked, met in (
        (GRAPHS, "times plain", "plain", GRAPHS, GPU_TIMES, ge),
        (GRAPHS, "of the backbone's time at most", GRAPHS, backbone, GPU_BACKBONE, le),
        (own, "of the backbone's time at most", own, backbone, GPU_ADAPTERS, le),
    ):
        one, other = (times.measured(contender, default, GPU_CLASSES) for contender in (above, below))
        if one is None or other is None:
            continue
        found = one.seconds / other.seconds
        what = f"{GPU_CLASSES} classes, {name}, {default}: {what}"
        rows.append(Target(what, f"{asked:.2f}", f"{found:.2f}{_marks(one, other)}", met(found, asked)))
    return rows


def _reconstruction(times: Times, ending: str) -> list[Target]:
    """What the reconstruction branch costs in time and memory, where both kinds of step were measured.

    ``ending`` is that of the contenders' names: of recorded ones or of others.
    """
    rows: list[Target] = []
    for (name, precision, classes), case in sorted(times.cases.items(), key=lambda item: (item[0][2], item[0][1])):
        whole = times.cases.get(("all" + ending, precision, classes))
        if name != NO_RECONSTRUCTION + ending or whole is None or not (case["seconds"] and whole["seconds"]):
            continue
        more = statistics.median(whole["seconds"]) / statistics.median(case["seconds"]) - 1
        what, asked = f"{classes} classes, {precision}{ending}: time of the reconstruction branch", RECONSTRUCTION_TIME
        rows.append(Target(what, f"{asked:+.0%}", f"{more:+.1%}", more <= asked))
        peak, without = _peak(whole), _peak(case)
        if peak is None or without is None:
            continue
        more = peak / without - 1
        what, asked = what.replace("time of", "memory of"), RECONSTRUCTION_MEMORY
        rows.append(Target(what, f"{asked:+.0%}", f"{more:+.1%}", more <= asked))
    return rows


def _peak(case: dict[str, Any]) -> int | None:
    """The most bytes of tensors during a step; None where they were not measured."""
    found = [case.get(f"{kind}_bytes") for kind in MEMORY]
    return None if None in found else sum(found)


def heading(kept: dict[str, Any]) -> str:
    """Model, method, batch, machine and commit, and the options where some were given."""
    group, found = kept["group"], methods(kept)
    named = f", {found[0]}" if len(found) == 1 and found != [DEFAULT] else ""
    batch = "batch " + str(group["batch"]) if group["batch"] else "each method's own batch"
    given = [f"{name.replace('_', ' ')} {group[name]}" for name in ("options", "text_memory") if group.get(name)]
    adapters = [f"adapters {kept['adapters']}"] if kept.get("adapters") else []
    return ", ".join(
        [
            f"{group['model']}{named}",
            batch,
            *given,
            f"{group['device']} ({group['threads']} threads)",
            f"torch {group['torch']}",
            *adapters,
            f"commit {group['commit']}\n",
        ]
    )


def plot(kept: dict[str, Any], path: Path) -> None:
    """Seconds a step against the number of classes."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        print("no plot: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = methods(kept)
    lines: dict[str, list[tuple[int, float]]] = {}
    for method in found:
        times = Times(kept["cases"], method)
        for contender, precision, classes in times.cases:
            time = times.measured(contender, precision, classes)
            if time is not None and contender in (*COMPARED, "floor"):
                label = f"{method}, {contender}" if len(found) > 1 else contender
                lines.setdefault(f"{label}, {precision}", []).append((classes, time.seconds))
    if not lines:
        return
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for label, points in sorted(lines.items()):
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=label)
    axes.set(xlabel="classes", ylabel="seconds a step", yscale="log", title=heading(kept).partition(", torch")[0])
    axes.title.set_fontsize(9)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
