"""Result files: JSON with device, versions and commit, the same as CSV, and the table that is printed."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch

from rmadapter import files

COLUMNS = ("tokens", "d", "r", "dtype", "residual", "norm", "direction", "contender", "wall_us", "cold_us", "gb_s",
           "share_of_copy", "peak_bytes", "saved_bytes")  # fmt: skip

ROOT = Path(__file__).resolve().parents[1]
# What rows of one file have to have in common, of their environment.
SAME = ("device", "uuid", "torch", "triton", "code", "table")


def code() -> str:
    """A hash of the operator and of how it is measured: tells what a commit does not, or where there is none."""
    sources = [*(ROOT / "rmadapter_kernels").rglob("*.py"), *(ROOT / "rmadapter_kernels" / "triton").rglob("*.json")]
    digest = hashlib.sha256()
    for path in sorted([*sources, *(ROOT / "bench" / f"{name}.py" for name in ("cases", "measure"))]):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def environment() -> dict[str, Any]:
    """What the numbers were measured with."""
    import triton

    found: dict[str, Any] = {
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "commit": _output("git", "rev-parse", "HEAD"),
        "changed_files": len((_output("git", "status", "--porcelain") or "").splitlines()),
        "code": code(),
        "device": None,
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        fields = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,mig.mode.current"
        found |= {
            "device": properties.name,
            "uuid": str(properties.uuid),
            "table": _table(properties.name),
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "memory_bytes": properties.total_memory,
            "nvidia_smi": dict(
                zip(
                    fields.split(","),
                    (_output("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader") or "").split(", "),
                    strict=False,
                )
            ),
        }
    return found


def processor() -> str:
    """Processor, threads, instruction set of the cpu backend, torch and commit, in one line."""
    from cpuinfo import get_cpu_info  # comes with pytest-benchmark

    from rmadapter_kernels import cpu

    commit = (_output("git", "rev-parse", "--short", "HEAD") or "unknown") + (
        " with changes" if _output("git", "status", "--porcelain", "--untracked-files=no") else ""
    )
    return (
        f"{get_cpu_info()['brand_raw']}, {torch.get_num_threads()} threads, {cpu.instruction_set()}, "
        f"torch {torch.__version__}, commit {commit}"
    )


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _table(device: str) -> str:
    """A hash of the configurations that launches take from tables, the user's too."""
    from rmadapter_kernels.triton.tuning import table_of

    return hashlib.sha256(repr(sorted(table_of(device).items())).encode()).hexdigest()[:16]


def rows_to_keep(path: Path, here: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of ``path``; none where they are of another card or of other code than environment ``here``.

    Such a file, and one that is damaged, gets a name beside it, since ``path`` is written anew.
    """
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        there, rows = state["environment"], state["rows"]
        same = all(name in there and there[name] == here.get(name) for name in SAME)
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError):
        same = False
    if same:
        return rows
    names = (path.with_name(f"{path.stem}-before{number}{path.suffix}") for number in count(1))
    path.replace(next(name for name in names if not name.exists()))
    return []


def write_json(path: Path, values: Any) -> None:
    """Whole or not at all."""
    files.write_text(path, json.dumps(values, indent=1, default=str) + "\n")


def write_csv(path: Path, rows: list[dict[str, Any]], columns: Sequence[str] = COLUMNS) -> None:
    """Rows under ``columns``, empty where a row lacks one."""
    files.write_csv(path, columns, ([row.get(name) for name in columns] for row in rows))


def table(rows: list[dict[str, Any]]) -> str:
    """Speed against the fused kernels by case and direction; times are the GPU's with a cold L2, and wall time."""
    head = f"{'case':42}{'direction':10}{'contender':13}"
    lines = [head + f"{'cold us':>9}{'wall us':>9}{'GB/s':>7}{'of copy':>9}{'fused is':>10}"]
    fused = {(row["case"], row["direction"]): row for row in rows if row["contender"] == "triton"}
    for row in rows:
        own = fused.get((row["case"], row["direction"]))
        ratio = f"{row['cold_us'] / own['cold_us']:.2f}x" if own else ""
        lines.append(
            f"{row['case']:42}{row['direction']:10}{row['contender']:13}{row['cold_us']:9.1f}{row['wall_us']:9.1f}"
            f"{row['gb_s']:7.0f}{row['share_of_copy']:9.0%}{ratio:>10}"
        )
    return "\n".join(lines)
