"""``--cuda-graphs``: a whole training step, update included, recorded once for each layout of its inputs and replayed.

At the sizes of few-shot adaptation a step is some thousand small kernels, and the time to launch them, not the GPU, is
what is waited for; a recording is launched as one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch

from rmadapter.errors import InputError
from rmadapter.step.device_step import DeviceStep, StepInputs

# Steps that run as they are before one of the same layout is recorded: kernels are compiled, libraries choose theirs.
# They train like any other. Three as in PyTorch's own recipe.
WARM_UP = 3


class CudaRecorder:
    """PyTorch's recipe for recording whole steps: side stream for what comes before, one pool of memory for all.

    One recording may use the memory of another, since they are replayed one after the other and nothing of one is read
    after the next has begun.
    """

    def __init__(self, device: torch.device):
        self.device, self.stream = device, torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def run(self, call: Callable[[], None]) -> None:
        """Run ``call`` unrecorded, on the side stream."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            call()
        current.wait_stream(self.stream)

    def record(self, call: Callable[[], None]) -> Callable[[], None]:
        """What replays ``call``, which is recorded now and not run."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        # thread_local: the loader's thread goes on pinning memory meanwhile, which a global capture does not allow.
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                call()
        except RuntimeError:
            torch.cuda.set_stream(current)  # where PyTorch leaves the side stream current
            raise
        return graph.replay


class GraphedStep:
    """``DeviceStep`` from recordings: one for each layout of inputs, the short last batch of an epoch included.

    Args:
        needed: a step that cannot be recorded is an error; else it is said, and every step runs as it is.
    """

    def __init__(self, step: DeviceStep, recorder: CudaRecorder, needed: bool = True):
        self.step, self.recorder, self.needed = step, recorder, needed
        self._recordable = True
        self._seen: Counter[tuple] = Counter()
        self._recorded: dict[tuple, tuple[StepInputs, Callable[[], None]]] = {}

    @property
    def recordings(self) -> int:
        """How many there are."""
        return len(self._recorded)

    def __call__(self, inputs: StepInputs, norms: bool = False) -> None:
        """``DeviceStep`` of the same arguments.

        Raises:
            InputError: the step cannot be recorded and is ``needed``; the message says what CUDA says.
        """
        key = (inputs.layout, norms)
        if self._recordable and key not in self._recorded:
            self._seen[key] += 1
            if self._seen[key] <= WARM_UP:
                self.recorder.run(lambda: self.step(inputs, norms))
                return
            self._recordable = self._record(key, inputs, norms)
        if not self._recordable:
            self.step(inputs, norms)
            return
        own, replay = self._recorded[key]
        own.copy_(inputs)
        replay()

    def _record(self, key: tuple, inputs: StepInputs, norms: bool) -> bool:
        """Whether it could be recorded."""
        own = inputs.clone()
        try:
            replay = self.recorder.record(lambda: self.step(own, norms))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if self.needed:
                raise InputError(
                    f"cuda_graphs is True, but the step cannot be recorded: {error}; valid: --no-cuda-graphs"
                ) from error
            print(f"the step cannot be recorded as a CUDA graph and runs as it is: {str(error).splitlines()[0]}")
            return False
        self._recorded[key] = own, replay
        return True


def check_graphs(device: torch.device, processes: int) -> None:
    """Raise InputError where steps cannot be recorded: off CUDA, and in several processes."""
    if device.type != "cuda":
        raise InputError(f"cuda_graphs is True, which needs a CUDA device, and device is {device}; valid: without it")
    if processes > 1:
        raise InputError(
            f"cuda_graphs is True with {processes} processes, whose exchange of gradients is not recorded; "
            "valid: without it, or one process"
        )
