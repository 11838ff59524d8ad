"""What a sweep is made of and what it ran on, as its folder says it: ``sweep.json`` and ``environments.json``."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rmadapter.data import ImageData, base_new_labels
from rmadapter.errors import InputError, check_range
from rmadapter.evaluation.results_table import RESULTS_TABLE
from rmadapter.files import check_folder_name, clear_temporaries, read_json, read_object, shown_names, write_json
from rmadapter.locks import ProcessLock
from rmadapter.runtime import environment, resolve_device, resolve_precision
from rmadapter.sweeps.protocols import FEW_SHOT, load_planned, short_name
from rmadapter.sweeps.settings import FREE, Sweep
from rmadapter.training.run_folder import changed_data, with_defaults

FORMAT = 1
MANIFEST = "sweep.json"
HASHES = "data_hashes"  # not in the manifests of earlier sweeps
SHOTS = "shots"  # of the few-shot protocol alone
ENVIRONMENTS = "environments.json"
SWEEP_LOCK = ".sweep.lock"
# What a sweep's runs are the product of.
LISTS = ("data", "methods", "seeds", "sources")


def load_all(sweep: Sweep) -> dict[str, ImageData]:
    """Every data set of ``sweep`` by what it calls them.

    Raises:
        InputError: one that cannot be read, or that has not the classes or the images for its runs.
    """
    names = dict.fromkeys(name for run in sweep.runs() for name in (run.data, *run.targets))
    loaded = {name: load_planned(name, sweep.data_root) for name in names}
    for run in sweep.runs():
        data, config = loaded[run.data], sweep.config(run)
        if data.max_shots is not None and run.seed is not None:
            check_range("shots", config.shots, 1, data.max_shots)
        classes = len(data.class_names)
        if len(base_new_labels(classes, config.classes)) < 2:
            raise InputError(
                f"data has {run.data!r}, of whose {classes} classes half are trained on; valid with {sweep.protocol}: "
                "data sets of 3 classes or more"
            )
    for name in dict.fromkeys(run.data for run in sweep.runs() if run.shots is not None):
        _check_shots(sweep.shots, loaded[name])
    return loaded


def _check_shots(shots: Sequence[int], data: ImageData) -> None:
    """Raise InputError where no class of ``data`` has as many images as one of ``shots``: what such a run is called.

    That some classes have fewer is usual in the field; they give all that they have.
    """
    most = max(Counter(item.label for item in data.train).values(), default=0)
    for number in shots:
        if number > most:
            raise InputError(
                f"shots has {number}, but no class of {data.name} has more than {most} training images; valid: numbers "
                f"from 1 to {most}"
            )


def enter(sweep: Sweep, loaded: Mapping[str, ImageData] | None = None) -> float:
    """Write what the sweep is made of into its folder, or join and extend the one that is there.

    A sweep may be continued with more data sets, methods and seeds; everything else has to be as it was, and so has
    what the data sets list. ``loaded`` is what ``load_all`` gives, and is by default. Returns when it was entered, by
    the clock that times the folder's files.

    Raises:
        InputError: what ``load_all``, ``check_folder`` and ``check_data`` raise.
    """
    check_folder(sweep)
    loaded = load_all(sweep) if loaded is None else loaded
    check_data(sweep, loaded)
    file = sweep.out / MANIFEST
    sweep.out.mkdir(parents=True, exist_ok=True)
    with ProcessLock(sweep.out / SWEEP_LOCK).wait():
        before = check_folder(sweep)
        names = (*LISTS, SHOTS) if sweep.shots else LISTS
        lists = {name: list(getattr(sweep, name)) for name in names}
        hashes = known_hashes(sweep.out) | {short_name(name): data.content_hash for name, data in loaded.items()}
        if before is not None:
            check_data(sweep, loaded)
            lists = {name: _joined(before[name], values) for name, values in lists.items()}
        settings = sweep.settings(lists["data"][0]) | {"precision": precision_of(sweep)}
        clear_temporaries(sweep.out)
        values = {"format": FORMAT, "protocol": sweep.protocol, "settings": settings, **lists, HASHES: hashes}
        write_json(file, values)
        return file.stat().st_mtime


def check_folder(sweep: Sweep) -> dict[str, Any] | None:
    """What the manifest in the sweep's folder says, None where there is none; nothing is written.

    Raises:
        InputError: the folder holds something else, a sweep of another protocol, of other options or of another
            version of the format.
    """
    if (sweep.out / MANIFEST).is_file():
        before = read_manifest(sweep.out)
        _check_same(before, sweep)
        return before
    check_folder_name("out", sweep.out)
    if sweep.out.is_dir() and (others := shown_names(sweep.out)):
        raise InputError(f"out is {str(sweep.out)!r}, a folder with other files in it ({others[0]}); valid: a new one")
    return None


def known_hashes(out: Path) -> dict[str, str]:
    """Of every data set of the sweep in ``out`` the hash of what it listed, by its short name, as far as known."""
    return read_manifest(out).get(HASHES, {}) if (out / MANIFEST).is_file() else {}


def check_data(sweep: Sweep, loaded: Mapping[str, ImageData]) -> None:
    """Raise InputError where one of ``loaded``, by what the sweep calls them, is not what it was to its first worker.

    A folder in the place of another of its name would pass for it else: runs on the other one count as done. One that
    no run has been made on may be another: with images in it that could not be read every run fails, and they are
    put right.
    """
    before = known_hashes(sweep.out)
    for name, data in loaded.items():
        known = before.get(short_name(name), data.content_hash)
        if known != data.content_hash and _recorded(sweep.out, known, data):
            raise InputError(
                f"{changed_data(data, known, f'the sweep in {sweep.out} took it up')}; valid: the data as they were, "
                f"another --out, or the runs on it deleted from {sweep.out / 'runs'}"
            )


def _recorded(out: Path, known: str, data: ImageData) -> bool:
    """Whether some run of the sweep in ``out`` is done on data of the hash ``known``, or has begun on such data.

    One that has begun goes on where the test images alone are of other sizes than they were, and ``data`` are these.
    """
    done = [out / RESULTS_TABLE, *out.glob("runs/**/results.json")]
    begun = map(_text, out.glob("runs/**/run.json"))
    return any(known in _text(file) for file in done) or any(
        known in text and data.training_hash not in text for text in begun
    )


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def begin(sweep: Sweep) -> None:
    """Before a worker's first run: may it make runs of this sweep, and what does it run on?

    What it runs on is added to environments.json, which outlives the runs' own files.

    Raises:
        InputError: what ``settle_precision`` raises.
    """
    device, precision = _device(sweep), settle_precision(sweep)
    if resolve_precision(sweep.settings()["precision"], device) != precision:
        print(f"precision {precision}, as this sweep began with; auto on this device ({device}) would be another")
    found = environment(device)
    for key in ("command", "platform"):  # a worker's own, of no weight for the numbers
        del found[key]
    file = sweep.out / ENVIRONMENTS
    with ProcessLock(sweep.out / SWEEP_LOCK).wait():
        before = read_json(file, "environments file") if file.is_file() else []
        if not isinstance(before, list):
            raise InputError(f"environments file {file} is damaged: it holds no list; valid: delete it")
        if found not in before:
            write_json(file, [*before, found])


def settle_precision(sweep: Sweep) -> str:
    """The precision of every run of a sweep: of ``auto`` what the device of its first worker makes of it.

    That then stands in the manifest: runs of several precisions do not compare, nor is one resumed in another.

    Raises:
        InputError: the device is not there or lacks the precision, a sweep that was not entered.
    """
    device = _device(sweep)
    with ProcessLock(sweep.out / SWEEP_LOCK).wait():
        manifest = read_manifest(sweep.out)
        settings = manifest["settings"]
        try:
            precision = resolve_precision(settings["precision"], device)
        except InputError as error:
            raise InputError(
                f"{error}; the sweep in {sweep.out} is of this precision in all its runs: it goes on on devices that "
                "have it, or another --out begins a new one"
            ) from error
        if settings["precision"] != precision:
            write_json(sweep.out / MANIFEST, {**manifest, "settings": {**settings, "precision": precision}})
    return precision


def precision_of(sweep: Sweep) -> str:
    """The precision of the runs of ``sweep`` as far as it is settled, else auto.

    That is by its first worker, by an option, or in the sweep whose training it takes over.
    """
    before = check_folder(sweep)
    settings = sweep.settings() if before is None else before["settings"]
    if settings["precision"] == "auto" and sweep.trained_in is not None:
        settings = read_manifest(sweep.trained_in)["settings"]
    return str(settings["precision"])


def _device(sweep: Sweep) -> torch.device:
    return resolve_device(sweep.config(sweep.runs()[0]).device)


def read_manifest(out: Path) -> dict[str, Any]:
    """What ``sweep.json`` in ``out`` says; InputError where it is damaged or of another version."""
    number = read_object(out / MANIFEST, "sweep file", {}).get("format")
    if number != FORMAT:
        raise InputError(
            f"the sweep in {out} was made by another version (format {number!r}, this one has {FORMAT}); valid: "
            "another --out, or the version that made it"
        )
    lists = dict.fromkeys(LISTS, list)
    values = read_object(out / MANIFEST, "sweep file", {"protocol": str, "settings": dict, **lists})
    if values["protocol"] == FEW_SHOT:
        read_object(out / MANIFEST, "sweep file", {SHOTS: list})
    if not isinstance(values.get(HASHES, {}), dict):
        raise InputError(f"sweep file {out / MANIFEST} is damaged: {HASHES} is {reprlib.repr(values[HASHES])}")
    return values


def _check_same(before: dict[str, Any], sweep: Sweep) -> None:
    if before["protocol"] != sweep.protocol:
        raise InputError(
            f"out is {str(sweep.out)!r}, where a sweep {before['protocol']} is; valid: that one, or another --out for "
            f"{sweep.protocol}"
        )
    check_settings(before, sweep, sweep.out, "the same, or another --out")


def check_settings(before: Mapping[str, Any], sweep: Sweep, where: Path, valid: str) -> None:
    """Raise InputError where the manifest ``before``, of ``where``, has other settings than ``sweep``.

    Precision auto is no other than what the manifest has; ``valid`` says what may be done.
    """
    # What the options are on the data set that the manifest's values are of, which the sweep's first need not be.
    now = sweep.settings(next(iter(before["data"]), None))
    completed = with_defaults(before["settings"])
    for name in {**before["settings"], **now}:
        old, new = completed.get(name), now.get(name)
        if name == "precision" and new == "auto":
            continue
        if old != new and name not in FREE:
            raise InputError(f"{name} is {new!r}, but the sweep in {where} has {old!r}; valid: {valid}")


def _joined(before: Sequence[Any], now: Sequence[Any]) -> list[Any]:
    """What was there, then what is new; data sets are the same by their short names."""
    return list({short_name(str(value)): value for value in (*before, *now)}.values())
