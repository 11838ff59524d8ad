"""``rmadapter sweep --dry-run``: the runs, how far they are, and what is left to do."""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

from rmadapter.config import TrainConfig
from rmadapter.data import ImageData, base_new_split, few_shot_sample, steps_an_epoch
from rmadapter.methods import METHODS
from rmadapter.methods.method import TUNED
from rmadapter.sweeps.manifest import precision_of
from rmadapter.sweeps.progress import holder_of, read_result, results_that_stay, results_there, state
from rmadapter.sweeps.protocols import PlannedRun, short_name
from rmadapter.sweeps.settings import Sweep
from rmadapter.sweeps.taken_over import is_taken
from rmadapter.training.adapter_run import own_parts
from rmadapter.training.recipe import steps_of


def describe_cost(sweep: Sweep, loaded: Mapping[str, ImageData]) -> str:
    """A line a run: its state, steps of training and images to test; at the end the sums of what is not done.

    Of a run that is not done these are what is left of it. Seconds are the mean of the finished runs of the same method
    on the same data set with as many shots, else of that method with as many, less those of results that are there.
    ``loaded`` are the sweep's data sets, by what it calls them.
    """
    found = state(sweep)
    states = {run: name for name in ("done", "failed", "running", "open") for run in getattr(found, name)}
    seconds = _seconds(sweep, found.done)
    lines, steps_left, images_left, seconds_left, unknown = [], 0, 0, 0.0, 0
    for run in sweep.runs():
        config = sweep.config(run)
        data = loaded[run.data]
        train, _ = few_shot_sample(data.train, data.val, config.shots, 1)
        sample = base_new_split(train, config.classes, len(data.class_names))
        counts = Counter(item.label for item in sample)
        fewer = sum(count < config.shots for count in counts.values())
        taken = is_taken(sweep, run, dataclasses.replace(config, precision=precision_of(sweep)), data)
        there = [] if states[run] == "done" else results_that_stay(sweep, run)
        trained = taken or None in there
        trains = METHODS[run.method].kind == TUNED and config.tuned.trains and not trained
        steps = steps_of(config, steps_an_epoch(len(sample), config.batch_size, config.drop_last)) if trains else 0
        targets = [target for target in run.targets if short_name(target) not in there]
        images = _tested(run, config, loaded, targets, at_home=not trained)
        estimate = seconds.get((run.method, run.shots, run.data), seconds.get((run.method, run.shots, None)))
        if estimate is not None:
            estimate = max(0.0, estimate - _seconds_of(sweep, run, there))
        lines.append(
            f"{states[run]:>7}  {run.key}: {steps:,} steps, {images:,} test images"
            + (f", fewer than {config.shots} images of {fewer} of {len(counts)} classes" if trains and fewer else "")
            + (f", about {estimate:.0f} s" if estimate is not None and states[run] != "done" else "")
            + (f" ({holder_of(sweep, run) or 'just ended'})" if states[run] == "running" else "")
            + (f", trained in {sweep.trained_in}" if taken else "")
            + (f", {len(there)} of {1 + len(run.targets)} results are there" if there else "")
        )
        if states[run] != "done":
            steps_left += steps
            images_left += images
            seconds_left += estimate or 0.0
            unknown += estimate is None
    left = len(states) - len(found.done)
    lines.append(f"{len(states)} runs, {len(found.done)} done; left: {steps_left:,} steps, {images_left:,} test images")
    if left and unknown < left:
        lines.append(
            f"about {seconds_left / 60:.0f} min on one worker as fast as those that made the finished runs"
            + (f", and {unknown} runs of methods without a finished one" if unknown else "")
        )
    return "\n".join(lines)


def _tested(
    run: PlannedRun, config: TrainConfig, loaded: Mapping[str, ImageData], targets: Sequence[str], *, at_home: bool
) -> int:
    """How many images ``run`` is tested on, those of the style that measures retention among them.

    ``targets``: those of its targets that are tested.

    ``at_home``: whether the data set that it trains on is tested too.
    """
    home = loaded[run.data]
    parts: tuple[str, ...]
    if run.seed is None:
        parts = ("all",)  # or both halves, which are as many
    elif METHODS[run.method].open_vocabulary:
        parts = own_parts(config, home)
    else:
        parts = (config.classes,)
    images = sum(_images(home, part, retention=True) for part in parts) if at_home else 0
    # What is trained measures retention where it was trained, the frozen model everywhere.
    return images + sum(_images(loaded[name], "all", retention=run.seed is None) for name in targets)


def _images(data: ImageData, part: str, *, retention: bool) -> int:
    """Test images of ``part``, with those of the unseen style if ``retention`` is measured."""
    tests = [data.test] if data.retention is None or not retention else [data.test, data.retention.test]
    return sum(len(base_new_split(items, part, len(data.class_names))) for items in tests)


def _seconds(sweep: Sweep, done: list[PlannedRun]) -> dict[tuple[str, int | None, str | None], float]:
    """Mean seconds of the finished runs by (method, shots, data set), and by (method, shots, None) over data sets."""
    found: dict[tuple[str, int | None, str | None], list[float]] = {}
    for run in done:
        seconds = _seconds_of(sweep, run, results_there(sweep, run))
        for key in ((run.method, run.shots, run.data), (run.method, run.shots, None)):
            found.setdefault(key, []).append(seconds)
    return {key: statistics.fmean(values) for key, values in found.items()}


def _seconds_of(sweep: Sweep, run: PlannedRun, results: Sequence[str | None]) -> float:
    """What those of its ``results`` took to make that are there."""
    found = [read_result(sweep, run, on)["seconds"].values() for on in results]
    return sum(value for values in found for value in values if value is not None)
