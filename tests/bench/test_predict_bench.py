"""bench.predict on a small model: that all its contenders run."""

from __future__ import annotations

import re

import pytest

from bench import predict as bench
from bench.served import Asking
from rmadapter.errors import InputError


def test_the_tables_have_every_contender(clip_folder, capsys):
    small = ["--images", "5", "--width", "40", "--height", "36", "--classes", "3", "--batch-size", "2"]
    given = ["--model", f"local-dir:{clip_folder}", "--layers", "2-3", "--precision", "fp32", "--workers", "0"]
    assert bench.main([*small, *given, "--clients", "1,3"]) == 0
    out, err = capsys.readouterr()
    rows = re.findall(r"^\| (\S.*?) +\| +(\d+\.\d) \| +(\d+\.\d\d) \|$", out, re.MULTILINE)
    served = ["serve, without an adapter", "serve, with an adapter"]
    names = ["open_clip and a DataLoader", "predict, without an adapter", "predict, with an adapter", *served]
    assert [name for name, _, _ in rows] == names
    assert rows[0][2] == "1.00"
    assert err.count("5 images in ") == 2
    assert "5 JPEG files of 40 x 36, 3 classes, batches of 2, 0 processes that decode" in out
    latencies = re.findall(r"^\| (serve.*?) +\| +(\d+) \| +(\d+\.\d) \| +(\d+) \| +(\d+) \|$", out, re.MULTILINE)
    assert [row[:2] for row in latencies] == [(name, count) for name in served for count in ("1", "3")]
    assert [row[2] for row in latencies if row[1] == "3"] == [rate for name, rate, _ in rows if name in served]
    assert all(int(median) <= int(late) for *_, median, late in latencies)


def test_percentiles_of_latencies():
    found = Asking(2, 10.0, [number / 100 for number in range(101)])
    assert (found.rate, found.milliseconds(50), found.milliseconds(99)) == pytest.approx((10.1, 500, 990))
    assert Asking(1, 2.0, [2.0]).milliseconds(99) == 2000


@pytest.mark.parametrize("clients", ["", "0", "1,x", "1.5"])
def test_numbers_of_clients(clients):
    with pytest.raises(InputError, match="clients is "):
        bench.Options(clients=clients)
