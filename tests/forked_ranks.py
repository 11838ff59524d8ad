"""The processes of one run without torchrun: they meet through a file, and each has its output in a file of its own.

They are forked from a process that has imported what they need: importing PyTorch and open_clip takes each 6 s of a
core, torchrun 3 s more, and a port that was free may be another test's by the time it is used.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch.distributed
from filelock import FileLock

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["hypothesis", "open_clip", "pytest", "rmadapter.training.by_method"])


def one_group_at_a_time(folder: Path) -> FileLock:
    """What a test holds while its group runs; ``folder`` is the session's, pytest's workers have theirs in it.

    Two groups beside each other, on two cores and with processes that wait for each other, take longer than in turn.
    """
    return FileLock(folder / "group.lock")


def meet(rank: int, world: int, file: Path) -> None:
    """Join the group of those that name the same ``file``, as ``rmadapter.step.distributed`` finds it."""
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "none", "MASTER_PORT": 0}
    os.environ |= {name: str(value) for name, value in places.items()}
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)


def start(world: int, folder: Path, function: Callable[..., None], *arguments: object) -> list[BaseProcess]:
    """``function(rank, world, folder, *arguments)`` in ``world`` processes; the output of each in ``RANK.log``."""
    folder.mkdir(parents=True, exist_ok=True)
    processes = [
        CONTEXT.Process(target=_written, args=(rank, world, folder, function, arguments)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    return processes


def _written(rank: int, world: int, folder: Path, function: Callable[..., None], arguments: tuple) -> None:
    with (folder / f"{rank}.log").open("w") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    function(rank, world, folder, *arguments)


def run(world: int, folder: Path, function: Callable[..., None], *arguments: object) -> list[str]:
    """The same to its end; what each has written."""
    processes = start(world, folder, function, *arguments)
    try:
        for process in processes:
            process.join(180)
    finally:
        for process in processes:
            process.kill()
    written = [(folder / f"{rank}.log").read_text() for rank in range(world)]
    assert [process.exitcode for process in processes] == [0] * world, "\n".join(written)
    return written
