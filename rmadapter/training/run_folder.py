"""A run's folder: resolved configuration, metrics, few-shot sample, resumable state, adapter, results.

    run.json  config.yaml  environment.json  few_shot.json  metrics.jsonl  adapter/  results.json
    state.safetensors     while the run is unfinished: everything that --resume needs, in one file

The state is one file, so that a kill at any moment leaves either the last state or the one before. ``run.json`` says
that the folder is a run's, of what kind, and which data it began with; a lock keeps other processes out meanwhile.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rmadapter.config import RUN_CONFIG_FILE, TrainConfig
from rmadapter.data import ImageData
from rmadapter.data.sampling import SAMPLE_FILE
from rmadapter.errors import InputError, StoppedError
from rmadapter.evaluation.calibration import CALIBRATION
from rmadapter.evaluation.results_file import describe
from rmadapter.files import (
    check_folder_name,
    clear_temporaries,
    read_json,
    read_object,
    reserve,
    shown_names,
    write_atomic,
    write_json,
    write_text,
)
from rmadapter.locks import ProcessLock
from rmadapter.methods.method import TUNED
from rmadapter.tuners.adapter_file import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from rmadapter.tuners.probe import PROBE_CONFIG, PROBE_WEIGHTS

FORMAT = 1
# Bytes of what a run writes beside weights and states.
SMALL_FILES = 2**20
LOCK = ".lock"
# Where things are and how fast it goes, which changes no weight beyond its last bits.
_PLACES_AND_SPEED = {
    "out",
    "resume",
    "overwrite",
    "data_root",
    "workers",
    "eval_batch_size",
    "checkpoint_every",
    "device",
    "text_memory",
    "grad_checkpointing",
    "step",
    # In fp16 a recorded step that is not finite also halves the loss scale; else it is the same to rounding.
    "cuda_graphs",
    "cache_dir",
    "image_cache",
    "explain",
    "max_bad_steps",
    "allow_test_overlap",
}
# What is written down or done beside training.
_WITHOUT_WEIGHT = {"evaluate", "log_every", "grad_norm_every", "label"}
# What may differ between a run and its resumption. Images that are left out change no sample that was drawn: it is
# compared with the one that the run began with.
FREE_ON_RESUME = _PLACES_AND_SPEED | _WITHOUT_WEIGHT | {"skip_bad_images"}
# No settings of a result: what results.json says beside them.
_SAID_BESIDE = {
    "data",
    "style",
    "classes",
    "shots",
    "seed",
    "model",
    "pretrained",
    "precision",
    "fused",
    "backend",
}
# For people, of a run that has stopped, by whatever command it was made.
GO_ON = "--resume goes on with it; in a sweep or a search, that one's own command does"


@dataclass
class State:
    """Everything a run needs to go on.

    Attributes:
        tensors: what an adapter file holds ``adapter.NAME``, the optimizer's ``optimizer.KEY.NAME``, and of the epochs'
            weights ``kept.NAME`` where the last ones are not the result.
        values: plain values: epoch, step in it, length of metrics.jsonl in bytes, and so on.
    """

    tensors: dict[str, Tensor]
    values: dict[str, Any]


class RunFolder:
    """The files of one run in ``path``; ``kind`` is that of its method."""

    def __init__(self, path: Path, kind: str = TUNED):
        self.path, self.kind = path, kind
        self.marker_file = path / "run.json"
        self.config_file = path / RUN_CONFIG_FILE
        self.environment_file = path / "environment.json"
        self.sample_file = path / SAMPLE_FILE
        self.metrics_file = path / "metrics.jsonl"
        self.state_file = path / "state.safetensors"
        self.results_file = path / "results.json"
        self.adapter = path / "adapter"
        self._lock: ProcessLock | None = None

    @property
    def is_run(self) -> bool:
        """Whether a run has begun here: ``run.json`` is there, and one that a run wrote."""
        if not self.marker_file.is_file():
            return False
        with contextlib.suppress(InputError):
            values = read_json(self.marker_file, "run file")
            return isinstance(values, dict) and {"format", "kind", "data_hash"} <= values.keys()
        return False

    @property
    def is_whole(self) -> bool:
        """Whether a finished run is here, with what it has trained."""
        stored = ((ADAPTER_CONFIG, ADAPTER_WEIGHTS), (PROBE_CONFIG, PROBE_WEIGHTS))
        kept = any(all((self.adapter / name).is_file() for name in names) for names in stored)
        return kept and self.is_run and self.results_file.is_file()

    @property
    def _own_files(self) -> list[Path]:
        """All that a run may write, its marker last: while that is there, the folder is a run's."""
        stored = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, PROBE_CONFIG, PROBE_WEIGHTS, CALIBRATION)
        adapter = [self.adapter / name for name in stored]
        files = [self.results_file, self.state_file, self.metrics_file, self.sample_file, self.environment_file]
        return [*files, *adapter, self.config_file, self.marker_file]

    def _others(self) -> list[str]:
        """What is in the folder that no run writes."""
        own = self._own_files
        names = [self.path / name for name in shown_names(self.path)]
        if self.adapter.is_dir() and not self.adapter.is_symlink():
            names.remove(self.adapter)
            names += [self.adapter / name for name in shown_names(self.adapter)]
        return [str(path.relative_to(self.path)) for path in names if path not in own]

    def check(self, config: TrainConfig, data: ImageData | None = None) -> None:
        """Before any work: may a run with ``config`` on ``data`` go into this folder?

        Raises:
            InputError: a run is there and neither resume nor overwrite is set, or the run there has another
                configuration, is of another method or on other data, or the folder holds something that is no run's.
        """
        check_folder_name("out", self.path)
        if not self.path.exists():
            return
        if not self.is_run:
            if others := shown_names(self.path):
                raise InputError(
                    f"out is {str(self.path)!r}, a folder with other files in it ({others[0]}); valid: a new or empty "
                    "one"
                )
            return
        others = self._others()
        if config.overwrite:
            if others:
                raise InputError(
                    f"out is {str(self.path)!r}, where beside a run there is {others[0]!r}, and --overwrite deletes "
                    "what is a run's alone; valid: another --out, or that file elsewhere"
                )
            return
        difference = self.difference(config, data)
        if config.resume:
            if difference is not None:
                raise InputError(f"{difference}; valid with --resume: the same, or another --out")
            return
        resume = "--resume to go on with it, " if difference is None else ""
        overwrite = "" if others else "--overwrite to replace it, "
        raise InputError(
            f"out is {str(self.path)!r}, where a run is already{f': {difference}' if difference else ''}; valid: "
            f"{resume}{overwrite}another --out"
        )

    def difference(self, config: TrainConfig, data: ImageData | None) -> str | None:
        """In what the run that is here is not the one that ``config`` and ``data`` describe; None where it is."""
        marker = read_json(self.marker_file, "run file")
        if not isinstance(marker, dict) or marker.get("format") != FORMAT:
            return f"the run in {self.path} was made by another version"
        if marker.get("kind") != self.kind:
            return f"method is one of kind {self.kind!r}, but that of the run in {self.path} is {marker.get('kind')!r}"
        if self.config_file.is_file():
            try:
                before = yaml.safe_load(self.config_file.read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
                return f"{self.config_file} cannot be read: {error}"
            if not isinstance(before, dict):
                return f"{self.config_file} cannot be read: it holds no options"
            now, before = _plain(config), with_defaults(before)
            for name in now:
                old = before[name]
                if name not in FREE_ON_RESUME and not _is_same(name, old, now[name]):
                    return f"{name} is {now[name]!r}, but the run in {self.path} has {old!r}"
        if data is not None and not self._is_of(data, marker):
            return changed_data(data, str(marker.get("data_hash")), f"the run in {self.path} began")
        return None

    def _is_of(self, data: ImageData, marker: Mapping[str, Any]) -> bool:
        """Whether the run goes on, or was finished, on ``data``; a finished one has read their test images too."""
        if self.results_file.is_file():
            return data.content_hash == marker.get("data_hash")
        return data.is_same_training(marker)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside, this process alone may write to the folder, which is made; one that stays empty goes again.

        Raises:
            InputError: another process has it, or it cannot be made.
        """
        missing = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"out is {str(self.path)!r}, which cannot be made: {error.strerror}") from error
        lock = ProcessLock(self.path / LOCK)
        try:
            with lock.attempt() as mine:
                if not mine:
                    raise InputError(
                        f"out is {str(self.path)!r}, where another run is going on ({lock.in_the_way}); valid: "
                        "another --out, or its end"
                    )
                self._lock = lock
                yield
        finally:
            self._lock = None
            with contextlib.suppress(OSError):
                for folder in missing:
                    folder.rmdir()

    def check_held(self) -> None:
        """Raise StoppedError where the folder is no longer this process's alone, since somebody has deleted it."""
        if self._lock is not None:
            self._lock.check_held()

    def prepare(self, config: TrainConfig, hashes: Mapping[str, str | None]) -> None:
        """Write what the run is and its resolved configuration; with ``overwrite`` delete the run that is there.

        ``hashes`` are those of its data, of which a resumed run has the newest: the ones that it is tested on.
        """
        if config.overwrite and self.is_run:
            for path in self._own_files:
                path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty: something hidden is in it, which stays
                self.adapter.rmdir()
        clear_temporaries(self.path)
        if self.adapter.is_dir():
            clear_temporaries(self.adapter)
        write_json(self.marker_file, {"format": FORMAT, "kind": self.kind, **hashes})
        if not self.config_file.exists():
            # Read by --config it makes this run again; what it does to a folder that is there is asked for each time.
            values = {**_plain(config), "resume": False, "overwrite": False}
            write_text(self.config_file, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))

    def check_room(self, size: int) -> None:
        """Raise InputError unless ``size`` bytes more may be written to the folder."""
        try:
            with tempfile.TemporaryFile(dir=self.path) as file:
                reserve(file, size)
        except OSError as error:
            raise InputError(
                f"out is {str(self.path)!r}, where the {size / 1e6:.1f} MB that a run needs cannot be written: "
                f"{error.strerror or error}; valid: a folder on a disk with room"
            ) from error

    def results(self) -> dict[str, Any] | None:
        """What the finished run found, or None for an unfinished one."""
        if not self.results_file.is_file():
            return None
        return read_object(self.results_file, "results file", {"accuracy": dict, "images": dict, "skipped": int})

    def save_state(self, state: State) -> None:
        """Replace the resumable state, atomically; StoppedError where the folder was taken from this process."""
        self.check_held()

        def write(path: Path) -> None:
            try:
                save_file(state.tensors, path, metadata={"values": json.dumps(state.values)})
            except SafetensorError as error:
                raise OSError(str(error)) from error

        write_atomic(self.state_file, write)

    def load_state(self) -> State | None:
        """The resumable state, None where there is none; InputError where it is damaged."""
        if not self.state_file.is_file():
            return None
        try:
            with safe_open(self.state_file, framework="pt") as file:
                values = json.loads(file.metadata()["values"])
                return State({name: file.get_tensor(name) for name in file.keys()}, values)  # noqa: SIM118
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise InputError(f"{self.state_file} is damaged ({error}); delete it to start the run anew") from error

    def remove_state(self) -> None:
        """After the run's end nothing is resumed."""
        self.state_file.unlink(missing_ok=True)


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """What determines a training run's numbers beside its data, model and seed, for results.json."""
    # What images were left out is counted in results.json, and only with views does the cache's limit weigh.
    left_out = _PLACES_AND_SPEED | _SAID_BESIDE | _WITHOUT_WEIGHT | {"skip_bad_images"}
    left_out |= set() if config.views else {"cache_limit"}
    return {name: value for name, value in _plain(config).items() if name not in left_out}


