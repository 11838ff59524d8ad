"""What a launch and its configuration depend on of a GPU, and the GPUs that are compiled for without one."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch

# Of a multiprocessor: 32-bit registers, threads, and the bytes of shared memory that the driver keeps of each program.
REGISTERS, THREADS, SHARED_RESERVED = 65536, 2048, 1024
TENSOR_COLUMNS = 512
# Registers are given to a warp in pieces of this many.
REGISTER_PIECE = 256
# Of the 64 bytes a clock that a multiprocessor can take from L2, what all of an H100's together got: 5.5 TB/s, from
# the literature.
L2_SHARE = 0.38


@dataclass(frozen=True)
class Device:
    """One GPU.

    Attributes:
        capability: major and minor.
        multiprocessors: their number.
        l2_bytes: of L2.
        shared_bytes: of shared memory, a multiprocessor's; a program can have all but ``SHARED_RESERVED``.
        clock: in Hz, under load.
        hbm_rate: bytes a second of its memory, as its data sheet says.
        name: the driver's, of a GPU that is here; measured configurations are stored under it.
    """

    capability: tuple[int, int]
    multiprocessors: int
    l2_bytes: int
    shared_bytes: int
    clock: float
    hbm_rate: float
    name: str = ""

    @property
    def l2_rate(self) -> float:
        """Bytes a second from L2 into all multiprocessors together."""
        return L2_SHARE * 64 * self.multiprocessors * self.clock

    @property
    def instruction_rate(self) -> float:
        """Instructions a second that warps issue."""
        return 4 * self.multiprocessors * self.clock

    def programs(self, registers: int, shared: int, num_warps: int, tensor_columns: int = 0) -> int:
        """Programs that a multiprocessor holds at a time; 0: not one.

        Args:
            registers: of a thread.
            shared: bytes of shared memory a program.
            tensor_columns: of tensor memory a program.
        """
        a_warp = -(-registers * 32 // REGISTER_PIECE) * REGISTER_PIECE
        limits = [
            REGISTERS // (a_warp * num_warps), self.shared_bytes // (shared + SHARED_RESERVED),
            THREADS // (32 * num_warps), 32,
        ]  # fmt: skip
        return min(limits + ([TENSOR_COLUMNS // tensor_columns] if tensor_columns else []))


# An A100, A10, L4, H100, B200 and an RTX 5090. Shared memory from the CUDA C programming guide, the rest from data
# sheets.
KNOWN_DEVICES = {
    "sm_80": Device((8, 0), 108, 40 << 20, 164 << 10, 1.41e9, 2.04e12),
    "sm_86": Device((8, 6), 72, 6 << 20, 100 << 10, 1.70e9, 0.60e12),
    "sm_89": Device((8, 9), 58, 48 << 20, 100 << 10, 2.04e9, 0.30e12),
    "sm_90": Device((9, 0), 132, 50 << 20, 228 << 10, 1.70e9, 3.35e12),
    "sm_100": Device((10, 0), 148, 126 << 20, 228 << 10, 1.85e9, 8.00e12),
    "sm_120": Device((12, 0), 170, 96 << 20, 100 << 10, 2.41e9, 1.79e12),
}


def nearest(capability: tuple[int, int]) -> Device:
    """The known device of a capability, or the newest that is not newer."""
    older = [device for device in KNOWN_DEVICES.values() if device.capability <= capability]
    return max(older, key=lambda device: device.capability, default=KNOWN_DEVICES["sm_80"])


def current_stream(device: torch.device) -> int:
    """The handle of torch's current stream on ``device``."""
    return torch._C._cuda_getCurrentRawStream(device.index)


@functools.cache
def device_of(index: int | None) -> Device:
    """The CUDA device ``index``; None, under the interpreter: a small one, so that chunks stay few."""
    if index is None:
        return replace(KNOWN_DEVICES["sm_90"], multiprocessors=4)
    properties = torch.cuda.get_device_properties(index)
    known = nearest((properties.major, properties.minor))
    return replace(
        known, capability=(properties.major, properties.minor), multiprocessors=properties.multi_processor_count,
        l2_bytes=properties.L2_cache_size, name=properties.name,
    )  # fmt: skip
