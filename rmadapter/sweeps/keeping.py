"""What it means that a setting keeps what the frozen model knows: the rule by which both searches judge.

``rmadapter search`` and the test bed's own ask of a setting what tables ask of a method, what it gains and what it
keeps. A setting keeps when its accuracy on new classes, in a search pseudo-new ones, is at least zero-shot's less
``MARGINS["new"]``, and its retention at least zero-shot's less ``MARGINS["retained"]``, where retention is measured. Of
settings that keep the best has the highest harmonic mean; one that does not comes after all that do, by how much it
falls short. What is bound to the classes of training has no accuracy on new ones: there retention alone is asked for,
and the best has the highest base accuracy.
"""

from __future__ import annotations

import statistics
from collections.abc import Container, Mapping

# How far below zero-shot each may be, percentage points.
MARGINS = {"new": 0.5, "retained": 2.0}
RETAINED = ("retained_base", "retained_new")


def gained(accuracy: Mapping[str, float], zeroshot: Mapping[str, float]) -> dict[str, float]:
    """By how many percentage points ``accuracy`` is above that of ``zeroshot``, on the same images, both in percent.

    Of those of ``base``, ``new`` and ``retained``, the mean of the retained parts, that ``zeroshot`` has.
    """
    ours, theirs = _parts(accuracy, zeroshot), _parts(zeroshot, zeroshot)
    return {part: ours[part] - theirs[part] for part in theirs}


def _parts(accuracy: Mapping[str, float], among: Container[str]) -> dict[str, float]:
    found = {part: accuracy[part] for part in ("base", "new") if part in among}
    retained = [accuracy[part] for part in RETAINED if part in among]
    return found | ({"retained": statistics.fmean(retained)} if retained else {})


def lacks(gain: Mapping[str, float]) -> dict[str, float]:
    """How far each part of ``gain`` that has a margin is below it, percentage points; 0 or less where it keeps."""
    return {part: -margin - gain[part] for part, margin in MARGINS.items() if part in gain}


def shortfall(gain: Mapping[str, float]) -> float:
    """By how much the parts of ``gain`` are below their margins together; 0 for a setting that keeps."""
    return sum(max(0.0, lack) for lack in lacks(gain).values())


def place(gain: Mapping[str, float], worth: float) -> tuple[float, float]:
    """What settings are sorted by, the best first; ``worth`` is the harmonic mean, or base accuracy alone."""
    return shortfall(gain), -worth
