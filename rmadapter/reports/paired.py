"""Paired differences between two methods, with data sets as the unit of replication.

Two methods that were trained on the same data with the same seed saw the same images in the same order, so they are
compared run by run. What differs between data sets is more than between seeds: a difference is therefore a mean over
data sets of means over seeds (and over the styles of a bundled data set), with its standard error over the data sets.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Key(NamedTuple):
    """One run of a method: ``unit`` is the data set; ``seed`` is None for a method that has none."""

    unit: str
    style: str | None
    seed: int | None


def unit_means(values: Mapping[Key, float]) -> list[float]:
    """The mean of each unit: first over the seeds of a style, then over styles."""
    units: dict[str, dict[str | None, list[float]]] = {}
    for (unit, style, _), value in values.items():
        units.setdefault(unit, {}).setdefault(style, []).append(value)
    return [statistics.fmean(statistics.fmean(seeds) for seeds in styles.values()) for styles in units.values()]


def subtract(one: Mapping[Key, float], other: Mapping[Key, float]) -> dict[Key, float]:
    """``one - other`` for the runs that both have; a method without seeds stands against every seed of the other."""
    found: dict[Key, float] = {}
    for key in dict.fromkeys([*one, *other]):
        unseeded = key._replace(seed=None)
        first, second = one.get(key, one.get(unseeded)), other.get(key, other.get(unseeded))
        if first is not None and second is not None:
            found[key] = round(first - second, 9)  # equal counts of images are equal
    # The runs without a seed have stood for themselves above, as well as against each seed.
    seeded = {key._replace(seed=None) for key in found if key.seed is not None}
    return {key: value for key, value in found.items() if key.seed is not None or key not in seeded}


@dataclass(frozen=True)
class Estimate:
    """A mean over ``units`` data sets; ``error`` is its standard error, None for one data set; ``higher`` counts
    those above 0.
    """

    mean: float
    error: float | None
    units: int
    higher: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Over the means of the units, at least one."""
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        return cls(statistics.fmean(values), error, len(values), sum(value > 0 for value in values))

    def text(self, sign: str = "") -> str:
        """Mean and standard error; ``sign`` "+" for differences."""
        return f"{self.mean:{sign}.2f}" + ("" if self.error is None else f" ± {self.error:.2f}")
