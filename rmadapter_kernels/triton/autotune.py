"""max-autotune: measure every candidate once, and keep the fastest in memory and on disk."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import torch
import triton

from rmadapter_kernels.triton.options import options
from rmadapter_kernels.triton.tuning import Config, Device, Problem, bucket, candidates, config_for


def cache_folder() -> Path:
    """Where measured configurations and compiled reports are kept: ``RMADAPTER_CACHE`` or ~/.cache/rmadapter."""
    return Path(os.environ.get("RMADAPTER_CACHE") or Path.home() / ".cache" / "rmadapter")


@functools.cache
def source_hash() -> str:
    """Of the kernels: others need other measurements."""
    digest = hashlib.sha256()
    for name in ("primitives", "forward", "backward"):
        digest.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return digest.hexdigest()[:16]


def _key(problem: Problem) -> str:
    p = problem
    return f"{p.kernel} {p.dtype} {p.precision} D={p.d} r={p.r} h={p.h} M<={bucket(p.tokens)}"


def _file(device_name: str) -> Path:
    name = "".join(c if c.isalnum() else "-" for c in device_name)
    return cache_folder() / f"autotune-{name}-triton{triton.__version__}-{source_hash()}.json"


def _read(path: Path) -> dict[str, list[int]]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _write(path: Path, key: str, config: Config) -> None:
    """Add one entry; a cache that cannot be written costs time and nothing else."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(_read(path) | {key: astuple(config)}, indent=1), encoding="utf-8")
        os.replace(temporary, path)


_measured: dict[tuple[str, str], Config] = {}


def choose_config(problem: Problem, device: Device, measure: Callable[[Config], float] | None) -> Config:
    """The configuration to launch: measured under max-autotune, else the table's or the heuristic's.

    Args:
        measure: milliseconds in a configuration (infinite where it does not run); None: nothing may be measured now.
    """
    name = device_name() if options().max_autotune else None
    if name is None:
        return config_for(problem, device)
    key = (name, _key(problem))
    if key in _measured:
        return _measured[key]
    path = _file(name)
    stored = _read(path).get(key[1])
    if stored is not None:
        with contextlib.suppress(TypeError, ValueError):
            return _measured.setdefault(key, Config(*stored))
    if measure is None:
        return config_for(problem, device)
    times = {config: measure(config) for config in candidates(problem, device)}
    _measured[key] = min(times, key=times.__getitem__)
    _write(path, key[1], _measured[key])
    return _measured[key]


def device_name() -> str | None:
    """The current CUDA device's name."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
