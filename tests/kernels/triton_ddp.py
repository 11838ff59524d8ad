"""Two ranks that train an adapter of the Triton backend under DistributedDataParallel, in Triton's interpreter.

Run by test_triton.py: TRITON_INTERPRET=1 python tests/kernels/triton_ddp.py FILE

The ranks are forks of one process, which imports for both.
"""

from __future__ import annotations

import copy
import datetime
import multiprocessing
import multiprocessing.connection
import sys

import mended_interpreter  # noqa: F401
import torch
import torch._dynamo  # which DistributedDataParallel imports
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from rmadapter_kernels import FusedRMAdapter

WORLD, D, TOKENS, STEPS = 2, 64, 5, 3
PATIENCE = datetime.timedelta(seconds=300)  # of a rank whose starter was killed, too


def loss_of(adapter: torch.nn.Module, x: torch.Tensor, goal: torch.Tensor, use_loss: bool) -> torch.Tensor:
    """Without ``use_loss`` nothing depends on the reconstruction's weights, for which backward gives zeros."""
    out, rec_loss = adapter(x, x)
    loss = (out - goal).square().mean()
    return loss + rec_loss.mean() / D if use_loss else loss


def train(rank: int, use_loss: bool, bucket_view: bool) -> None:
    """Three steps; after each the weights must be those of one process with all tokens and the reference's gradients.

    No search for unused parameters: DDP would wait for a hook that does not fire, and raise in the next step.
    """
    torch.manual_seed(0)
    single = FusedRMAdapter(D, bottleneck=4, scale=0.5, backend="eager")
    parallel = DistributedDataParallel(
        copy.deepcopy(single), gradient_as_bucket_view=bucket_view, find_unused_parameters=False
    )
    parallel.module.backend = "triton"
    optimizers = [torch.optim.SGD(adapter.parameters(), lr=0.1, momentum=0.9) for adapter in (single, parallel)]
    for _ in range(STEPS):
        x, goal = torch.randn(2, WORLD, TOKENS, D)  # the same on every rank, each takes a part
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss_of(single, x, goal, use_loss).backward()
        loss_of(parallel, x[rank], goal[rank], use_loss).backward()
        for optimizer in optimizers:
            optimizer.step()
        for (name, expected), found in zip(single.named_parameters(), parallel.parameters(), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: name + text)


def run(rank: int, meeting: str) -> None:
    """What one process does."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=WORLD, timeout=PATIENCE
    )
    try:
        for use_loss, bucket_view in ((True, False), (True, True), (False, False)):
            train(rank, use_loss, bucket_view)
    finally:
        distributed.destroy_process_group()
    print(f"rank {rank} done", flush=True)


def main() -> None:
    """The file where both meet comes from the command line; a rank that fails ends the other, which waits for it."""
    ranks = [multiprocessing.get_context("fork").Process(target=run, args=(rank, sys.argv[1])) for rank in range(WORLD)]
    for process in ranks:
        process.start()
    running = list(ranks)
    while running:
        ended = multiprocessing.connection.wait([process.sentinel for process in running])
        for process in [process for process in running if process.sentinel in ended]:
            process.join()
            running.remove(process)
            if process.exitcode:
                for other in running:
                    other.terminate()
    sys.exit(any(process.exitcode for process in ranks))


if __name__ == "__main__":
    main()
