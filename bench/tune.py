"""Measure launch configurations on a CUDA device and write the table that this device's calls are launched by.

python -m bench.tune --out results [--minutes 60] [--dtype bf16,tf32,ieee] [--d 768] [--r 32] [--kernel forward]
python -m bench.tune --out results --print        # the table of what has been measured, no device needed

Each configuration is checked against the definition before it is timed, with weights that were prepared and with
others: the operator's GPU time from a CUDA graph over inputs that L2 does not hold, at one number of tokens for each
bucket of the table. tune.json holds every row (tune.csv the same); a run with the same --out goes on from it. The most
telling problems come first, and of each the candidates in the order of the model's times.

The table, DEVICE.json, is taken from rmadapter_kernels/triton/measured/ (for everybody) or from RMADAPTER_CACHE,
~/.cache/rmadapter (for yourself): put it there.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from bench import results
from bench.tune_device import KINDS, TOKENS, DeviceLostError, Group, OnCuda, OutOfTimeError
from rmadapter_kernels.triton import devices, tuning
from rmadapter_kernels.triton.devices import Device
from rmadapter_kernels.triton.tuning import (
    KERNELS,
    LARGEST,
    Config,
    candidates,
    model,
    predicted_ns,
    table_key,
    table_name,
)

WIDTHS, BOTTLENECKS = (768, 512, 1024), (32, 16, 64, 128)
COLUMNS = ("kernel", "kind", "d", "r", "bucket", "tokens", "block_m", "block_d", "num_warps", "num_stages",
           "microseconds", "outcome")  # fmt: skip
MEASURED = "measured"


def groups(
    kinds: Iterable[str], widths: Iterable[int], bottlenecks: Iterable[int], kernels: Iterable[str]
) -> list[Group]:
    """Every combination, in the order in which they are worth measuring: the first of each option first."""
    # (768, 32), then those that differ from it in one size, then the others.
    d, r = next(iter(widths)), next(iter(bottlenecks))
    sizes = sorted(itertools.product(widths, bottlenecks), key=lambda size: (size[0] != d) + (size[1] != r))
    kernels = list(kernels)
    return [Group(kernel, kind, d, r) for kind in kinds for d, r in sizes for kernel in kernels]


def source_hash() -> str:
    """Of the kernels: others need other measurements."""
    digest = hashlib.sha256()
    for name in ("primitives", "prepare", "forward", "backward_rows", "backward_weights"):
        digest.update(Path(tuning.__file__).with_name(f"{name}.py").read_bytes())
    return digest.hexdigest()[:16]


def configurations(group: Group, device: Device, most: int) -> list[Config]:
    """At most ``most``: the model's choice for every bucket, then the other candidates with 3, 4 and 5 stages, those
    first that the model takes for the fastest with many tokens."""
    usual = list(dict.fromkeys(model(group.problem(tokens), device) for tokens in reversed(TOKENS.values())))
    problem = group.problem(TOKENS[LARGEST])
    pairs = sorted(candidates(problem, device), key=lambda pair: predicted_ns(problem, *pair, device))
    others = [replace(config, num_stages=stages) for stages in (3, 4, 5) for config, _ in pairs]
    return list(dict.fromkeys([*usual, *others]))[: max(most, len(usual))]


class Bench(Protocol):
    """Who measures."""

    def expect(self, wanted: list[tuple[Group, Config]]) -> None:
        """What is measured from now on, in this order."""

    def prepare(self, group: Group) -> None:
        """Configurations of ``group`` are measured next."""

    def measure(self, group: Group, config: Config) -> dict[int, float]:
        """Seconds by bucket; raises where the configuration fails or gives other results than the definition.

        Raises:
            OutOfTimeError: there was no time to find out.
            DeviceLostError: nothing more can be measured in this process.
        """


def rows_of(group: Group, config: Config, seconds: dict[int, float], outcome: str) -> list[dict[str, Any]]:
    """One a bucket; without a time where there is none."""
    return [
        asdict(group) | {"bucket": bucket, "tokens": tokens} | asdict(config)
        | {"microseconds": 1e6 * seconds[bucket] if bucket in seconds else None, "outcome": outcome}
        for bucket, tokens in TOKENS.items()
    ]  # fmt: skip


def config_of(row: dict[str, Any]) -> Config:
    """The configuration of a row."""
    return Config(row["block_m"], row["block_d"], row["num_warps"], row["num_stages"])


def group_of(row: dict[str, Any]) -> Group:
    """The group of a row."""
    return Group(row["kernel"], row["kind"], row["d"], row["r"])


def sweep(chosen: list[Group], device: Device, bench: Bench, rows: list[dict[str, Any]], *, most: int,
          time_left: Callable[[], float], save: Callable[[], None], say: Callable[[str], None]) -> bool:  # fmt: skip
    """Measure what ``rows`` lacks, add to them and ``save`` after each configuration; False: out of time.

    Raises:
        DeviceLostError: after its row has been saved, so that the next run goes on behind it.
    """
    done = {(group_of(row), config_of(row)) for row in rows}
    lacking = {
        group: [config for config in configurations(group, device, most) if (group, config) not in done]
        for group in chosen
    }
    bench.expect([(group, config) for group, missing in lacking.items() for config in missing])
    for number, (group, missing) in enumerate(lacking.items(), 1):
        if missing and time_left() > 0:
            bench.prepare(group)
        for place, config in enumerate(missing, 1):
            seconds, outcome, lost = {}, MEASURED, None
            try:
                if time_left() <= 0:
                    raise OutOfTimeError
                seconds = bench.measure(group, config)
            except OutOfTimeError:
                say(f"out of time at {group}, {place - 1} of {len(missing)} configurations; run again to go on")
                return False
            except Exception as error:  # what fails is a finding, and no entry
                outcome = f"{type(error).__name__}: {error}"[:300]
                lost = error if isinstance(error, DeviceLostError) else None
            rows.extend(rows_of(group, config, seconds, outcome))
            save()
            if lost is not None:
                raise lost
            found = " ".join(f"{1e6 * value:.1f}" for value in seconds.values()) + " us" if seconds else outcome[:60]
            left = "" if math.isinf(time_left()) else f" ({time_left() / 60:.1f} min left)"
            say(f"{number}/{len(chosen)} {group} {place}/{len(missing)} {config}: {found}{left}")
    return True


@dataclass(frozen=True)
class Entry:
    """The fastest configuration of a group and bucket, with microseconds of the operator, and the model's."""

    group: Group
    bucket: int
    config: Config
    microseconds: float
    usual_microseconds: float | None


