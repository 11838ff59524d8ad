"""Several processes with PyTorch's DistributedDataParallel: who is who, who does which part, what is exchanged.

    torchrun --nproc-per-node 2 -m rmadapter.train --data FOLDER

The images of a batch and the classes are split over the processes. DistributedDataParallel averages gradients, so a
mean over images, tokens or classes is here the sum over the own ones times the number of processes, divided by the
number of all: the mean of the processes' means is another number where the parts differ in size.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = timedelta(minutes=10)


class PeerLostError(RuntimeError):
    """Another process of the run has ended."""


@dataclass(frozen=True)
class Ranks:
    """This process among all of a run."""

    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the one process that writes."""
        return self.rank == 0

    def part(self, count: int) -> tuple[int, int]:
        """Start and stop of this process's part of ``count`` things; parts differ by one at most."""
        small, more = divmod(count, self.world)
        start = self.rank * small + min(self.rank, more)
        return start, start + small + (self.rank < more)

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of a tensor over all processes; not differentiable."""
        if self.world == 1:
            return tensor
        tensor = tensor.detach().clone()
        dist.all_reduce(tensor)
        return tensor / self.world

    def gather_rows(self, rows: Tensor, count: int) -> Tensor:
        """All ``count`` rows [count, width] of which this process has its ``part``; gradients go back to each."""
        return rows if self.world == 1 else _GatherRows.apply(rows, self, count)

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


def start(device: str) -> tuple[Ranks, str]:
    """This process's place under torchrun, and its device; without torchrun the only one, on ``device``."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        return Ranks(), device
    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if cuda:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo", timeout=TIMEOUT)
    return Ranks(dist.get_rank(), dist.get_world_size()), device


def stop(ranks: Ranks) -> None:
    """Leave the group, if there is one."""
    if ranks.world > 1 and dist.is_initialized():
        dist.destroy_process_group()


def is_lost_peer(error: RuntimeError) -> bool:
    """Whether an exchange failed because another process is gone."""
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed")
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in signs)
