"""How much memory a run may take, and still take: a GPU's, or of the machine what control groups leave to the process.

A batch system or a container gives a job less than the machine has, and ends it when it takes more. Linux keeps that
limit in the process's memory control group and in every group above it (cgroups v2: ``memory.max``; v1:
``memory.limit_in_bytes``), in files under the mount point.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

UNKNOWN = 4 * 2**30  # bytes, where the operating system says nothing
# (limit, what is taken, what of that is a cache of files that gives way) by version of the control groups
FILES = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def free_bytes(device: torch.device) -> int:
    """Memory that this process can still take on ``device``; on a GPU with what its allocator keeps unused."""
    if device.type != "cuda":
        return host_free_bytes()
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def total_bytes(device: torch.device) -> int:
    """All memory that ``device`` has for this process, whatever else is in it now."""
    if device.type != "cuda":
        return host_total_bytes()
    return torch.cuda.get_device_properties(device).total_memory


def host_free_bytes(proc: Path = Path("/proc"), mount: Path = Path("/sys/fs/cgroup")) -> int:
    """What Linux calls available, or less where a control group leaves less; 4 GB where the system says nothing."""
    left = (max(0, limit - taken) for limit, taken in _limits(proc, mount))
    return min([_meminfo(proc, "MemAvailable"), *left])


def host_total_bytes(proc: Path = Path("/proc"), mount: Path = Path("/sys/fs/cgroup")) -> int:
    """What the machine has, or less where a control group allows less; 4 GB where the system says nothing."""
    return min([_meminfo(proc, "MemTotal"), *(limit for limit, _ in _limits(proc, mount))])


def _meminfo(proc: Path, field: str) -> int:
    try:
        lines = (proc / "meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return UNKNOWN
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), UNKNOWN)


def _limits(proc: Path, mount: Path) -> Iterator[tuple[int, int]]:
    """Of each limited group of this process: what it allows, and what of that is taken for good, in bytes."""
    for version, folder in _groups(proc, mount):
        limit_file, taken_file, cache_field = FILES[version]
        try:
            limit = (folder / limit_file).read_text(encoding="ascii").strip()
            taken = int((folder / taken_file).read_text(encoding="ascii"))
            fields = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
        except (OSError, ValueError):
            continue  # the root has no limit, and a container does not see the groups above its own
        if limit != "max":
            yield int(limit), taken - int(fields.get(cache_field, 0))


def _groups(proc: Path, mount: Path) -> Iterator[tuple[int, Path]]:
    """(version, folder) of the memory group of this process and of each one above it."""
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            version, top = 2, mount
        elif "memory" in controllers.split(","):
            version, top = 1, mount / "memory"
        else:
            continue
        # A container may see its own group as the top, under the name that it has on the machine: every prefix is
        # looked for, and what is not there is passed over.
        inner = Path(path.lstrip("/"))
        yield from ((version, top / part) for part in (inner, *inner.parents) if ".." not in part.parts)
