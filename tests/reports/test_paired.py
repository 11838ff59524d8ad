"""Paired differences: what is paired with what, and over what their error is."""

from __future__ import annotations

import math

import pytest

from rmadapter.reports.paired import Estimate, Interval, Key, subtract, unit_means


def test_the_mean_of_a_unit_counts_styles_alike():
    assert unit_means({Key("a", "x", 1): 1, Key("a", "x", 2): 3, Key("a", "y", 1): 8, Key("b", "x", 1): 7}) == [5, 7]


def test_runs_without_a_partner_do_not_count():
    one = {Key("a", None, 1): 5.0, Key("a", None, 2): 6.0, Key("b", None, 1): 9.0}
    other = {Key("a", None, 1): 3.0, Key("b", None, 2): 1.0}
    assert subtract(one, other) == {Key("a", None, 1): 2.0}


def test_a_method_without_seeds_stands_against_every_seed():
    trained = {Key("a", "x", 1): 5.0, Key("a", "x", 2): 7.0, Key("b", "x", 1): 1.0}
    zeroshot = {Key("a", "x", None): 4.0, Key("c", "x", None): 8.0}
    assert subtract(trained, zeroshot) == {Key("a", "x", 1): 1.0, Key("a", "x", 2): 3.0}
    assert subtract(zeroshot, trained) == {Key("a", "x", 1): -1.0, Key("a", "x", 2): -3.0}
    assert subtract(zeroshot, {Key("a", "x", None): 1.0}) == {Key("a", "x", None): 3.0}


def test_the_interval_is_student_s_over_units():
    found = Estimate.of([1.0, 3.0, -1.0])
    assert (found.mean, found.units, found.higher) == (1.0, 3, 2)
    assert found.error == pytest.approx(2 / math.sqrt(3))
    # The 97.5 % point of t with two degrees of freedom, from a table.
    assert found.interval == pytest.approx((1 - 4.3027 * found.error, 1 + 4.3027 * found.error), abs=1e-3)
    assert str(found) == "+1.00 [-3.97, +5.97]"
    assert (Estimate.of([2.5]).interval, str(Estimate.of([2.5]))) == (None, "+2.50")


def test_what_rounding_leaves_of_a_zero_has_no_sign_of_its_own():
    assert str(Interval(-1.8e-16, 3.39)) == "[+0.00, +3.39]"
    assert str(Interval(-3.42, -0.0)) == "[-3.42, +0.00]"
    assert str(Interval(-0.004, 1)) == "[-0.00, +1.00]"  # below zero
    assert str(Estimate(-1e-16, None, None, 1, 0)) == "+0.00"


def test_differences_that_cancel_are_not_above_zero():
    one = {Key("a", None, seed): value for seed, value in enumerate((200 / 3, 0.0, 0.0))}
    other = {Key("a", None, seed): value for seed, value in enumerate((0.0, 100 / 3, 100 / 3))}
    means = unit_means(subtract(one, other))
    assert means != [0.0]
    assert Estimate.of(means).higher == 0
