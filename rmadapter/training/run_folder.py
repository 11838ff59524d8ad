"""A run's folder: resolved configuration, metrics, few-shot sample, resumable state, adapter, results.

    config.yaml  environment.json  few_shot.json  metrics.jsonl  adapter/  results.json
    state.safetensors     while the run is unfinished: everything that --resume needs, in one file

The state is one file, so that a kill at any moment leaves either the last state or the one before.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rmadapter.config import RUN_CONFIG_FILE, TrainConfig
from rmadapter.errors import InputError
from rmadapter.evaluation.results_file import describe
from rmadapter.files import read_json, shown_names, write_atomic, write_text

# What may differ between a run and its resumption: where things are, and what changes no weight beyond its last bits.
FREE_ON_RESUME = {
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
    "cache_dir",
    "image_cache",
    "explain",
    "max_bad_steps",
}
# No settings of a result: what results.json says beside them, and what is only written down or done afterwards.
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
    "label",
}
_WITHOUT_WEIGHT = {"evaluate", "log_every", "grad_norm_every"}


@dataclass
class State:
    """Everything a run needs to go on.

    Attributes:
        tensors: adapter weights ``adapter.NAME`` and momenta ``momentum.NAME``.
        values: plain values: epoch, step in it, length of metrics.jsonl in bytes, and so on.
    """

    tensors: dict[str, Tensor]
    values: dict[str, Any]


class RunFolder:
    """The files of one run in ``path``."""

    def __init__(self, path: Path):
        self.path = path
        self.config_file = path / RUN_CONFIG_FILE
        self.environment_file = path / "environment.json"
        self.sample_file = path / "few_shot.json"
        self.metrics_file = path / "metrics.jsonl"
        self.state_file = path / "state.safetensors"
        self.results_file = path / "results.json"
        self.adapter = path / "adapter"

    def check(self, config: TrainConfig) -> None:
        """Before any work: may a run with ``config`` go into this folder?

        Raises:
            InputError: a run is there and neither resume nor overwrite is set, or the run there has another
                configuration, or the folder holds something that is no run.
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise InputError(f"out is {str(self.path)!r}, which is a file")
        is_run = self.config_file.is_file()
        if not is_run and (others := shown_names(self.path)):
            raise InputError(
                f"out is {str(self.path)!r}, a folder with other files in it ({others[0]}); valid: a new or empty one"
            )
        if is_run and not (config.resume or config.overwrite):
            raise InputError(
                f"out is {str(self.path)!r}, where a run is already; valid: --resume to go on with it, --overwrite "
                "to replace it, or another --out"
            )
        if is_run and config.resume:
            self._check_same(config)

    def _check_same(self, config: TrainConfig) -> None:
        try:
            before = yaml.safe_load(self.config_file.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise InputError(f"{self.config_file} cannot be read: {error}") from error
        now = _plain(config)
        for name in now:
            if name not in FREE_ON_RESUME and before.get(name) != now[name]:
                raise InputError(
                    f"{name} is {now[name]!r}, but the run in {self.path} has {before.get(name)!r}; "
                    "valid with --resume: the same, or another --out"
                )

    def prepare(self, config: TrainConfig) -> None:
        """Make the folder, emptied with ``overwrite``, and write the resolved configuration."""
        if config.overwrite and self.path.exists():
            shutil.rmtree(self.path)
        if not self.config_file.exists():
            # Read by --config it makes this run again; what it does to a folder that is there is asked for each time.
            values = {**_plain(config), "resume": False, "overwrite": False}
            write_text(self.config_file, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))

    def results(self) -> dict[str, Any] | None:
        """What the finished run found, or None for an unfinished one."""
        return read_json(self.results_file, "results file") if self.results_file.is_file() else None

    def save_state(self, state: State) -> None:
        """Replace the resumable state, atomically."""

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


class MetricsLog:
    """``metrics.jsonl``, one JSON object a line; opened at ``length`` bytes, so that a resumed run repeats none."""

    def __init__(self, path: Path, length: int):
        try:
            self._file = path.open("ab")
            self._file.truncate(length)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}") from error
        self.path = path

    def write(self, values: dict[str, Any]) -> None:
        """Append a line and hand it to the operating system."""
        try:
            self._file.write(json.dumps(values).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror}") from error

    @property
    def length(self) -> int:
        """Bytes so far."""
        return self._file.seek(0, 2)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """What determines a training run's numbers beside its data, model and seed, for results.json."""
    left_out = FREE_ON_RESUME | _SAID_BESIDE | _WITHOUT_WEIGHT
    return {name: value for name, value in _plain(config).items() if name not in left_out}


def _plain(config: TrainConfig) -> dict[str, Any]:
    """The configuration as plain values that survive YAML."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def finished_run(folder: RunFolder, config: TrainConfig) -> dict[str, Any] | None:
    """What the finished run found that ``config`` goes on with, which is said; None where there is work to do.

    Raises:
        InputError: what ``folder.check`` raises.
    """
    folder.check(config)
    done = folder.results() if config.resume else None
    if done is not None:
        print(f"the run in {folder.path} is finished; its results: {folder.results_file}\n{describe(done)}")
    return done
