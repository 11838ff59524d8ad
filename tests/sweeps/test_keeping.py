"""The rule of both searches, in numbers made by hand."""

from __future__ import annotations

import pytest

from rmadapter.sweeps.keeping import gained, lacks, place, shortfall

ZEROSHOT = {"base": 60.0, "new": 50.0, "hm": 54.5, "retained_base": 40.0, "retained_new": 30.0}


def test_what_is_gained_on_zero_shot():
    accuracy = {"base": 80.0, "new": 49.0, "hm": 60.8, "retained_base": 41.0, "retained_new": 25.0}
    assert gained(accuracy, ZEROSHOT) == {"base": 20, "new": -1, "retained": -2}
    without = {part: ZEROSHOT[part] for part in ("base", "new", "hm")}
    assert gained(accuracy, without) == {"base": 20, "new": -1}


def test_what_is_bound_to_its_classes_is_held_against_base_and_retained_base():
    mark = {"base": 60.0, "retained_base": 40.0}
    assert gained({"base": 80.0, "retained_base": 37.0}, mark) == {"base": 20, "retained": -3}
    with pytest.raises(KeyError):  # a missing part is no part that is kept
        gained({"base": 80.0, "retained_base": 37.0}, ZEROSHOT)


@pytest.mark.parametrize(
    ("gain", "expected", "total"),
    [
        ({"base": -9.0, "new": -0.5, "retained": -2.0}, {"new": 0, "retained": 0}, 0),
        ({"base": 20.0, "new": -1.5, "retained": 3.0}, {"new": 1, "retained": -5}, 1),
        ({"base": 20.0, "new": -1.5, "retained": -5.0}, {"new": 1, "retained": 3}, 4),
        ({"base": 20.0, "new": 4.0}, {"new": -4.5}, 0),
    ],
)
def test_how_far_it_falls_short(gain, expected, total):
    assert lacks(gain) == expected
    assert shortfall(gain) == total


def test_what_keeps_goes_first_and_then_the_harmonic_mean():
    settings = {"short": ({"new": -1.0}, 90.0), "shorter": ({"new": -2.0}, 95.0), "kept": ({"new": -0.5}, 50.0)}
    settings["more"] = ({"new": 9.0}, 51.0)
    assert sorted(settings, key=lambda name: place(*settings[name])) == ["more", "kept", "short", "shorter"]
