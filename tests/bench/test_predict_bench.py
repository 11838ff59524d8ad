"""bench.predict on a small model: that all its contenders run."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from bench import predict as bench
from bench.served import Asking
from rmadapter.errors import InputError
from rmadapter.evaluation.predict import Predicted

SMALL = ["--images", "5", "--width", "40", "--height", "36", "--classes", "3", "--batch-size", "2"]
ALONE = ["open_clip and a DataLoader", "predict, without an adapter", "predict, with an adapter"]
COMPILED = [
    "open_clip and a DataLoader",
    "predict, without an adapter",
    "predict, compiled, without an adapter",
    "predict, with an adapter",
    "predict, compiled, with an adapter",
]
SERVED = ["serve, without an adapter", "serve, with an adapter"]


@pytest.fixture
def table(clip_folder, capsys):
    """Runs it with these clients; returns what it prints, the rows of the first table and those of the second."""

    def run(clients, compiled="--no-compiled"):
        given = ["--model", f"local-dir:{clip_folder}", "--layers", "2-3", "--precision", "fp32", "--workers", "0"]
        assert bench.main([*SMALL, *given, compiled, "--clients", clients]) == 0
        out, err = capsys.readouterr()
        assert err.count("5 images in ") == (2 if compiled == "--no-compiled" else 4)
        rates = re.findall(r"^\| (\S.*?) +\| +(\d+\.\d) \| +(\d+\.\d\d) \|$", out, re.MULTILINE)
        return out, rates, re.findall(r"^\| (serve.*?) +\| +(\d+) \| +(\S+) \| +(\d+) \| +(\d+) \|$", out, re.MULTILINE)

    return run


def test_the_table_has_every_contender(table):
    out, rates, latencies = table("none")
    assert [name for name, _, _ in rates] == ALONE
    assert rates[0][2] == "1.00"
    assert "5 JPEG files of 40 x 36, 3 classes, batches of 2, 0 processes that decode" in out
    assert not latencies


@pytest.mark.slow
def test_predict_is_timed_compiled_too(table):
    """The towers are compiled."""
    out, rates, _ = table("none", "--compiled")
    assert [name for name, _, _ in rates] == COMPILED
    for kind in ("without", "with"):
        assert re.search(rf"compiled {kind} an adapter: \d+\.\d s to compile, not in the figures, which", out)


def test_features_that_compiling_changes_are_refused(clip_folder, tmp_path, monkeypatch):
    options = bench.Options(classes=3, model=f"local-dir:{clip_folder}", precision="fp32", batch_size=2)
    told = {}

    def predicted(paths, csv, *common, compiled, embeddings):
        rows = np.eye(2, 4, dtype=np.float32)
        np.savez(embeddings, embeddings=rows[::-1] if told["changed"] and compiled else rows)
        return Predicted(2, 0, 0, 1.0, 7.0 if compiled and told["compiles"] else None)

    monkeypatch.setattr(bench, "predicted", predicted)

    def compiling(folder, changed, compiles):
        told.update(changed=changed, compiles=compiles)
        return bench.compiling([], tmp_path / folder, options, torch.device("cpu"), "fp32", 0, None)

    assert compiling("same", False, True) == 7
    with pytest.raises(InputError, match=r"features of the compiled model are 1\.0e\+00"):
        compiling("others", True, True)
    with pytest.raises(InputError, match="was not compiled here"):
        compiling("eager", False, False)


def test_from_how_many_images_on_compiling_pays():
    assert bench.said_of_compiling(12.0, 20.0, 30.0).endswith("which pays from 720 images on")
    assert bench.said_of_compiling(12.0, 30.0, 30.0) == "12.0 s to compile, not in the figures, which never pays"


@pytest.mark.slow
def test_serve_is_a_contender(table):
    """Two servers are started, each a process."""
    _, rates, latencies = table("1,3")
    assert [name for name, _, _ in rates] == ALONE + SERVED
    assert [row[:2] for row in latencies] == [(name, count) for name in SERVED for count in ("1", "3")]
    assert [row[2] for row in latencies if row[1] == "3"] == [rate for name, rate, _ in rates if name in SERVED]
    assert all(int(median) <= int(late) for *_, median, late in latencies)


def test_percentiles_of_latencies():
    found = Asking(2, 10.0, [number / 100 for number in range(101)])
    assert (found.rate, found.milliseconds(50), found.milliseconds(99)) == pytest.approx((10.1, 500, 990))
    assert Asking(1, 2.0, [2.0]).milliseconds(99) == 2000


@pytest.mark.parametrize("clients", ["", "0", "1,x", "1.5"])
def test_numbers_of_clients(clients):
    with pytest.raises(InputError, match="clients is "):
        bench.Options(clients=clients)
