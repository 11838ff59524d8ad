"""Compile every candidate of the launch configurations and write what the model of their time starts from.

    python -m bench.facts                     # rmadapter_kernels/triton/compiled.json, about ten minutes
    python -m bench.facts --kind bf16 --family sm_90

One entry a kernel, kind of product, padded width, family of devices and tile: registers and bytes of stack of a thread,
bytes of shared memory a program, the larger of those with a LayerNorm and without; instructions a token with one. D is
768, with three stages. What is there and not asked for stays.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context

from bench.compiled import Case
from bench.machine_code import examine
from rmadapter_kernels.triton.tuning import (
    CANDIDATES,
    FACTS_FILE,
    FAMILIES,
    KERNELS,
    Config,
    fact_key,
)

# The dtype that stands for a kind of product.
DTYPES = {"bf16": "bf16", "fp16": "fp16", "tf32": "tf32", "exact": "ieee"}
TOKENS = 65536


def fact(kernel: str, kind: str, width: int, family: str, tile: tuple[int, int, int]) -> list[int] | None:
    """Registers, stack, instructions a token, shared bytes; None where it does not compile."""
    block_m, block_d, num_warps = tile
    config = Config(block_m, block_d, num_warps, 3)
    case = Case(family, kernel, DTYPES[kind], 768, width, width, TOKENS, True, config)
    try:
        rows = [examine(case), examine(replace(case, norm=False))]
    except Exception as error:  # a candidate less; the reason may be one of the counting, not of the compiler
        print(f"{fact_key(kernel, kind, width, family, tile)}: {type(error).__name__}: {error}", flush=True)
        return None
    return [max(row.registers for row in rows), max(row.stack for row in rows), round(rows[0].instructions),
            max(row.shared for row in rows)]  # fmt: skip


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", default=",".join(DTYPES), help="any of %(default)s")
    parser.add_argument("--kernel", default=",".join(KERNELS), help="any of %(default)s")
    parser.add_argument("--width", default="32,64,128", help="any of %(default)s")
    parser.add_argument("--family", default=",".join(FAMILIES), help="any of %(default)s")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilers at a time (%(default)s)")
    given = parser.parse_args()
    found = json.loads(FACTS_FILE.read_text(encoding="utf-8")) if FACTS_FILE.exists() else {}
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
        futures = {}
        for kind in given.kind.split(","):
            for family in given.family.split(","):
                for kernel in given.kernel.split(","):
                    for (own, width), tiles in CANDIDATES[kernel].items():
                        for tile in tiles if own == kind and str(width) in given.width.split(",") else ():
                            key = fact_key(kernel, kind, width, family, tile)
                            futures[pool.submit(fact, kernel, kind, width, family, tile)] = key
        for done, future in enumerate(as_completed(futures), 1):
            values = future.result()
            found.pop(futures[future], None)
            if values is not None:
                found[futures[future]] = values
            print(f"{done}/{len(futures)} {futures[future]}: {values}", flush=True)
            lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(found[key])}" for key in sorted(found))
            FACTS_FILE.write_text("{\n" + lines + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