def _is_same(name: str, old: Any, new: Any) -> bool:
    """Whether a run goes on as it began where option ``name`` was ``old`` and is ``new``.

    A data set is told by its hash, wherever it lies; by its name is drawn what a run begins with.
    """
    if name == "data" and isinstance(old, str):
        old, new = Path(old).name, Path(new).name
    return old == new


def _plain(config: TrainConfig) -> dict[str, Any]:
    """The configuration as plain values that survive YAML."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def with_defaults(options: dict[str, Any]) -> dict[str, Any]:
    """``options`` as plain values; one that the version which wrote them did not have was as it is by default."""
    return _completed(options, _plain(TrainConfig(data="any")))


def _completed(values: Any, defaults: Any) -> Any:
    if not (isinstance(values, dict) and isinstance(defaults, dict)):
        return values
    return values | {name: _completed(values.get(name, default), default) for name, default in defaults.items()}


def changed_data(data: ImageData, before: str, when: str) -> str:
    """That ``data`` is not what it was ``when`` something else was made of it, for people; both by their hashes."""
    return (
        f"data {data.name} does not list the images, classes and labels that it did when {when}, or has files of other "
        f"sizes (a damaged image that was replaced is one): its content hash is {data.content_hash[:12]}, and was "
        f"{before[:12]}"
    )


def finished_run(folder: RunFolder, config: TrainConfig, data: ImageData | None = None) -> dict[str, Any] | None:
    """What the finished run found that ``config`` goes on with, which is said; None where there is work to do.

    Raises:
        InputError: what ``folder.check`` raises.
    """
    folder.check(config, data)
    done = folder.results() if config.resume else None
    if done is not None:
        print(f"the run in {folder.path} is finished; its results: {folder.results_file}\n{describe(done)}")
        if config.evaluate and not done["accuracy"]:
            print(f"it was made without a test, which this does: {eval_command(folder, config)}")
    return done


def eval_command(folder: RunFolder, config: TrainConfig, *more: str) -> str:
    """What tests the adapter in ``folder`` on the data of ``config``, with ``more`` options, as words for a shell."""
    words = ["rmadapter", "eval", "--adapter", str(folder.adapter), "--data", config.data]
    words += [] if config.data_root is None else ["--data-root", config.data_root]
    words += [] if config.style is None else ["--style", config.style]
    halves = config.classes == "base" and folder.kind == TUNED and not config.tuned.bound
    return shlex.join([*words, "--classes", "base_new" if halves else config.classes, *more])


def not_tested(folder: RunFolder, config: TrainConfig, error: Exception) -> StoppedError:
    """For a run whose adapter is there, but whose test met ``error``: an image, or a process that decodes them."""
    other = ["--skip-bad-images"] if isinstance(error, InputError) else ["--workers", "0"]
    return StoppedError(
        f"the adapter is trained and saved in {folder.adapter}, but its test failed: {error}. {GO_ON}, both with "
        f"{' '.join(other)} too; or test it with {eval_command(folder, config, *other)}"
    )
