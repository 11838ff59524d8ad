"""Adapter files: a folder with ``adapter.safetensors`` and ``adapter_config.json``.

The weights' file holds the trained tensors alone, under the names of ``AdaptedCLIP.adapter_tensors``; the JSON holds
what they need: the adapters' configuration, and what ``stored_facts`` records of base model, images and training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rmadapter.config import TunerConfig
from rmadapter.errors import InputError
from rmadapter.files import write_atomic
from rmadapter.tuners.earlier_file import as_written_now
from rmadapter.tuners.stored_facts import StoredFacts, check_weights_file, read_facts, write_facts

ADAPTER_WEIGHTS = "adapter.safetensors"
ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True, kw_only=True)
class AdapterInfo(StoredFacts):
    """What ``adapter_config.json`` says: ``config``, all that is trained, beside the facts."""

    config: TunerConfig


def write_adapter(folder: Path, tensors: Mapping[str, Tensor], info: AdapterInfo) -> None:
    """Write ``tensors`` and ``info`` to ``folder``, each file atomically, the weights first.

    Raises:
        InputError: the folder cannot be written or the disk is full, or a weight is not finite.
    """
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    for name, tensor in kept.items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"the adapter is not saved: {name} holds values that are not finite")
    weights = folder / ADAPTER_WEIGHTS
    write_atomic(weights, lambda path: _save(kept, path))
    write_facts(folder / ADAPTER_CONFIG, info, weights)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # how the library reports a full disk
        raise OSError(str(error)) from error


def read_info(folder: Path) -> AdapterInfo:
    """Read and check ``adapter_config.json``.

    Raises:
        InputError: no adapter there; everything ``read_facts`` raises.
    """
    if not folder.is_dir():
        raise InputError(f"adapter folder {folder} does not exist")
    if not (folder / ADAPTER_CONFIG).is_file() and (folder / "adapter").is_dir():
        raise InputError(f"adapter is {str(folder)!r}, a run folder; its adapter is '{folder / 'adapter'}'")
    return read_facts(AdapterInfo, folder / ADAPTER_CONFIG, "adapter", as_written_now)


def stored_rows(folder: Path, name: str) -> int:
    """How many rows the tensor ``name`` in ``folder`` has; 0 where there is none, which ``read_tensors`` says."""
    try:
        with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
            return file.get_slice(name).get_shape()[0]
    except (OSError, SafetensorError):
        return 0


def read_tensors(folder: Path, info: AdapterInfo, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors in ``folder``, which have to be those of ``shapes`` by name and the file that ``info`` belongs to.

    Raises:
        InputError: tensors that are missing, too many, wrongly shaped or not finite, a truncated file, another file.
    """
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        raise InputError(f"adapter file {path} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
    except SafetensorError as error:
        raise InputError(f"{path} is truncated or damaged: {error}") from error
    missing, extra = sorted(set(shapes) - set(tensors)), sorted(set(tensors) - set(shapes))
    if missing:
        raise InputError(f"{path} lacks {len(missing)} tensors: {', '.join(missing[:5])}")
    if extra:
        raise InputError(f"{path} has {len(extra)} tensors too many: {', '.join(extra[:5])}")
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != shapes[name]:
            raise InputError(f"{path}: {name} has shape {list(tensor.shape)}, the model's is {list(shapes[name])}")
        if not torch.isfinite(tensor).all():
            raise InputError(f"{path}: {name} holds values that are not finite")
    check_weights_file(path, folder / ADAPTER_CONFIG, info)
    return tensors
