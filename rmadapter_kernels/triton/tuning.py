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
    """What is launched; ``precision`` is ieee, tf32 or tf32x3 for fp32, "" for 16 bits; h is 0 without the branch."""

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


# (capability, kernel, dtype, precision, D, r, h, bucket) -> Config, from sweeps on a device of that capability.
# Empty until one has been run: every entry has to come with its measurement.
TABLE: dict[tuple, Config] = {}


def padded(width: int) -> int:
    """A bottleneck as the matrix units take it: a power of two from 16 on."""
    return max(16, 1 << (width - 1).bit_length())


def _tile_of(d: int, largest: int) -> int:
    """The largest power of two up to ``largest`` that divides D, unless that is so small that masking is cheaper."""
    dividing = d & -d
    return min(largest, dividing) if dividing >= 32 or d < 128 else largest


# What a program's registers hold without spilling, by kernel, kind of product and padded width (report.py): rows,
# columns and warps of the largest tile. Kinds: 16 bits, tf32, and "exact" for ieee and tf32x3, whose products need
# several times the registers. K1 at width 128 keeps nine tiles of it: 64 rows spill at any number of warps.
LARGEST_TILE = {
    "forward": {
        "16": {32: (64, 64, 8), 64: (64, 64, 8), 128: (64, 32, 8)},
        "tf32": {32: (32, 16, 4), 64: (32, 32, 4), 128: (16, 32, 8)},
        "exact": {32: (16, 16, 4), 64: (16, 16, 8), 128: (16, 16, 8)},
    },
    "rows": {
        "16": {32: (64, 32, 4), 64: (32, 32, 4), 128: (16, 32, 8)},
        "tf32": {32: (16, 16, 4), 64: (16, 16, 4), 128: (16, 16, 8)},
        "exact": {32: (16, 16, 4), 64: (16, 16, 8), 128: (16, 16, 8)},
    },
    "weights": {
        "16": {32: (32, 64, 4), 64: (32, 32, 4), 128: (16, 32, 4)},
        "tf32": {32: (16, 32, 4), 64: (16, 32, 4), 128: (16, 16, 4)},
        "exact": {32: (16, 32, 4), 64: (16, 16, 8), 128: (16, 16, 4)},
    },
}
# What sm_86, sm_89 and sm_120 take instead: compiled for them, the tiles above spill 2 to 49 words (report.py).
SMALL_TILE_CAPABILITIES = ((8, 6), (8, 9), (12, 0), (12, 1))
SMALL_TILE = {
    ("rows", "16", 32): (64, 16, 4),
    ("rows", "exact", 32): (16, 16, 8),
    ("weights", "16", 32): (16, 32, 4),
}


def heuristic(problem: Problem, device: Device) -> Config:
    """The largest tile that does not spill, smaller where tokens are few or L2 is; not a measured choice."""
    kind = {"": "16", "tf32": "tf32"}.get(problem.precision, "exact")
    width = max(32, padded(problem.r), padded(problem.h or 1))
    block_m, block_d, num_warps = LARGEST_TILE[problem.kernel][kind][width]
    if device.capability in SMALL_TILE_CAPABILITIES:
        block_m, block_d, num_warps = SMALL_TILE.get((problem.kernel, kind, width), (block_m, block_d, num_warps))
    if problem.kernel != "weights":
        largest = block_m
        # Few tokens: smaller blocks, so that every multiprocessor has one.
        while block_m > 16 and -(-problem.tokens // block_m) < device.multiprocessors:
            block_m //= 2
        # x is read again from L2 only while the rows in flight, two blocks a multiprocessor, fill at most half of it.
        row_bytes = problem.d * problem.dtype.itemsize
        while block_m > 16 and 2 * block_m * device.multiprocessors * row_bytes > device.l2_bytes // 2:
            block_m //= 2
        if block_m < largest == 64:
            num_warps = 4 if width < 128 else 8
            # 32 rows by 32 columns spill some words: K1 on sm_80 and sm_100, the forward of width 128 on sm_100.
            block_d = 16 if problem.kernel == "rows" else 64
    return Config(block_m, _tile_of(problem.d, block_d), num_warps, 2)


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
