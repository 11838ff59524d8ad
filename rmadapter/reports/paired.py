"""Paired differences between two methods, with data sets as the unit of replication.

Two methods that were trained on the same data with the same seed saw the same images in the same order and began at the
same weights, so they are compared run by run. What differs between data sets is more than between seeds: a difference
is therefore a mean over data sets of means over seeds (and over the styles of a bundled data set). Its interval takes
the data sets, with their classes and draws, as a sample of such data sets; ``crossed`` has the one for them alone.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

LEVEL = 0.95  # of every interval


class Key(NamedTuple):
    """One run of a method: ``unit`` is the data set; ``seed`` is None for a method that has none."""

    unit: str
    style: str | None
    seed: int | None


class Interval(NamedTuple):
    """The ends of an interval of ``LEVEL``."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"[{signed(self.low)}, {signed(self.high)}]"


def signed(value: float) -> str:
    """Points with their sign; what rounding has left of a zero has that of zero."""
    return f"{round(value, 6) + 0.0:+.2f}"


def unit_means(values: Mapping[Key, float]) -> list[float]:
    """The mean of each unit: first over the seeds of a style, then over styles."""
    units: dict[str, dict[str | None, list[float]]] = {}
    for (unit, style, _), value in values.items():
        units.setdefault(unit, {}).setdefault(style, []).append(value)
    return [statistics.fmean(statistics.fmean(seeds) for seeds in styles.values()) for styles in units.values()]


def pairs(one: Mapping[Key, object], other: Mapping[Key, object]) -> dict[Key, tuple[Key, Key]]:
    """The runs that both have, and the key of each in ``one`` and ``other``.

    A method without seeds stands against every seed of the other.
    """
    found: dict[Key, tuple[Key, Key]] = {}
    for key in dict.fromkeys([*one, *other]):
        unseeded = key._replace(seed=None)
        first, second = (key if key in values else unseeded for values in (one, other))
        if first in one and second in other:
            found[key] = first, second
    # The runs without a seed have stood for themselves above, as well as against each seed.
    seeded = {key._replace(seed=None) for key in found if key.seed is not None}
    return {key: both for key, both in found.items() if key.seed is not None or key not in seeded}


def subtract(one: Mapping[Key, float], other: Mapping[Key, float]) -> dict[Key, float]:
    """``one - other`` for the ``pairs`` of both."""
    # Equal counts of images are equal.
    return {key: round(one[first] - other[second], 9) for key, (first, second) in pairs(one, other).items()}


@dataclass(frozen=True)
class Estimate:
    """A mean over ``units`` data sets.

    ``error`` is its standard error and ``interval`` Student's with units - 1 degrees of freedom, both None for one data
    set; ``higher`` counts the data sets above 0.
    """

    mean: float
    error: float | None
    interval: Interval | None
    units: int
    higher: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Over the means of the units, at least one."""
        from scipy.stats import t  # late: half a second to import

        mean, count = statistics.fmean(values), len(values)
        error = statistics.stdev(values) / math.sqrt(count) if count > 1 else None
        interval = None
        if error is not None:
            half = error * float(t.ppf((1 + LEVEL) / 2, count - 1))
            interval = Interval(mean - half, mean + half)
        # The mean of rounded differences that cancel may be 1e-10.
        return cls(mean, error, interval, count, sum(round(value, 6) > 0 for value in values))

    def __str__(self) -> str:
        return signed(self.mean) + ("" if self.interval is None else f" {self.interval}")
