"""Intervals for differences on the data sets at hand, with classes and draws as crossed units.

The images of a class are alike (on the test bed they are renderings of one drawing) and are right or wrong together,
and so are all classes of a run, which has one beginning and one few-shot sample. Every class is tested in every run, so
neither lies in the other: both are drawn anew, each for itself, and a cell of classes x draws counts as often as its
class and its draw were drawn together (the pigeonhole bootstrap: Owen, Annals of Applied Statistics 2007). Images are
never drawn, so that ten renderings of a drawing are no ten observations. What is drawn stays within its data set.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rmadapter.reports.paired import LEVEL, Interval, signed

RESAMPLES = 2000
SEED = 0  # a report of the same results has the same intervals
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Compared:
    """Two methods on the images of a list of classes, percent.

    Attributes:
        classes: the list; that of several data sets, such as one in several styles, is drawn once for all.
        one, other: [classes, draws] of each method, or [classes, 1] of one that has no draws.
    """

    classes: Hashable
    one: Matrix
    other: Matrix


@dataclass(frozen=True)
class Cell:
    """The runs of two methods that were trained on one data set in one style.

    Attributes:
        unit: the data set; a difference is the mean over units of the means over their cells.
        draws: the runs' beginnings and few-shot samples; those of several cells are drawn once for all.
        tested: what is compared: the mean over these, or with ``harmonic`` their harmonic mean.
        harmonic: whether ``tested`` are base and new classes.
    """

    unit: str
    draws: Hashable
    tested: tuple[Compared, ...]
    harmonic: bool = False

    @property
    def draw_count(self) -> int:
        """How many draws it has."""
        return max(matrix.shape[1] for tested in self.tested for matrix in (tested.one, tested.other))


@dataclass(frozen=True)
class Crossed:
    """A difference, its interval (None where nothing can be drawn) and how many units it rests on.

    Of classes and of draws those are counted that others could stand for: one that is alone in its list is not drawn.
    """

    mean: float
    interval: Interval | None
    classes: int
    draws: int

    def __str__(self) -> str:
        return signed(self.mean) + ("" if self.interval is None else f" {self.interval}")


def crossed(cells: Sequence[Cell], resamples: int = RESAMPLES) -> Crossed:
    """The mean difference over ``cells``, at least one, and its percentile interval.

    Raises:
        ValueError: a list of classes, or of draws, that has several lengths.
    """
    from scipy.stats import bootstrap  # late: half a second to import

    classes = _sizes((tested.classes, len(tested.one)) for cell in cells for tested in cell.tested)
    draws = _sizes((cell.draws, cell.draw_count) for cell in cells)
    clusters = {("classes", name): size for name, size in classes.items()}
    clusters |= {("draws", name): size for name, size in draws.items()}
    whole = {key: np.full((1, size), 1 / size) for key, size in clusters.items()}
    several = [key for key, size in clusters.items() if size > 1]

    def statistic(*drawn: NDArray[np.int64], axis: int) -> Matrix:
        shares = {key: _shares(np.atleast_2d(index), clusters[key]) for key, index in zip(several, drawn, strict=True)}
        found = _difference(cells, whole | shares)
        return found if drawn[0].ndim > 1 else found[0]

    interval = None
    if several:
        found = bootstrap(
            [np.arange(clusters[key]) for key in several],
            statistic,
            n_resamples=resamples,
            batch=200,
            vectorized=True,
            confidence_level=LEVEL,
            method="percentile",
            random_state=np.random.default_rng(SEED),
        ).confidence_interval
        interval = Interval(float(found.low), float(found.high))
    counts = (sum(size for size in sizes.values() if size > 1) for sizes in (classes, draws))
    return Crossed(float(_difference(cells, whole)[0]), interval, *counts)


def _sizes(named: Iterable[tuple[Hashable, int]]) -> dict[Hashable, int]:
    found: dict[Hashable, int] = {}
    for name, size in named:
        if found.setdefault(name, size) != size:
            raise ValueError(f"{name} has {found[name]} and {size} members")
    return found


def _shares(index: NDArray[np.int64], size: int) -> Matrix:
    """How much each of ``size`` members counts in each resample: [resamples, size] from ``index`` [resamples, size]."""
    rows = np.arange(len(index))[:, None] * size
    counts = np.bincount((index + rows).ravel(), minlength=len(index) * size)
    return counts.reshape(-1, size) / index.shape[1]


def _difference(cells: Sequence[Cell], shares: Mapping[tuple[str, Hashable], Matrix]) -> Matrix:
    """The mean difference in each resample, [resamples], where ``shares`` say how much each class and draw counts."""
    units: dict[str, list[Matrix]] = {}
    for cell in cells:
        of_classes = [shares["classes", tested.classes] for tested in cell.tested]
        one = _accuracy(cell, [share @ tested.one for share, tested in zip(of_classes, cell.tested, strict=True)])
        other = _accuracy(cell, [share @ tested.other for share, tested in zip(of_classes, cell.tested, strict=True)])
        difference = one - other  # [resamples, draws]
        units.setdefault(cell.unit, []).append((difference * shares["draws", cell.draws]).sum(-1))
    # Not numpy's mean: what nothing was drawn of has one value for all resamples.
    total = np.zeros(1)
    for found in units.values():
        total = total + sum(found, np.zeros(1)) / len(found)
    return total / len(units)


def _accuracy(cell: Cell, parts: Sequence[Matrix]) -> Matrix:
    """Of every draw in each resample, [resamples, draws]."""
    if not cell.harmonic:
        return sum(parts[1:], parts[0]) / len(parts)
    base, new = parts
    both = base + new
    return np.divide(2 * base * new, both, out=np.zeros_like(both), where=both > 0)
