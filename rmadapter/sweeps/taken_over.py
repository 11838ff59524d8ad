"""Training that another sweep has done: ``rmadapter sweep domain --trained-in CROSS``.

A run of ``domain`` trains as the run of ``cross`` with the same method, source and seed does, and ``base2new`` trains
and tests as ``ablation``. With one source, ImageNet, that training is nearly all of what either costs. What the other
sweep has kept of a run, adapter, results and log, is copied, and tested on this sweep's own targets.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping

from rmadapter.data import ImageData
from rmadapter.errors import InputError
from rmadapter.sweeps.manifest import MANIFEST, check_folder, check_settings, known_hashes, read_manifest
from rmadapter.sweeps.progress import result_file
from rmadapter.sweeps.protocols import PlannedRun, short_name
from rmadapter.sweeps.settings import Sweep
from rmadapter.training.run_folder import changed_data

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
    precision, before = manifest["settings"]["precision"], check_folder(sweep)
    if before is not None and before["settings"]["precision"] not in (precision, "auto"):
        raise InputError(
            f"precision is {before['settings']['precision']!r} in {sweep.out}, but the sweep in {other} has "
            f"{precision!r}; valid: no --trained-in, or another --out"
        )
    hashes = known_hashes(other)
    for name, data in loaded.items():
        known = hashes.get(short_name(name), data.content_hash)
        if known != data.content_hash:
            raise InputError(f"{changed_data(data, known, f'the sweep in {other} took it up')}; valid: no --trained-in")


def is_there(sweep: Sweep, run: PlannedRun) -> bool:
    """Whether the other sweep holds the training of ``run`` with what is to be tested further."""
    if sweep.trained_in is None:
        return False
    folder = sweep.trained_in / "runs" / run.key
    return result_file(folder, None).is_file() and (run.seed is None or (folder / "run" / "adapter").is_dir())


def take_over(sweep: Sweep, run: PlannedRun) -> bool:
    """Copy the training of ``run`` from the other sweep, where it is there; whether it was.

    What this sweep has begun to train stays, and is gone on with.
    """
    to = sweep.folder(run) / "run"
    if sweep.trained_in is None or to.exists() or not is_there(sweep, run):
        return False
    copy = to.with_name(".taken-over")  # this process has the run for itself; a killed one may have left a part
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(sweep.trained_in / "runs" / run.key / "run", copy)
    copy.rename(to)
    print(f"trained in {sweep.trained_in}, and taken over from there")
    return True
