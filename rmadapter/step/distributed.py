"""Several processes with PyTorch's DistributedDataParallel: who is who, who does which part, what is exchanged.

    torchrun --nproc-per-node 2 -m rmadapter.train --data FOLDER

The images of a batch and the classes are split over the processes. DistributedDataParallel averages gradients, so a
mean over images, tokens or classes is here the sum over the own ones times the number of processes, divided by the
number of all: the mean of the processes' means is another number where the parts differ in size.
"""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rmadapter.config import LossConfig, RMAdapterConfig
from rmadapter.errors import InputError, StoppedError
from rmadapter.runtime import resolve_device

TIMEOUT = timedelta(minutes=10)
BUFFERS = ("forward_sync_buffers", "broadcast_buffers")


class PeerLostError(StoppedError):
    """Another process of the run has ended."""


@dataclass(frozen=True)
class Ranks:
    """This process among all of a run; ``device`` is where it computes, and exchanges with the others."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def main(self) -> bool:
        """Whether this is the one process that writes."""
        return self.rank == 0

    def part(self, count: int) -> tuple[int, int]:
        """Start and stop of this process's part of ``count`` things; parts differ by one at most."""
        small, more = divmod(count, self.world)
        start = self.rank * small + min(self.rank, more)
        return start, start + small + (self.rank < more)

    def most(self, count: int) -> int:
        """How many of ``count`` things the largest part has."""
        return -(-count // self.world)

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of a tensor over all processes, on ``device``; not differentiable."""
        if self.world == 1:
            return tensor
        tensor = tensor.detach().to(self.device, copy=True)
        dist.all_reduce(tensor)
        return tensor / self.world

    def gather_rows(self, rows: Tensor, count: int) -> Tensor:
        """All ``count`` rows [count, width] of which this process has its ``part``; gradients go back to each.

        Several processes exchange both in fp32: gradients are sums over them, and 16 bits would round each summand.
        """
        return rows if self.world == 1 else _GatherRows.apply(rows.float(), self, count)

    def barrier(self) -> None:
        """Wait for all."""
        if self.world > 1:
            dist.barrier()


class _GatherRows(torch.autograd.Function):
    """Rows of unequal parts, padded to the longest for the exchange; the gradient is the sum over all processes."""

    @staticmethod
    def forward(ctx, rows: Tensor, ranks: Ranks, count: int) -> Tensor:
        ctx.ranks, ctx.count = ranks, count
        parts = [Ranks(rank, ranks.world).part(count) for rank in range(ranks.world)]
        longest = max(stop - start for start, stop in parts)
        padded = rows.new_zeros(longest, rows.shape[1])
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in parts]
        dist.all_gather(gathered, padded)
        return torch.cat([found[: stop - start] for found, (start, stop) in zip(gathered, parts, strict=True)])

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        start, stop = ctx.ranks.part(ctx.count)
        return gradient[start:stop], None, None


def place() -> tuple[int, int]:
    """The number of this process under torchrun, and how many there are; (0, 1) without it."""
    # Launchers of other kinds set some of these without there being a group to join.
    if not all(key in os.environ for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")):
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def start(name: str) -> Ranks:
    """This process's place under torchrun, each on a GPU of its own; without torchrun the only one, on device ``name``.

    Raises:
        InputError: the device is not there, or there are more processes on this machine than GPUs.
    """
    if place()[1] == 1:
        return Ranks(device=resolve_device(name))
    if name.startswith("cuda") or (name == "auto" and torch.cuda.is_available()):
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if 0 < gpus <= local:
            raise InputError(
                f"device is {name!r} and this is process {local + 1} on this machine, which has {gpus} GPUs; valid: "
                f"--nproc-per-node {gpus} at most, or --device cpu"
            )
        device = resolve_device(f"cuda:{local}")
    else:
        device = resolve_device(name)
    if not dist.is_initialized():
        on_gpu = device.type == "cuda"
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=TIMEOUT, device_id=device if on_gpu else None)
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def stop(ranks: Ranks) -> None:
    """Leave the group, if there is one; every process calls this, or those that are left in it wait for each other."""
    if ranks.world > 1 and dist.is_initialized():
        dist.destroy_process_group()


def parallel(step: nn.Module, config: RMAdapterConfig, loss: LossConfig) -> DistributedDataParallel:
    """``step`` with the gradients averaged over all processes."""
    # A reconstruction branch whose weight in the loss is 0 gets no gradient.
    unused = config.reconstruct and not (loss.lambda1 and loss.lambda2)
    # Masks and the like are the same in every process and never change. PyTorch 2.14 renamed what leaves them alone.
    taken = inspect.signature(DistributedDataParallel).parameters
    buffers: dict[str, Any] = {next(name for name in BUFFERS if name in taken): False}
    return DistributedDataParallel(step, find_unused_parameters=unused, **buffers)


def is_lost_peer(error: RuntimeError) -> bool:
    """Whether an exchange failed because another process is gone."""
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed")
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in signs)