def entries(rows: list[dict[str, Any]], device: Device, least_gain: float) -> list[Entry]:
    """Where a measured configuration is faster than the model's choice by at least ``least_gain``."""
    times: dict[tuple[Group, int], dict[Config, float]] = {}
    for row in rows:
        if row["outcome"] == MEASURED:
            times.setdefault((group_of(row), row["bucket"]), {})[config_of(row)] = row["microseconds"]
    found = []
    for (group, bucket), own in times.items():
        best = min(own, key=own.get)
        usual = own.get(model(group.problem(TOKENS[bucket]), device))
        if usual is None or own[best] <= (1 - least_gain) * usual:
            found.append(Entry(group, bucket, best, own[best], usual))
    return found


def table_of(found: list[Entry], measured_with: dict[str, Any]) -> dict[str, Any]:
    """The table's file: ``found`` as rmadapter_kernels/triton/tuning.py reads it, and what it was measured with."""
    keys = [table_key(entry.group.problem(entry.bucket)) for entry in found]
    return {
        "measured_with": measured_with,
        "entries": {key: list(astuple(entry.config)) for key, entry in zip(keys, found, strict=True)},
        # Microseconds of the operator, and of the model's choice; None: that fails.
        "microseconds": {
            key: [entry.microseconds, entry.usual_microseconds] for key, entry in zip(keys, found, strict=True)
        },
    }


