"""The last batch of an epoch: kept as it is by default, left out with ``--drop-last``."""

from __future__ import annotations

import json

import pytest

from rmadapter.cli import main
from rmadapter.data import EpochBatches
from rmadapter.errors import InputError
from rmadapter.sweeps.manifest import enter
from rmadapter.sweeps.settings import parse_sweep
from rmadapter.training.adapter_run import train


@pytest.mark.parametrize(
    ("images", "drop_last", "sizes"),
    [(50, False, [8] * 6 + [2]), (50, True, [8] * 6), (48, True, [8] * 6), (5, True, [5]), (5, False, [5])],
)
def test_batches_of_an_epoch(images, drop_last, sizes):
    """The only batch is kept, as in the field's code."""
    batches = EpochBatches(images, 8, 1, 0, drop_last=drop_last)
    assert [len(batch) for batch in batches] == sizes
    assert len(batches) == len(sizes)
    assert list(EpochBatches(images, 8, 1, 0)) == [*batches, *list(EpochBatches(images, 8, 1, 0))[len(sizes) :]]
    rest = EpochBatches(images, 8, 1, 0, start=1, drop_last=drop_last)
    assert len(rest) == len(list(rest)) == len(sizes) - 1


@pytest.mark.parametrize(("drop_last", "steps"), [(False, 3), (True, 2)])
def test_a_run_has_as_many_steps(config, tmp_path, drop_last, steps):
    """Eight images in batches of three."""
    results = train(config(batch_size=3, epochs=2, drop_last=drop_last, evaluate=False, log_every=1))
    assert results["settings"]["drop_last"] is drop_last
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "step"] == list(range(1, 2 * steps + 1))


def test_a_sweep_counts_the_steps_and_knows_what_an_older_one_did(sweep_words, tmp_path, capsys):
    argv = sweep_words(methods="single", data="animals", batch_size=3)  # two images of each of two classes
    for more, steps in (([], 2), (["--drop_last"], 1)):
        assert main(["sweep", *argv, *more, "--dry-run"]) == 0
        assert f"single/animals/seed1: {steps} steps" in capsys.readouterr().out
    enter(parse_sweep(argv)[1])
    manifest = tmp_path / "s" / "sweep.json"
    values = json.loads(manifest.read_text())
    del values["settings"]["drop_last"]  # as written before there was the option
    manifest.write_text(json.dumps(values))
    enter(parse_sweep(argv)[1])
    with pytest.raises(InputError, match=r"drop_last is True, but the sweep in .* has False"):
        enter(parse_sweep([*argv, "--drop_last"])[1])
