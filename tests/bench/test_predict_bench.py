"""bench.predict on a small model: that all its contenders run."""

from __future__ import annotations

import re

import pytest

from bench import predict as bench
from bench.served import Asking
from rmadapter.errors import InputError

SMALL = ["--images", "5", "--width", "40", "--height", "36", "--classes", "3", "--batch-size", "2"]
ALONE = ["open_clip and a DataLoader", "predict, without an adapter", "predict, with an adapter"]
SERVED = ["serve, without an adapter", "serve, with an adapter"]


@pytest.fixture
def table(clip_folder, capsys):
    """Runs it with these clients; returns what it prints, the rows of the first table and those of the second."""

    def run(clients):
        given = ["--model", f"local-dir:{clip_folder}", "--layers", "2-3", "--precision", "fp32", "--workers", "0"]
        assert bench.main([*SMALL, *given, "--rounds", "2", "--clients", clients]) == 0
        out, err = capsys.readouterr()
        assert err.count("5 images in ") == 4  # two rounds
        rates = re.findall(r"^\| (\S.*?) +\| +(\d+\.\d) \| +(\d+\.\d\d) \|.*$", out, re.MULTILINE)
        return out, rates, re.findall(r"^\| (serve.*?) +\| +(\d+) \| +(\S+) \| +(\d+) \| +(\d+) \|$", out, re.MULTILINE)

    return run


def test_the_table_has_every_contender(table):
    out, rates, latencies = table("none")
    assert [name for name, _, _ in rates] == ALONE
    assert rates[0][2] == "1.00"
    assert "5 JPEG files of 40 x 36, 3 classes, batches of 2, 0 processes that decode" in out
    assert not latencies


@pytest.mark.slow
def test_serve_is_a_contender(table):
    """Two servers are started, each a process."""
    _, rates, latencies = table("1,3")
    assert [name for name, _, _ in rates] == ALONE + SERVED
    assert [row[:2] for row in latencies] == [(name, count) for name in SERVED for count in ("1", "3")]
    assert [row[2] for row in latencies if row[1] == "3"] == [rate for name, rate, _ in rates if name in SERVED]
    assert all(int(median) <= int(late) for *_, median, late in latencies)


def test_what_is_compared_is_of_the_same_round():
    rounds = [{"a": 20.0, bench.LOOP: 10.0}, {bench.LOOP: 20.0, "a": 24.0}, {bench.LOOP: 10.0, "a": 16.0}]
    assert bench.rows_of(rounds) == [(bench.LOOP, "10.0", "1.00", ""), ("a", "20.0", "1.60", "1.20 to 2.00")]


def test_each_round_begins_with_another():
    called = []
    calls = {name: lambda name=name: called.append(name) or float(len(called)) for name in "abc"}
    assert bench.in_turn(calls, 0) | bench.in_turn(calls, 4) == {"b": 4.0, "c": 5.0, "a": 6.0}
    assert called == ["a", "b", "c", "b", "c", "a"]


def test_percentiles_of_latencies():
    found = Asking(2, 10.0, [number / 100 for number in range(101)])
    assert (found.rate, found.milliseconds(50), found.milliseconds(99)) == pytest.approx((10.1, 500, 990))
    assert Asking(1, 2.0, [2.0]).milliseconds(99) == 2000


@pytest.mark.parametrize("clients", ["", "0", "1,x", "1.5"])
def test_numbers_of_clients(clients):
    with pytest.raises(InputError, match="clients is "):
        bench.Options(clients=clients)
