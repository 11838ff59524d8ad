"""Grids of parameters of which the usual run takes a part; all of them run under ``make test-all``."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest


def slow(*values: Any) -> Any:
    """One set of parameters that only ``make test-all`` runs."""
    return pytest.param(*values, marks=pytest.mark.slow)


def diagonal(first: Sequence[Any], *others: Sequence[Any]) -> list[Any]:
    """Every combination of the axes' values; all are slow but each value of the first axis once, with the others' in
    turn. The first axis is the longest, so that no value is slow alone."""
    assert all(len(axis) <= len(first) for axis in others)
    axes = (first, *others)
    found = []
    for places in itertools.product(*(range(len(axis)) for axis in axes)):
        usual = all(place == places[0] % len(axis) for place, axis in zip(places, axes, strict=True))
        values = [axis[place] for place, axis in zip(places, axes, strict=True)]
        found.append(pytest.param(*values) if usual else slow(*values))
    return found
