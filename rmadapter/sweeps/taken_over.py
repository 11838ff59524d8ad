"""Training that another sweep has done: ``rmadapter sweep domain --trained-in CROSS``.

A run of ``domain`` trains as the run of ``cross`` with the same method, source and seed does, and ``base2new`` trains
and tests as ``ablation``. With one source, ImageNet, that training is nearly all of what either costs. The run's folder
in the other sweep is copied, and what it trained is tested on this sweep's own targets. Each run is looked at by
itself: one that is not there whole, or was made with other options, is trained here.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping

from rmadapter.config import TrainConfig
from rmadapter.data import ImageData
from rmadapter.errors import InputError
from rmadapter.evaluation.results_table import RESULTS_TABLE, ResultsTable
from rmadapter.methods import METHODS
from rmadapter.sweeps.manifest import MANIFEST, check_settings, known_hashes, precision_of, read_manifest
from rmadapter.sweeps.protocols import PlannedRun, short_name
from rmadapter.sweeps.settings import Sweep
from rmadapter.training.run_folder import RunFolder, changed_data

# Protocols whose runs of one key train alike.
ALIKE = (("cross", "domain"), ("base2new", "ablation"))


def check_source(sweep: Sweep, loaded: Mapping[str, ImageData]) -> None:
    """Is what ``sweep.trained_in`` names a sweep whose runs are trained as those of ``sweep`` would be?

    ``loaded`` are the data sets of ``sweep``, by what it calls them.

    Raises:
        InputError: no sweep is there, or this one; its protocol trains otherwise; it has another setting or precision,
            or other data of the same name.
    """
    other = sweep.trained_in
    if other is None:
        return
    if not (other / MANIFEST).is_file():
        raise InputError(f"trained_in is {str(other)!r}, where no {MANIFEST} is; valid: the folder of a sweep")
    if other.resolve() == sweep.out.resolve():
        raise InputError(f"trained_in is {str(other)!r}, the sweep itself; valid: the folder of another one")
    manifest = read_manifest(other)
    alike = next((names for names in ALIKE if sweep.protocol in names), (sweep.protocol,))
    if manifest["protocol"] not in alike:
        raise InputError(
            f"trained_in is {str(other)!r}, a sweep {manifest['protocol']}, which trains otherwise than "
            f"{sweep.protocol}; valid: one of {', '.join(alike)}"
        )
    check_settings(manifest, sweep, other, "the same, or no --trained-in")
    ours, theirs = precision_of(sweep), manifest["settings"]["precision"]
    if ours != theirs:
        raise InputError(
            f"precision is {ours!r} in {sweep.out}, but the sweep in {other} has {theirs!r}; valid: no --trained-in, "
            "or another --out"
        )
    hashes = known_hashes(other)
    for name, data in loaded.items():
        known = hashes.get(short_name(name), data.content_hash)
        if known != data.content_hash:
            raise InputError(f"{changed_data(data, known, f'the sweep in {other} took it up')}; valid: no --trained-in")


def is_taken(sweep: Sweep, run: PlannedRun, config: TrainConfig, data: ImageData) -> bool:
    """Whether the other sweep has trained ``run``, of this ``config`` on ``data``, which has not begun here."""
    if sweep.trained_in is None or run.seed is None or (sweep.folder(run) / "run").exists():
        return False
    # Of a run in its table the folder is on its way out.
    source, table = _source(sweep, run), ResultsTable(sweep.trained_in / RESULTS_TABLE)
    return source.is_whole and not table.of(run.key) and _is_same(source, config, data)


def take_over(sweep: Sweep, run: PlannedRun, config: TrainConfig, data: ImageData) -> bool:
    """Copy the training of ``run`` from the other sweep where it ``is_taken``; whether it was."""
    if not is_taken(sweep, run, config, data):
        return False
    source, folder = _source(sweep, run), sweep.folder(run)
    # Here the run is this process's, and a killed one may have left a part; there it may be deleted meanwhile.
    copy = RunFolder(folder / ".taken-over", source.kind)
    shutil.rmtree(copy.path, ignore_errors=True)
    try:
        shutil.copytree(source.path, copy.path)
    except (OSError, shutil.Error) as error:
        print(f"{source.path} cannot be taken over: {error}")
    if not (copy.is_whole and _is_same(copy, config, data)):
        shutil.rmtree(copy.path, ignore_errors=True)
        return False
    copy.path.rename(folder / "run")
    print(f"taken over from {source.path}, where it was trained")
    return True


def _source(sweep: Sweep, run: PlannedRun) -> RunFolder:
    assert sweep.trained_in is not None  # the caller has looked
    return RunFolder(sweep.trained_in / "runs" / run.key / "run", METHODS[run.method].kind)


def _is_same(folder: RunFolder, config: TrainConfig, data: ImageData) -> bool:
    difference = folder.difference(config, data)
    if difference is not None:
        print(f"not taken over: {difference}")
    return difference is None
