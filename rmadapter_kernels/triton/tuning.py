"""One way to a launch configuration: the table of measured ones of this device, and behind it a model of the time.

``bench/tune.py`` writes the tables, a file a device, into ``measured/`` beside this file or into the folder that
``RMADAPTER_CACHE`` names. The model is ``predicted_ns``; it starts from what ``bench/facts.py`` found in the machine
code of every candidate (compiled.json).
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from rmadapter_kernels.triton.buffers import padded
from rmadapter_kernels.triton.devices import Device

KERNELS = ("forward", "rows", "weights")
# Tokens of 4, 16, 32 and 128 images of 197, and above; a bucket holds up to its number.
BUCKETS = (1024, 4096, 8192, 32768)
LARGEST = 1 << 31
STAGES = 3

FACTS_FILE = Path(__file__).with_name("compiled.json")
# Devices whose code has the registers of another's.
FAMILIES = ("sm_80", "sm_90", "sm_100")

Tile = tuple[int, int, int]
# Rows, columns and warps of the tiles that are looked at, by kernel, kind of product and padded width. Kinds: bf16,
# fp16, tf32, and "exact" for ieee and tf32x3, whose products need several times the registers. No 64 rows by eight
# warps at width 32: two groups of warps then share a product of 32 columns, and Triton 3.6 lets the second one read
# behind the end of shared memory where its operand comes last (an H100's memory checker found it in the forward with
# two stages).
CANDIDATES: dict[str, dict[tuple[str, int], tuple[Tile, ...]]] = {
    "forward": {
        ("bf16", 32): ((64, 64, 4), (128, 64, 8), (32, 64, 4), (32, 128, 4), (16, 128, 4)),
        ("bf16", 64): ((64, 64, 4), (64, 64, 8), (32, 64, 4), (16, 128, 4), (16, 64, 4), (32, 128, 4)),
        ("bf16", 128): ((64, 64, 8), (64, 32, 8), (32, 64, 8), (16, 64, 4), (16, 64, 8), (32, 64, 4)),
        ("tf32", 32): ((32, 32, 4), (32, 16, 4), (16, 32, 4), (32, 64, 4)),
        ("tf32", 64): ((32, 32, 4), (16, 32, 4), (16, 16, 4)),
        ("tf32", 128): ((16, 32, 8), (16, 16, 8)),
        ("exact", 32): ((16, 32, 4), (16, 16, 4), (32, 32, 4), (32, 64, 8), (64, 32, 8)),
        ("exact", 64): ((16, 16, 8), (32, 32, 8)),
        ("exact", 128): ((16, 16, 8),),
    },
    "rows": {
        ("bf16", 32): ((64, 64, 4), (16, 128, 4), (16, 64, 4)),
        ("bf16", 64): ((16, 64, 4), (32, 64, 4), (32, 32, 4), (16, 32, 4), (64, 64, 8), (32, 64, 8), (64, 64, 4)),
        ("bf16", 128): ((32, 64, 8), (16, 64, 8), (16, 64, 4), (16, 128, 8), (64, 64, 8)),
        ("tf32", 32): ((16, 32, 4), (16, 16, 4), (32, 32, 4), (16, 64, 4)),
        ("tf32", 64): ((16, 32, 4), (16, 16, 4)),
        ("tf32", 128): ((16, 32, 8), (16, 16, 8)),
        ("exact", 32): ((16, 16, 4), (16, 16, 8), (16, 32, 4), (32, 32, 4)),
        ("exact", 64): ((16, 16, 8),),
        ("exact", 128): ((16, 16, 8),),
    },
    "weights": {
        ("bf16", 32): ((32, 64, 4), (32, 128, 8), (64, 64, 4), (32, 64, 8), (16, 64, 4)),
        ("bf16", 64): ((32, 64, 4), (32, 64, 8), (16, 64, 4), (32, 32, 4), (16, 32, 4), (64, 64, 8), (64, 64, 4)),
        ("bf16", 128): ((32, 64, 8), (16, 64, 8), (16, 32, 4), (64, 64, 8)),
        ("fp16", 32): ((32, 64, 4), (16, 64, 4), (32, 32, 4), (16, 32, 4)),
        ("fp16", 64): ((32, 64, 8), (16, 64, 4), (16, 32, 4)),
        ("fp16", 128): ((16, 64, 8), (16, 32, 8), (16, 32, 4)),
        ("tf32", 32): ((32, 32, 4), (16, 32, 4)),
        ("tf32", 64): ((16, 32, 4), (16, 32, 8)),
        ("tf32", 128): ((16, 16, 4), (16, 32, 8)),
        ("exact", 32): ((16, 32, 4), (16, 16, 8), (32, 32, 4), (32, 64, 8), (16, 64, 4)),
        ("exact", 64): ((16, 16, 8), (32, 32, 8)),
        ("exact", 128): ((16, 16, 4),),
    },
}


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

    def __str__(self) -> str:
        return f"{self.block_m}x{self.block_d} warps={self.num_warps} stages={self.num_stages}"


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

    @property
    def width(self) -> int:
        """The padded width of the wider bottleneck, from 32 on."""
        return max(32, padded(self.r), padded(self.h or 1))

    @property
    def kind(self) -> str:
        """The kind of product, of those that ``CANDIDATES`` tells apart."""
        if self.precision:
            return "tf32" if self.precision == "tf32" else "exact"
        return "fp16" if self.dtype == torch.float16 and self.kernel == "weights" else "bf16"


class Fact(NamedTuple):
    """What a candidate's machine code takes: registers and bytes of stack of a thread, instructions a token of width
    768, bytes of shared memory of a program."""

    registers: int
    stack: int
    instructions: int
    shared: int


def fact_key(kernel: str, kind: str, width: int, family: str, tile: Tile) -> str:
    """Of compiled.json."""
    return f"{kernel} {kind} {width} {family} {tile[0]}x{tile[1]} {tile[2]} warps"


@functools.cache
def _facts() -> dict[str, Fact]:
    return {key: Fact(*values) for key, values in json.loads(FACTS_FILE.read_text(encoding="utf-8")).items()}


def bucket(tokens: int) -> int:
    """The bucket that ``tokens`` fall into, by its upper end."""
    return next((end for end in BUCKETS if tokens <= end), LARGEST)


# Seconds that a copy from memory takes to arrive, with the queues of a busy device; and those of a launch in a graph.
LATENCY, LAUNCH = 0.8e-6, 1.5e-6
# Of the instructions a scheduler could issue, what its warps get to with one, two, three, four or more of them: an
# instruction's result is there after some four cycles, and two in a row seldom depend on each other. On an H100 other
# values choose no better: the model's choices take 3.5% longer than the fastest of those measured, in the mean over 60
# problems (bench/results/gpu_h100). A stack is no reason against a tile there: K1 with r = h = 64 is fastest with one.
ISSUE = (0.45, 0.6, 0.75, 0.8)
# What of L2 keeps the rows of x until their second reading: on an H100 at 65,536 tokens, with 39 MB of them in the
# forward's programs at work, 0.64 of a row came from memory once more (bench/results/gpu_h100).
L2_REUSE = 0.28


def predicted_ns(problem: Problem, config: Config, fact: Fact, device: Device) -> float:
    """The model: nanoseconds a token that a kernel takes on a device, the largest of what bounds it.

    - *Slots*: programs that a multiprocessor holds, by registers, shared memory and warps; multiprocessors that have
      none are idle, and the last wave of programs is not full.
    - *HBM*: each row once, at most what the bytes in flight allow (Little's law): the stages ahead of each program
      divided by the latency.
    - *L2*: rows as often as the kernel reads them, and the weights once a program. What the programs at work have of
      rows that are read twice, beyond ``L2_REUSE`` of L2, comes from HBM again.
    - *Issue*: instructions of the machine code, at the rate that the warps of a scheduler get to.
    """
    size = problem.dtype.itemsize
    row = problem.d * size
    rows_read, streams, hbm_rows = {"forward": (3, 2, 3), "rows": (4, 2, 3), "weights": (2, 2, 2)}[problem.kernel]
    slots = max(1, device.programs(fact.registers, fact.shared, config.num_warps))
    if problem.kernel == "weights":
        blocks = max(1, _chunks(problem, config, device, problem.tokens) * weights_tiles(problem, config))
    else:
        blocks = max(1, -(-problem.tokens // config.block_m))
    held = min(slots, -(-blocks // device.multiprocessors))
    share = min(1.0, blocks / device.multiprocessors)
    waves = -(-blocks // (slots * device.multiprocessors))
    filled = blocks / (waves * slots * device.multiprocessors) if waves > 1 else 1.0
    flight = held * (config.num_stages - 1) * config.block_m * config.block_d * size * streams / 2
    hbm_rate = min(device.hbm_rate, share * device.multiprocessors * flight / LATENCY)
    weights = 0.0
    if problem.kernel != "weights":
        weight_size = size if worth_preparing(problem.tokens) else 4
        weights = (2 * problem.r + (problem.h or 0)) * problem.d * weight_size / config.block_m
        weights *= 4 / 3 if problem.kernel == "rows" else 1
    warps = min(3, held * config.num_warps // 4 - 1)
    issue = ISSUE[max(0, warps)] * device.instruction_rate * share
    again = 0.0
    if problem.kernel != "weights":
        own = min(blocks, held * device.multiprocessors) * config.block_m * row
        again = row * max(0.0, 1 - L2_REUSE * device.l2_bytes / own)
    bounds = (
        (hbm_rows * row + again) / hbm_rate,
        (rows_read * row + weights) / (device.l2_rate * share),
        fact.instructions * problem.d / 768 / issue,
    )
    return 1e9 * max(bounds) / filled


def _tile_of(d: int, largest: int) -> int:
    """The largest power of two up to ``largest`` that divides D, unless that is so small that masking is cheaper."""
    dividing = d & -d
    return min(largest, dividing) if dividing >= 32 or d < 128 else largest


def family_of(device: Device) -> str:
    """Of ``FAMILIES``: wgmma and tcgen05 have their own, all others the code of sm_80."""
    return {(9, 0): "sm_90", (10, 0): "sm_100", (10, 3): "sm_100"}.get(device.capability, "sm_80")


def candidates(problem: Problem, device: Device) -> list[tuple[Config, Fact]]:
    """Those of the problem's kind that fit the device, with what their code takes."""
    family = family_of(device)
    found = []
    for tile in CANDIDATES[problem.kernel][problem.kind, problem.width]:
        fact = _facts().get(fact_key(problem.kernel, problem.kind, problem.width, family, tile))
        if fact is not None and device.programs(fact.registers, fact.shared, tile[2]):
            found.append((Config(tile[0], _tile_of(problem.d, tile[1]), tile[2], STAGES), fact))
    if not found:  # more shared memory than it has: launches make it smaller
        block_m, block_d, num_warps = CANDIDATES[problem.kernel][problem.kind, problem.width][-1]
        found.append((Config(block_m, _tile_of(problem.d, block_d), num_warps, 2), Fact(255, 0, 0, 0)))
    return found


# Bytes of stack that no loop uses: a few values that are put away before a loop and come back behind it.
STACK = 16
# Where tiles with a stack have been measured, and the model's times hold for them too (ISSUE). Elsewhere nobody has
# seen what one costs, and it is avoided at up to so many times the least time: at 1.82 of it K1 with r = h = 32 has a
# tile without on sm_80.
MEASURED_FAMILIES = ("sm_90",)
STACK_AVOIDED = 1.85


@functools.lru_cache(maxsize=1024)  # as many as there are plans: the number of tokens may vary without end
def model(problem: Problem, device: Device) -> Config:
    """The candidate with the least time by ``predicted_ns``; of an architecture that has not been measured, the one
    with the least stack (from ``STACK`` on) of those that take at most ``STACK_AVOIDED`` times as long."""
    ranked = [(predicted_ns(problem, *pair, device), pair[1].stack, pair[0]) for pair in candidates(problem, device)]
    if family_of(device) not in MEASURED_FAMILIES:
        least = min(time for time, *_ in ranked)
        near = [row for row in ranked if row[0] <= STACK_AVOIDED * least]
        stack = min(max(STACK, row[1]) for row in near)
        ranked = [row for row in near if row[1] <= stack]
    return min(ranked, key=lambda row: row[0])[2]


# A Problem's key in a table, and the folders with tables, the user's first.
def table_key(problem: Problem) -> str:
    """Of a device's table."""
    kind = problem.precision or problem.kind
    return f"{problem.kernel} {kind} D={problem.d} r={problem.r} h={problem.h} M<={bucket(problem.tokens)}"


def cache_folder() -> Path:
    """Where a user's own tables are: ``RMADAPTER_CACHE`` or ~/.cache/rmadapter."""
    return Path(os.environ.get("RMADAPTER_CACHE") or Path.home() / ".cache" / "rmadapter")


def table_name(device_name: str) -> str:
    """The file of a device's table."""
    return "".join(c if c.isalnum() else "-" for c in device_name) + ".json"


@functools.cache
def table_of(device_name: str) -> dict[str, Config]:
    """Measured configurations of a device, by ``table_key``; those of the user before those of the package."""
    found: dict[str, Config] = {}
    for folder in (Path(__file__).with_name("measured"), cache_folder()):
        try:
            entries = json.loads((folder / table_name(device_name)).read_text(encoding="utf-8"))["entries"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        found |= {key: Config(*values) for key, values in entries.items()}
    return found


# Kernel -> configuration in place of any other, while it is measured.
_forced: dict[str, Config] = {}


@contextmanager
def forced(kernel: str, config: Config) -> Iterator[None]:
    """Plans that are made until it ends take ``config`` for ``kernel``, and fail where it does not fit."""
    before = _forced.get(kernel)
    _forced[kernel] = config
    try:
        yield
    finally:
        del _forced[kernel]
        if before is not None:
            _forced[kernel] = before


def is_forced(kernel: str) -> bool:
    """Whether ``forced`` is in force for a kernel."""
    return kernel in _forced


def config_for(problem: Problem, device: Device, norm: bool = False) -> Config:
    """The table's configuration, or the model's. It depends on nothing else: not on the first call's moment.

    The table was measured without a norm. The forward with one is faster as the model has it: on an H100 142 us at
    65,536 tokens, 194 in the table's configuration (bench/results/gpu_h100/counters.csv); the backward kernels are not.
    """
    if problem.kernel in _forced:
        return _forced[problem.kernel]
    tabled = device.name and not (norm and problem.kernel == "forward")
    measured = table_of(device.name).get(table_key(problem)) if tabled else None
    return measured or model(problem, device)


def smaller(config: Config) -> Config | None:
    """What to try where ``config`` does not fit the device; None: nothing is left."""
    if config.num_stages > 1:
        return replace(config, num_stages=config.num_stages - 1)
    if config.block_d > 16:
        return replace(config, block_d=config.block_d // 2)
    if config.block_m > 16:
        return replace(config, block_m=config.block_m // 2)
    return None


# Preparing the weights is one more launch. It spares each token, forward and backward, half the weights' bytes from L2
# (2.3 + 3.1 KB at 64 rows a program) and a third of the instructions: some 0.75 ns on an H100, where it pays from
# LAUNCH / 0.75 ns = 2,000 tokens on. Other devices have fewer tokens a nanosecond and the same launch.
GAIN_NS = 0.75


def worth_preparing(tokens: int) -> bool:
    """Whether the weights are prepared for calls with so many tokens."""
    return tokens * GAIN_NS * 1e-9 >= LAUNCH


def weights_tiles(problem: Problem, config: Config) -> int:
    """Programs of the weights kernel for one chunk of rows."""
    return -(-problem.d // config.block_d) + 1


# Rows of x and d_out that lie in L2 at the same time, as a share of it: the rest is for what is written, and L2 keeps
# lines by their addresses and not by their age.
L2_ROWS = 0.6
# Tiles of rows that a chunk has at least: with few tokens it is the length of its loop that counts, not the bytes of
# its parts, which stay in L2.
LEAST_TILES = 2


def slots(problem: Problem, config: Config, device: Device) -> int:
    """Programs of a configuration that a multiprocessor holds; 2 where nothing is known of its tile."""
    for known, fact in candidates(problem, device):
        if replace(known, num_stages=config.num_stages) == config:
            shared = fact.shared * max(1, config.num_stages) // STAGES
            return max(1, device.programs(fact.registers, shared, config.num_warps))
    return 2


def _chunks(problem: Problem, config: Config, device: Device, rows: int) -> int:
    held = slots(problem, config, device)
    # One full wave: the largest number of chunks whose programs all run at once.
    most = max(1, held * device.multiprocessors // weights_tiles(problem, config))
    return max(1, min(most, rows // (LEAST_TILES * config.block_m)))


def chunks_of(problem: Problem, config: Config, device: Device, rows: int) -> int:
    """Rows of a chunk of the weights kernel: a multiple of its tile, in as many chunks as fill one wave of programs, or
    in fewer where the rows are few."""
    chunks = _chunks(problem, config, device, rows)
    return max(1, -(-rows // (chunks * config.block_m))) * config.block_m


def slice_rows(problem: Problem, config: Config, device: Device) -> int:
    """Rows that the backward kernels take before the next ones, so that K2 finds x and d_out in L2 behind K1.

    Whole waves of K1 in ``config``, as many as L2 holds the rows of; all rows where it does not hold one wave's, or
    where the rest would be less than half a slice.

    Args:
        problem: of the rows kernel.
    """
    rows_problem = Problem("rows", *astuple(problem)[1:])
    wave = config.block_m * slots(rows_problem, config, device) * device.multiprocessors
    most = int(L2_ROWS * device.l2_bytes / (2 * problem.d * problem.dtype.itemsize))
    rows = most // wave * wave
    if rows == 0 or problem.tokens < 1.5 * rows:
        return max(1, problem.tokens)
    return rows
