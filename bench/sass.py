"""What a compiled kernel does: its machine code by class and by loop, and its loads as the compiler left them.

The loops' trip counts stand in Triton's own representation (ttgir), the instructions in the cubin. Both list the
innermost loops in the order of the source, and each iteration of a loop that copies ahead commits as many groups in one
as in the other: where ptxas has unrolled a loop, it commits a multiple.
"""

from __future__ import annotations

import inspect
import itertools
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CLASSES = (
    ("async copy", r"LDGSTS|UTMALDG|UBLKCP"),
    ("load", r"LDG\b"),
    ("store", r"STG\b"),
    ("shared load", r"LDS\b|LDSM"),
    ("shared store", r"STS\b|STSM"),
    ("matrix", r"HMMA|HGMMA|UTCHMMA|UTCQMMA|WARPGROUP|UTCBAR|LDTM|STTM"),
    ("barrier", r"BAR\b|SYNCS|WARPSYNC|BSYNC|BSSY|LDGDEPBAR|DEPBAR|UCGABAR"),
    ("float", r"FFMA|FMUL|FADD|FFMA2|FADD2|FMUL2|FMNMX|FSEL|FSETP|FSET|FCHK|HADD2|HFMA2|HMUL2|HMNMX2"),
    ("convert", r"F2F|F2FP|F2I|I2F|PRMT"),
    ("special", r"MUFU"),
    ("shuffle", r"SHFL"),
    ("local", r"LDL|STL"),
)
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(.*?);")


def class_of(opcode: str) -> str:
    """The class of an instruction; what is none of the others works on integers, addresses and control."""
    return next((name for name, pattern in CLASSES if re.match(rf"(?:{pattern})", opcode)), "integer")


def shared_cycles(text: str) -> float:
    """Cycles of a multiprocessor's shared memory (128 bytes each) that a warp's instruction takes, conflicts apart."""
    opcode = text.split()[0]
    if opcode.startswith(("LDSM", "STSM")):
        return {"4": 4.0, "2": 2.0}.get(opcode[-1], 1.0)
    if opcode.startswith(("LDS", "STS", "LDGSTS")):
        return 4.0 if ".128" in opcode else 2.0 if ".64" in opcode else 1.0
    if opcode.startswith("HGMMA"):
        n, k = map(int, re.findall(r"64x(\d+)x(\d+)", opcode)[0])
        width = 32 // k  # bytes of an element: 16 in k of bf16, 8 of tf32
        # B is read by each warpgroup, and A too unless it comes from registers; a quarter for each of its four warps.
        rows = n if re.search(r"R\d+, R\d+, gdesc", text) else n + 64
        return rows * k * width / 128 / 4
    return 0.0


def _run(tool: str, *arguments: Any) -> str:
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    return subprocess.run([path, *arguments], check=True, capture_output=True, text=True).stdout


@dataclass
class Code:
    """Instructions of a stretch of machine code by class, and the cycles of shared memory that they take."""

    classes: Counter[str] = field(default_factory=Counter)
    shared: float = 0.0
    groups: int = 0

    @classmethod
    def of(cls, instructions: list[str]) -> Code:
        """Of instructions."""
        code = cls()
        for text in instructions:
            bare = re.sub(r"^@!?U?P\w+\s+", "", text)
            opcode = bare.split()[0]
            code.classes[class_of(opcode)] += 1
            code.shared += shared_cycles(bare)
            code.groups += opcode.startswith("LDGDEPBAR")
        return code


@dataclass
class Machine:
    """A cubin: what one program takes, the innermost loops in their order, and everything outside of them; ``spills``
    are the loads and stores of the stack inside of loops."""

    registers: int
    stack: int
    spills: int
    loops: list[Code]
    outside: Code


def machine_of(cubin: bytes) -> Machine:
    """Read a cubin with the tools of Triton's wheel."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        listing, usage = _run("nvdisasm", "-c", path), _run("cuobjdump", "--dump-resource-usage", path)

    def used(name: str) -> int:
        found = re.search(rf"{name}:(\d+)", usage)
        if found is None:
            raise ValueError(f"cuobjdump says nothing of {name}: {usage}")
        return int(found[1])

    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        label = re.match(r"\s*(\.L_\w+):", line)
        if label:
            labels[label[1]] = len(instructions)
        found = _INSTRUCTION.search(line)
        if found:
            instructions.append(found[1].strip())
    spans = []
    for place, text in enumerate(instructions):
        target = re.search(r"\bBRA\b.*?`\((\.L_\w+)\)", text)
        # The last instruction of a kernel branches to itself.
        if target and labels.get(target[1], place + 1) < place - 3:
            first = labels[target[1]]
            # A few instructions around a barrier in memory, or around a pause, wait and do nothing else.
            waits = place - first < 24 and any(
                re.search(r"SYNCS|NANOSLEEP", own) for own in instructions[first : place + 1]
            )
            # Behind the kernel's end lies what tries such a barrier again, and then branches back to where it was.
            waits |= not text.startswith("@") and place > 1 and "SYNCS" in instructions[place - 2]
            if not waits:
                spans.append((first, place + 1))
    inner = sorted(s for s in spans if not any(o != s and s[0] <= o[0] and o[1] <= s[1] for o in spans))
    inside = {place for first, last in inner for place in range(first, last)}
    spills = sum(bool(re.search(r"\b(?:STL|LDL)\b", instructions[place])) for place in inside)
    return Machine(
        used("REG"), used("STACK"), spills, [Code.of(instructions[first:last]) for first, last in inner],
        Code.of([text for place, text in enumerate(instructions) if place not in inside]),
    )  # fmt: skip


@dataclass(frozen=True)
class Load:
    """A load from global memory: what of the kernels' source it is (rows, weight, vector, between), and its bytes."""

    role: str
    size: int
    asynchronous: bool


