"""Sentences on runs whose numbers mean something else than those beside them: what was left out, seen or mixed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from rmadapter.reports.finished_runs import FinishedRun

# What ``data.findings`` counts -> what that means for the accuracy.
FINDINGS = {
    "small_classes": "classes have fewer training images than the shots that are named",
    "repeated_images": "training images are there more than once",
    "images_of_two_classes": "images stand for more than one class",
    "test_images_seen": "test images are among the training images",
    "unreadable_images": "training images could not be read, and others were drawn in their place",
}


def remarks(runs: Sequence[FinishedRun]) -> list[str]:
    """All of them, data set by data set in the order of the runs."""
    by_data: dict[str, list[FinishedRun]] = {}
    for run in runs:
        by_data.setdefault(run.data.name + (f"@{run.data.style}" if run.data.style else ""), []).append(run)
    found = []
    for name, of_data in by_data.items():
        found += [*_left_out(name, of_data), *_other_images(name, of_data), *_odd_samples(name, of_data)]
    return [
        *found,
        *_several("commit", (run.commit for run in runs)),
        *_several("device", (run.device for run in runs)),
    ]


def _left_out(name: str, runs: Sequence[FinishedRun]) -> list[str]:
    counts = [run.skipped for run in runs if run.skipped]
    if not counts:
        return []
    return [f"Of {name} up to {max(counts)} test images could not be read, in {len(counts)} of {len(runs)} runs."]


def _other_images(name: str, runs: Sequence[FinishedRun]) -> list[str]:
    """Of one data set, split and part all runs are to be tested on as many images."""
    numbers: dict[tuple, set[int]] = {}
    for run in runs:
        for part, count in run.images.items():
            numbers.setdefault((run.data, run.split, run.split_file, part), set()).add(count)
    return [
        f"The runs on {name} were tested on {' and '.join(map(str, sorted(found)))} images ({key[-1]} classes): what "
        "they differ by is not of the same images."
        for key, found in numbers.items()
        if len(found) > 1
    ]


def _odd_samples(name: str, runs: Sequence[FinishedRun]) -> list[str]:
    said = []
    for finding, meaning in FINDINGS.items():
        counts = [run.findings[finding] for run in runs if run.findings.get(finding)]
        if counts:
            said.append(f"In {len(counts)} of {len(runs)} runs on {name}, up to {max(counts)} {meaning}.")
    return said


def _several(what: str, values: Iterable[str | None]) -> list[str]:
    """A sentence where the runs are of more than one; those that do not say are not counted."""
    counts = Counter(value for value in values if value)
    if len(counts) < 2:
        return []
    listed = ", ".join(f"{_short(value)} ({count})" for value, count in counts.most_common())
    return [f"The runs are of {len(counts)} {what}s: {listed}."]


def _short(value: str) -> str:
    """A commit by its first digits; a device as it is."""
    digits, plus, changes = value.partition("+")
    return digits[:7] + plus + changes if len(digits) == 40 else value
