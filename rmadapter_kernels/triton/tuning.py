"""Launch configurations: a frozen table of measured ones, and a heuristic for what it lacks."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

KERNELS = ("forward", "rows", "weights")
# Tokens of 4, 16, 32 and 128 images of 197, and above; a bucket holds up to its number.
BUCKETS = (1024, 4096, 8192, 32768)
LARGEST = 1 << 31


@dataclass(frozen=True)
class Config:
    """One launch configuration: tile of rows by tile of D, warps a program, stages of the load pipeline."""

    block_m: int
    block_d: int
    num_warps: int
    num_stages: int

    def __post_init__(self) -> None:
        for name in ("block_m", "block_d"):
            value = getattr(self, name)
            if value < 16 or value & (value - 1):
                raise ValueError(f"{name} is {value}; valid: a power of two from 16 on")


@dataclass(frozen=True)
class Device:
    """What a choice depends on: compute capability, multiprocessors, bytes of L2."""

    capability: tuple[int, int]
    multiprocessors: int
    l2_bytes: int


# Devices to compile for where none is at hand (report.py): an A100, A10, L4, H100, B200 and an RTX 5090.
KNOWN_DEVICES = {
    "sm_80": Device((8, 0), 108, 40 << 20),
    "sm_86": Device((8, 6), 72, 6 << 20),
    "sm_89": Device((8, 9), 58, 48 << 20),
    "sm_90": Device((9, 0), 132, 50 << 20),
    "sm_100": Device((10, 0), 148, 126 << 20),
    "sm_120": Device((12, 0), 170, 96 << 20),
}
# Shared memory that one program may take, bytes; CUDA C programming guide, table of compute capabilities.
SHARED_LIMIT = {"sm_80": 163 << 10, "sm_86": 99 << 10, "sm_89": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10,
                "sm_120": 99 << 10}  # fmt: skip
TMEM_LIMIT = 512


@functools.cache
def device_of(index: int | None) -> Device:
    """The CUDA device ``index``; None, under the interpreter: a small one, so that chunks stay few."""
    if index is None:
        return Device((9, 0), 4, 50 << 20)
    properties = torch.cuda.get_device_properties(index)
    return Device((properties.major, properties.minor), properties.multi_processor_count, properties.L2_cache_size)


@dataclass(frozen=True)
class Problem:
    """What is launched: ``precision`` is ieee, tf32 or tf32x3 for fp32 and "" for 16 bits; h is 0 without the branch."""

    kernel: str
    dtype: torch.dtype
    precision: str
    d: int
    r: int
    h: int
    tokens: int


def bucket(tokens: int) -> int:
    """The bucket that ``tokens`` fall into, by its upper end."""
    return next((end for end in BUCKETS if tokens <= end), LARGEST)


# (capability, kernel, dtype, precision, D, r, h, bucket) -> Config, from sweeps on that device (bench/gpu_check.py).
# Empty until one has been run: every entry has to come with its measurement.
TABLE: dict[tuple, Config] = {}


def padded(width: int) -> int:
    """A bottleneck as the matrix units take it: a power of two from 16 on."""
    return max(16, 1 << (width - 1).bit_length())


def _tile_of(d: int, largest: int) -> int:
    """The largest power of two up to ``largest`` that divides D, unless that is so small that masking is cheaper."""
    dividing = d & -d
    return min(largest, dividing) if dividing >= 32 or d < 128 else largest


def heuristic(problem: Problem, device: Device) -> Config:
    """A configuration that fits every device and does not spill (tests/kernels compile it); not a measured one."""
    wide = problem.dtype == torch.float32
    width = max(padded(problem.r), padded(problem.h) if problem.h else 0)
    exact = problem.precision in ("ieee", "tf32x3")
    if problem.kernel == "weights":
        return _weights(problem, width, wide, exact)
    block_m = 64 if width <= 32 else 32 if width <= 64 else 16
    if problem.kernel == "rows" and width >= 128:
        block_m = 16
    if wide:
        block_m = min(block_m, 32 if width <= 32 and not exact else 16)
    # Few tokens: smaller blocks, so that every multiprocessor has one.
    while block_m > 16 and -(-problem.tokens // block_m) < 2 * device.multiprocessors:
        block_m //= 2
    # The second read of x hits L2 only while the rows in flight, about four blocks a multiprocessor, fill half of it.
    row_bytes = 2 * problem.d * problem.dtype.itemsize
    while block_m > 16 and 4 * block_m * device.multiprocessors * row_bytes > device.l2_bytes // 2:
        block_m //= 2
    block_d = _tile_of(problem.d, (16 if exact else 32) if wide else 64 if width <= 64 else 32)
    return Config(block_m, block_d, 4, 2)


def _weights(problem: Problem, width: int, wide: bool, exact: bool) -> Config:
    largest = (64 if width <= 32 else 32) if not wide else 32 if width <= 64 else 16
    return Config(32 if not wide else 16, _tile_of(problem.d, largest), 4, 2)


def config_for(problem: Problem, device: Device) -> Config:
    """The table's configuration, or the heuristic's."""
    key = (device.capability, problem.kernel, problem.dtype, problem.precision, problem.d, problem.r, problem.h)
    return TABLE.get((*key, bucket(problem.tokens))) or heuristic(problem, device)


def smaller(config: Config) -> Config | None:
    """What to try where ``config`` does not fit the device; None: nothing is left."""
    if config.num_stages > 1:
        return Config(config.block_m, config.block_d, config.num_warps, config.num_stages - 1)
    if config.block_d > 16:
        return Config(config.block_m, config.block_d // 2, config.num_warps, 1)
    if config.block_m > 16:
        return Config(config.block_m // 2, 16, config.num_warps, 1)
    return None


def candidates(problem: Problem, device: Device) -> Iterator[Config]:
    """What max-autotune measures, the usual choice first."""
    first = config_for(problem, device)
    yield first
    tiles = sorted({_tile_of(problem.d, size) for size in (16, 32, 64, 128)})
    for block_m, block_d, num_warps, num_stages in itertools.product((16, 32, 64, 128), tiles, (4, 8), (1, 2, 3)):
        config = Config(block_m, block_d, num_warps, num_stages)
        # Beyond these, accumulators alone fill the registers.
        if config != first and block_m * max(padded(problem.r), padded(problem.h or 1)) <= 64 * 32 * num_warps:
            yield config


def chunk_count(problem: Problem, config: Config, device: Device) -> int:
    """Chunks of rows of the weights kernel: two programs a multiprocessor, at most 64 parts to add."""
    tiles = -(-problem.d // config.block_d) + 1
    return max(1, min(64, -(-2 * device.multiprocessors // tiles), -(-problem.tokens // config.block_m)))
