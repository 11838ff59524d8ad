"""The file that ``bench.step`` keeps its samples in: one group of them, which alone may be compared with each other."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from rmadapter.errors import InputError
from rmadapter.files import read_json

ROOT = Path(__file__).resolve().parents[1]
# What decides a sample, below ROOT; a commit of documents or results alone makes no other group.
CODE = ("rmadapter", "rmadapter_kernels", "csrc", "setup.py", "bench/step.py", "bench/step_contenders.py",
        "bench/step_methods.py", "bench/memory.py")  # fmt: skip


def group(model: str, batch: int | None, backend: str | None, device: torch.device, **others: Any) -> dict[str, Any]:
    """What all samples of one file have in common, ``others`` too; ``batch`` None: each method has its own."""
    return {
        "model": model,
        "batch": batch,
        "backend": backend or "auto",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit(),
        **others,
    }


def open_samples(path: Path, own: dict[str, Any], overwrite: bool = False) -> dict[str, Any]:
    """What is kept in ``path`` of the group ``own``; nothing yet without a file, or with ``overwrite`` another group's.

    Raises:
        InputError: the file is another group's, or cannot be read.
    """
    new = {"group": own, "cases": {}}
    if not path.exists():
        return new
    kept = read_json(path, "samples")
    there = kept.get("group", {})
    differ = [f"{name} is {own[name]!r}, there {there.get(name)!r}" for name in own if there.get(name) != own[name]]
    if differ and overwrite:
        return new
    if differ:
        raise InputError(
            f"out is {str(path)!r}, whose samples are not to be mixed with this run's: {'; '.join(differ)}; "
            "valid: another --out, or --overwrite to measure all anew"
        )
    return kept


def commit(root: Path = ROOT) -> str:
    """The last commit that changed what is measured, in a few digits, and a hash of what was changed after it.

    "unknown" where ``root`` is no checkout.
    """
    found = _git(root, "log", "-1", "--format=%h")
    if not found:
        return "unknown"
    changes = _git(root, "diff", "HEAD")
    return found + (f" with changes {hashlib.sha256(changes.encode()).hexdigest()[:8]}" if changes else "")


def processor() -> str:
    """The processor's name, or that of its kind where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words, "--", *CODE]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