def load(path: Path, expected: dict[str, Any] | None) -> dict[str, Any]:
    """What was measured before; SystemExit where it was with another device, Triton or kernels than ``expected``."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if expected is None:
            raise SystemExit(f"{path} is missing; run without --print on a CUDA device first") from None
        return {"measured_with": expected, "rows": []}
    except ValueError as error:
        raise SystemExit(f"{path} cannot be read: {error}") from error
    for name, value in (expected or {}).items():
        if state["measured_with"][name] != value:
            found = state["measured_with"][name]
            raise SystemExit(f"{path} was measured with {name} {found!r}, here it is {value!r}; choose another --out")
    return state


def _listed(text: str, valid: Iterable[Any], name: str, number: bool = False) -> list[Any]:
    found = []
    for part in text.split(","):
        value = int(part) if number and part.isdigit() else part
        if value not in valid:
            raise SystemExit(f"{name} is {part!r}; valid: {', '.join(map(str, valid))}")
        found.append(value)
    return found


def main(arguments: list[str] | None = None) -> int:
    """The command; 2: no CUDA device is here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of tune.json, tune.csv and the table")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this time (default: when done)")
    parser.add_argument("--dtype", default="bf16,tf32,ieee", help=f"any of {','.join(KINDS)} (%(default)s)")
    parser.add_argument("--d", default=",".join(map(str, WIDTHS)), help="any of %(default)s")
    parser.add_argument("--r", default=",".join(map(str, BOTTLENECKS)), help="r = h, any of %(default)s")
    parser.add_argument("--kernel", default=",".join(KERNELS), help="any of %(default)s")
    parser.add_argument("--most", type=int, default=24, help="configurations of a problem (%(default)s)")
    parser.add_argument("--least-gain", type=float, default=0.02, help="over the model's time (%(default)s)")
    parser.add_argument("--jobs", type=int, default=min(8, os.cpu_count() or 1), help="compilers (%(default)s)")
    parser.add_argument("--print", action="store_true", help="print the table of what has been measured")
    given = parser.parse_args(arguments)
    for name in ("minutes", "most", "jobs"):
        if getattr(given, name) <= 0:
            parser.error(f"--{name} is {getattr(given, name)}; valid: more than 0")
    if not 0 <= given.least_gain < 1:
        parser.error(f"--least-gain is {given.least_gain}; valid: from 0 to below 1")
    chosen = groups(
        _listed(given.dtype, KINDS, "--dtype"),
        _listed(given.d, WIDTHS, "--d", number=True),
        _listed(given.r, BOTTLENECKS, "--r", number=True),
        _listed(given.kernel, KERNELS, "--kernel"),
    )
    path = given.out / "tune.json"
    if given.print:
        state = load(path, None)
        print(json.dumps(_table(state, given.least_gain), indent=1))
        return 0
    if not torch.cuda.is_available():
        print(f"no CUDA device is here (torch {torch.__version__}): nothing was measured")
        return 2
    import triton

    device = devices.device_of(torch.cuda.current_device())
    measured_with = {"device": torch.cuda.get_device_name(), "triton": triton.__version__, "kernels": source_hash(),
                     "sizes": asdict(device) | {"capability": list(device.capability)}}  # fmt: skip
    state = load(path, measured_with) | {"environment": results.environment()}
    end = time.monotonic() + 60 * given.minutes

    def save() -> None:
        results.write_json(path, state)
        results.write_csv(given.out / "tune.csv", state["rows"], COLUMNS)

    def time_left() -> float:
        return end - time.monotonic()

    bench = OnCuda(given.jobs, time_left)
    try:
        sweep(chosen, device, bench, state["rows"], most=given.most, time_left=time_left, save=save,
              say=lambda text: print(text, flush=True))  # fmt: skip
    except DeviceLostError as error:
        raise SystemExit(f"the device's context is lost: {error}; run again to go on behind it") from error
    finally:
        bench.close()
        found = _table(state, given.least_gain)
        table = given.out / table_name(device.name)
        results.write_json(table, found)
        print(f"{table}: {len(found['entries'])} entries")
    return 0


def _table(state: dict[str, Any], least_gain: float) -> dict[str, Any]:
    used = state["measured_with"]
    device = Device(**used["sizes"] | {"capability": tuple(used["sizes"]["capability"])})
    return table_of(entries(state["rows"], device, least_gain), used)


if __name__ == "__main__":
    sys.exit(main())
