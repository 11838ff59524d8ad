"""The bootstrap with classes and draws crossed: what counts once, and whether its intervals hold what they should."""

from __future__ import annotations

import numpy as np
import pytest

from rmadapter.reports.crossed import Cell, Compared, crossed


def cell(one, other, unit="a", classes="list", draws=None, **more):
    both = [np.atleast_2d(np.asarray(values, float)) for values in (one, other)]
    return Cell(unit, unit if draws is None else draws, (Compared(classes, *both),), **more)


def test_the_difference_is_the_mean_over_units_of_their_cells():
    cells = [
        cell([[60, 70], [80, 90]], [[50], [50]], "a", "a"),  # 25
        cell([[50, 50], [60, 60]], [[50, 50], [50, 50]], "a", "a", "a in another style"),  # 5
        cell([[52], [54], [59]], [[50], [50], [50]], "b", "b"),  # 5
    ]
    found = crossed(cells)
    assert found.mean == pytest.approx((15 + 5) / 2)
    assert (found.classes, found.draws) == (2 + 3, 2 + 2)  # the one draw of "b" has none beside it
    assert found.interval.low < found.mean < found.interval.high


def test_the_harmonic_mean_is_that_of_each_draw():
    base, new = (
        Compared("base", np.array([[80.0, 60.0]]), np.array([[50.0]])),
        Compared("new", np.array([[40.0, 60.0]]), np.array([[50.0]])),
    )
    found = crossed([Cell("a", "a", (base, new), harmonic=True)])
    assert found.mean == pytest.approx((2 * 80 * 40 / 120 + 60) / 2 - 50)
    nothing = Compared("base", np.zeros((1, 2)), np.zeros((1, 2)))
    assert crossed([Cell("a", "a", (nothing, nothing), harmonic=True)]).mean == 0


def test_what_cannot_be_drawn_has_no_interval():
    found = crossed([cell([[60]], [[50]])])
    assert (found.mean, found.interval, str(found)) == (10, None, "+10.00")


def test_a_list_in_two_styles_is_drawn_once_for_both():
    """What one style gains on a class the other loses, so the mean of both is the same whatever is drawn."""
    rows = np.array([[10.0, 10.0], [-10.0, -10.0], [30.0, 30.0]])
    zero = np.zeros_like(rows)
    same = [cell(50 + sign * rows, 50 + zero, draws="d", classes="list") for sign in (1, -1)]
    assert crossed(same).interval == pytest.approx((0, 0))
    apart = [cell(50 + sign * rows, 50 + zero, draws="d", classes=str(sign)) for sign in (1, -1)]
    assert crossed(apart).interval.high > 5


def test_a_list_of_several_lengths_is_refused():
    with pytest.raises(ValueError, match="list has 1 and 2 members"):
        crossed([cell([[1]], [[1]]), cell([[1], [1]], [[1], [1]])])


def test_the_same_results_have_the_same_interval():
    cells = [cell(np.arange(12.0).reshape(4, 3), np.ones((4, 3)))]
    assert crossed(cells) == crossed(cells)


def test_renderings_of_a_drawing_are_no_observations():
    """Ten that are right or wrong together say no more than one: the interval is as wide."""
    generator = np.random.default_rng(1)
    right = (generator.random((40, 1)) < 0.6).astype(float) * 100
    one = crossed([cell(np.repeat(right, 5, 1), np.full((40, 5), 50.0))]).interval
    # 60 % with 40 classes: plus and minus two standard errors of 7.7 points.
    assert one.high - one.low == pytest.approx(4 * 7.7, rel=0.2)


@pytest.mark.parametrize("draws", [3, 10])
def test_intervals_hold_the_true_difference_as_often_as_they_say(draws):
    """Classes, draws and both together with effects of their own, four data sets; the truth is 0."""
    generator = np.random.default_rng(draws)

    def holds():
        cells = []
        for unit in "abcd":
            effect = (
                generator.normal(0, 12, (40, 1)) + generator.normal(0, 2, draws) + generator.normal(0, 10, (40, draws))
            )
            cells.append(cell(50 + effect, np.full((40, draws), 50.0), unit, unit))
        low, high = crossed(cells, resamples=400).interval
        return low <= 0 <= high

    times = 200
    share = sum(holds() for _ in range(times)) / times
    assert 0.89 <= share <= 0.99