@dataclass
class Loop:
    """A loop as the compiler left it.

    Attributes:
        trips: iterations; None where the bound is not a constant.
        step: of its variable.
        waits: for each wait, how many groups may still be on their way behind it.
        groups: committed an iteration.
        dots: products in an iteration.
    """

    trips: int | None
    step: int
    loads: list[Load] = field(default_factory=list)
    stores: int = 0
    waits: list[int] = field(default_factory=list)
    groups: int = 0
    dots: int = 0

    @property
    def ahead(self) -> float:
        """Tiles on their way while one is worked on: those behind the wait, and the one that is issued next."""
        if not self.groups:
            return 0.0
        return min(self.waits, default=0) / self.groups + 1


_SIZES = {"bf16": 2, "f16": 2, "f32": 4, "i64": 8, "i32": 4}
_TENSOR = re.compile(r"tensor<((?:\d+x)+)!tt\.ptr<(\w+)>")
ROLES = {"load_rows": "rows", "load_matrix": "weight", "load_vector": "vector", "load_columns": "vector"}


class Locations:
    """Which function of the kernels' source an operation of the ttgir comes from."""

    def __init__(self, text: str):
        from rmadapter_kernels.triton import primitives

        self.of = dict(re.findall(r"^(#loc\d*) = loc\((.*)\)$", text, re.MULTILINE))
        self.spans = {}
        for name in ROLES:
            source, first = inspect.getsourcelines(getattr(primitives, name).fn)
            self.spans[name] = range(first, first + len(source))

    def role(self, line: str) -> str:
        """Rows, weight, vector, or what lies between the kernels."""
        where = re.findall(r"loc\((#loc\d*)\)", line)
        place = where[-1] if where else ""
        while place in self.of:
            text = self.of[place]
            file = re.match(r'"([^"]*)":(\d+):', text)
            if file:
                found = (n for n, span in self.spans.items() if int(file[2]) in span)
                return ROLES.get(next(found, ""), "between") if file[1].endswith("primitives.py") else "between"
            place = re.findall(r"#loc\d*", text)[0]
        return "between"


def loops_of(ttgir: str) -> tuple[list[Loop], list[Load]]:
    """The innermost loops in their order, and the loads outside of them."""
    locations = Locations(ttgir)
    constants = {name: int(value) for name, value in re.findall(r"(%\S+) = arith\.constant (-?\d+) : i32", ttgir)}
    loops: list[Loop] = []
    outside: list[Load] = []
    stack: list[Loop | None] = []
    for line in ttgir.splitlines():
        stripped = line.strip()
        begins = re.search(r"scf\.for %\S+ = (%\S+) to (%\S+) step (%\S+)", line)
        if begins:
            first, last, step = (constants.get(name) for name in begins.groups())
            trips = None if first is None or last is None or step is None else -(-(last - first) // step)
            stack.append(Loop(trips, step or 1))
            continue
        if re.search(r"(scf\.if|scf\.while|tt\.reduce)\b.*(\{|\()$", line) or stripped.endswith("({"):
            stack.append(None)
            continue
        if stripped.startswith("} else {"):
            continue
        if stripped.startswith("}") and stack:
            done = stack.pop()
            if done is not None:
                loops.append(done)
            continue
        loop = next((own for own in reversed(stack) if own is not None), None)
        asynchronous = "ttg.async_copy_global_to_local" in line
        if asynchronous or " tt.load " in line:
            found = _TENSOR.search(line)
            size = 4
            if found:
                size = _SIZES[found[2]]
                for extent in found[1].rstrip("x").split("x"):
                    size *= int(extent)
            (outside if loop is None else loop.loads).append(Load(locations.role(line), size, asynchronous))
        elif loop is not None:
            if "ttg.async_wait" in line:
                loop.waits.append(int(re.findall(r"num = (\d+)", line)[0]))
            loop.groups += "ttg.async_commit_group" in line
            loop.stores += "tt.store" in line
            loop.dots += bool(re.search(r"(warp_group_dot|tt\.dot|tc_gen5_mma) ", line))
    return loops, outside


def counterparts(loops: list[Loop], machine: Machine) -> list[tuple[Loop, Code | None, int]]:
    """Each loop with its machine code and how often ptxas unrolled it; no code where it unrolled it altogether.

    The groups that are committed tell: outside of the machine's loops there are those ahead of each loop, and those of
    every iteration of a loop that is gone.

    Raises:
        ValueError: the machine code has more loops.
    """
    if len(machine.loops) > len(loops):
        raise ValueError(f"{len(loops)} loops became {len(machine.loops)} in the machine code")
    best: tuple[float, list[tuple[Loop, Code | None, int]]] | None = None
    for kept in itertools.combinations(range(len(loops)), len(machine.loops)):
        codes = dict(zip(kept, machine.loops, strict=True))
        found: list[tuple[Loop, Code | None, int]] = []
        gone = 0
        fits = True
        for place, loop in enumerate(loops):
            code = codes.get(place)
            unrolled = 1
            if code is None:
                gone += (loop.trips or 0) * loop.groups
            elif loop.groups:
                unrolled, rest = divmod(code.groups, loop.groups)
                fits &= rest == 0 and unrolled > 0 and (loop.trips or 0) % unrolled == 0
            found.append((loop, code, max(1, unrolled)))
        ahead = sum(loop.ahead * loop.groups for loop in loops)
        missed = abs(machine.outside.groups - gone - ahead) + (0 if fits else 1000)
        if best is None or missed < best[0]:
            best = missed, found
    assert best is not None
    return best[1]
