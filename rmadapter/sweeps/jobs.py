"""The processes of ``rmadapter sweep --jobs N``, each a worker with its share of the GPUs and of the threads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from rmadapter.runtime import usable_processors
from rmadapter.sweeps.faults import FAULT_STATUS


def run_jobs(argv: list[str], jobs: int, began: float) -> bool:
    """``jobs`` workers of the sweep that was entered at ``began``; whether one ended for a fault of its device.

    Says how many did not come to their end, and why.
    """
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    children: list[subprocess.Popen] = []
    try:
        for number in range(jobs):
            environment = {"OMP_NUM_THREADS": str(threads_each(jobs)), **os.environ, "PYTHONUNBUFFERED": "1"}
            if gpus:
                environment["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
            children.append(subprocess.Popen(worker_command(argv, began), env=environment))
        for child in children:
            child.wait()
    finally:
        for child in children:
            if child.poll() is None:
                child.terminate()
        for child in children:
            child.wait()
    early = [child.returncode for child in children if child.returncode]
    if early:
        reasons = ", ".join(dict.fromkeys(_reason(code) for code in early))
        print(f"{len(early)} of {jobs} workers ended early ({reasons})")
    return FAULT_STATUS in early


def worker_command(argv: list[str], began: float) -> list[str]:
    """What starts one worker."""
    return [sys.executable, "-m", "rmadapter.sweeps.worker", repr(began), *argv]


def threads_each(jobs: int) -> int:
    """A worker's share of the processors that this process may use."""
    return max(1, usable_processors() // jobs)


def _reason(code: int) -> str:
    if code == FAULT_STATUS:
        return "their device failed"
    if code > 0:
        return f"exit status {code}"
    return f"signal {-code}" + (", often too little memory" if -code == signal.SIGKILL else "")
