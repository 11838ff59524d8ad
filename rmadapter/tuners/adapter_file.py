"""Adapter files: a folder with ``adapter.safetensors`` and ``adapter_config.json``.

The weights' file holds the trained tensors alone, under the names of ``AdaptedCLIP.adapter_tensors``; the JSON
holds what they need: configuration, base model and its hash, preprocessing, class names and template.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rmadapter.clip.identity import ModelSource, uses_quick_gelu
from rmadapter.clip.types import ClipModel
from rmadapter.config import RMAdapterConfig
from rmadapter.data import Preprocessing
from rmadapter.errors import InputError
from rmadapter.files import read_json, write_atomic, write_json

FORMAT = 1
ADAPTER_WEIGHTS = "adapter.safetensors"
ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class AdapterInfo:
    """What ``adapter_config.json`` says.

    Attributes:
        config: the adapters.
        source: name and pretrained tag of the base model; None where it was not known when saving.
        base_hash: ``identity.base_hash`` of the base model.
        quick_gelu: whether the base model runs with QuickGELU.
        preprocessing: what images go through, for prediction.
        class_names, template: what was trained on, or None.
        training: how it was trained (method, data, residual stream, ...), for evaluation; None where it was not said.
        weights_sha256: of the weights' file, so that the two files are known to belong together; computed in writing.
    """

    config: RMAdapterConfig
    source: ModelSource | None
    base_hash: str
    quick_gelu: bool
    preprocessing: Preprocessing
    class_names: list[str] | None
    template: str | None
    training: dict[str, Any] | None
    weights_sha256: str = ""


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
    source = info.source
    values = {
        "format": FORMAT,
        "adapter": info.config.to_dict(),
        "model": None if source is None else {"name": source.name, "pretrained": source.pretrained},
        "base_hash": info.base_hash,
        "quick_gelu": info.quick_gelu,
        "preprocessing": info.preprocessing.to_dict(),
        "class_names": info.class_names,
        "template": info.template,
        "training": info.training,
        "weights_sha256": _sha256(weights),
    }
    write_json(folder / ADAPTER_CONFIG, values)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # how the library reports a full disk
        raise OSError(str(error)) from error


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_info(folder: Path) -> AdapterInfo:
    """Read and check ``adapter_config.json``.

    Raises:
        InputError: no adapter there, damaged JSON, a missing field, or a newer format than this version reads.
    """
    if not folder.is_dir():
        raise InputError(f"adapter folder {folder} does not exist")
    if not (folder / ADAPTER_CONFIG).is_file() and (folder / "adapter").is_dir():
        raise InputError(f"adapter is {str(folder)!r}, a run folder; its adapter is '{folder / 'adapter'}'")
    values: Any = read_json(folder / ADAPTER_CONFIG, "adapter file")
    if not isinstance(values, dict) or not isinstance(values.get("format"), int):
        raise InputError(f"{folder / ADAPTER_CONFIG} is no adapter configuration: it has no format number")
    if values["format"] > FORMAT:
        raise InputError(
            f"{folder / ADAPTER_CONFIG} has format {values['format']}, newer than {FORMAT}, the newest this version "
            "reads; update rmadapter"
        )
    try:
        source = values["model"]
        return AdapterInfo(
            config=RMAdapterConfig.from_dict(values["adapter"]),
            source=None if source is None else ModelSource(source["name"], source["pretrained"]),
            base_hash=values["base_hash"],
            quick_gelu=values["quick_gelu"],
            preprocessing=Preprocessing.from_dict(values["preprocessing"]),
            class_names=values["class_names"],
            template=values["template"],
            training=values["training"],
            weights_sha256=values["weights_sha256"],
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / ADAPTER_CONFIG} is damaged: field {error} is missing or malformed") from error


def check_base(clip: ClipModel, info: AdapterInfo, folder: Path, base_hash: str) -> None:
    """Raise InputError unless ``clip``, of which ``base_hash`` is the hash, is the model the adapter was trained on."""
    if uses_quick_gelu(clip) != info.quick_gelu:
        raise InputError(
            f"the adapter in {folder} was trained on a model {'with' if info.quick_gelu else 'without'} QuickGELU, "
            f"this one runs {'with' if uses_quick_gelu(clip) else 'without'} it"
        )
    if base_hash != info.base_hash:
        trained = str(info.source) if info.source else "another model"
        raise InputError(
            f"the adapter in {folder} belongs to other base weights than these: it was trained on {trained}, "
            f"hash {info.base_hash[:12]}"
        )


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
    if _sha256(path) != info.weights_sha256:
        raise InputError(f"{path} is not the file that {ADAPTER_CONFIG} was written with; save the adapter again")
    return tensors
