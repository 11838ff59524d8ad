"""A training step by number of classes: plain, each shortcut alone, all of them, and the floor.

    python -m bench.step --model ViT-B-16 --classes 10,50,100,397,1000 --batch 16

Weights and images are random, prompts have 8 to 12 tokens, the losses are the default ones. Contenders of one number of
classes take turns, so that what disturbs the machine disturbs them all; medians are reported. Every sample is kept in
``--out`` (JSON) as it is taken: a run that was stopped, or that stops itself after ``--seconds``, goes on there. A file
is of one model, batch, backend, device, number of threads, torch and commit; another run's is refused. What the targets
hang on comes first, with one sample where a step is long; more samples of those come last. In every process fast and
plain step are compared with each other before anything is timed.

Memory is counted in tensors, and so depends on no other step: ``held`` is what a contender keeps from step to step
(weights, what it has kept of the prompts, batch, momentum), ``added`` the most that a step has allocated beside it at
one time. Their sum is the peak.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.memory import allocated_peak, held_bytes
from bench.step_contenders import CONTENDERS, GRAPHS, MAIN, Contenders, check
from bench.step_report import TARGETS, as_table, heading, plot, targets
from bench.step_samples import group, open_samples
from rmadapter.clip.backbone import Backbone, load_backbone
from rmadapter.clip.names import RANDOM, brings_weights
from rmadapter.clip.storage import store_backbone
from rmadapter.config import RMAdapterConfig
from rmadapter.config.arguments import parse_arguments
from rmadapter.errors import InputError, check_choice
from rmadapter.files import write_json, write_text
from rmadapter.runtime import DTYPES, resolve_device, resolve_precision
from rmadapter.step.costs import step_cost
from rmadapter.step.memory import free_bytes
from rmadapter.tuners.adapted_clip import AdaptedCLIP
from rmadapter.tuners.backend_choice import choose_backend
from rmadapter.tuners.injection import inject

# A sample is set apart, and another one taken, where others used more than this share of the processors meanwhile.
DISTURBED = 0.03
# The first call of a contender warms it up and is no sample, unless it takes this many seconds.
NEEDS_NO_WARMING = 20
# A sample is the mean over so many seconds of steps: one alone, on a GPU, is the launch of its kernels.
SAMPLE = 0.5
# One sample of a step of this many seconds is enough until everything else is measured.
LONG = 20
# A process takes so much of what the plan counts for the backward pass: the plain step of ViT-B-32 in fp32 grew by 25
# MB a class from 10 to 100 classes, where 13.9 are counted. 1000 classes of it are more than 23 GB.
MEMORY_FACTOR = 1.9


@dataclass
class Options:
    """Seconds, memory and operations of a training step.

    Args:
        model: open_clip model name
        classes: numbers of classes, separated by commas
        batch: images a step
        precision: precisions, separated by commas: fp32, bf16, fp16, default, or autocast (of the plain step, bf16)
        contenders: which, separated by semicolons; default: plain, all, all with cached
            views, and all without reconstruction; 'every' for all there are
        repeats: samples of each
        seconds: stop after this time; the same command goes on
        backend: one adapter backend by name
        device: auto, cpu, cuda or cuda:N
        out: where the samples are kept; table (.md) and plot (.png) go beside them
        overwrite: begin anew where ``out`` has samples of another model, batch, backend, device,
            number of threads, torch or commit
    """

    model: str = "ViT-B-16"
    classes: str = "10,50,100"
    batch: int = 16
    precision: str = "fp32"
    contenders: str = ";".join(MAIN)
    repeats: int = 3
    seconds: float | None = None
    backend: str | None = None
    device: str = "auto"
    out: str = "bench/results/step.json"
    overwrite: bool = False
    numbers: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        try:
            self.numbers = [int(number) for number in self.classes.split(",")]
        except ValueError as error:
            raise InputError(f"classes is {self.classes!r}; valid: numbers separated by commas") from error
        if self.contenders == "every":
            cuda = resolve_device(self.device).type == "cuda"
            self.contenders = ";".join(name for name in CONTENDERS if cuda or name != GRAPHS)
        for name in self.contenders.split(";"):
            check_choice("contenders", name, CONTENDERS)
            if name == GRAPHS and resolve_device(self.device).type != "cuda":
                raise InputError(f"contenders names {name!r}, which needs a CUDA device")
        for name in self.precision.split(","):
            check_choice("precision", name, (*DTYPES, "autocast", "default"))


def groups(options: Options, default: str) -> list[tuple[str, int, bool]]:
    """(precision, classes, whether long steps get all of their samples) in the order of measuring.

    First what the targets need, the plain step under autocast with the fewest classes of them alone; then the rest;
    then all once more.
    """
    wanted = list(dict.fromkeys(default if name == "default" else name for name in options.precision.split(",")))
    precisions = sorted(wanted, key=lambda name: (name == "autocast", name != "fp32"))
    every = [(precision, classes) for precision in precisions for classes in options.numbers]
    least = min((classes for classes in options.numbers if classes in TARGETS), default=None)
    first = [(p, c) for p, c in every if c in TARGETS and (p != "autocast" or c == least)]
    ordered = [*first, *(group for group in every if group not in first)]
    return [(*group, again) for again in (False, True) for group in ordered]


def is_done(case: dict[str, Any], repeats: int, again: bool) -> bool:
    """Whether a case has its samples; what is always disturbed is given up, in the first pass sooner."""
    taken = [*case["seconds"], *(seconds for seconds, _ in case["disturbed"])]
    if len(case["seconds"]) >= repeats or len(taken) >= repeats * (4 if again else 2):
        return True
    return not again and bool(taken) and min(taken) >= LONG


def run(options: Options) -> None:
    """Take the samples that are missing, then write table and plot."""
    device = resolve_device(options.device)
    path = Path(options.out)
    own = group(options.model, options.batch, options.backend, device)
    kept = open_samples(path, own, options.overwrite)
    kept["default"] = default = resolve_precision("auto", device)
    if _measure(options, kept, path, device, default):
        print("all samples are there", flush=True)
    else:
        print("stopped for --seconds; the same command goes on", flush=True)
    text = "\n".join([heading(kept), as_table(kept), targets(kept)])
    write_text(path.with_suffix(".md"), text)
    print(text)
    plot(kept, path.with_suffix(".png"))


def _measure(options: Options, kept: dict[str, Any], path: Path, device: torch.device, default: str) -> bool:
    """Whether all samples were taken before ``options.seconds`` were over."""
    began = time.perf_counter()
    checked = False
    loaded: dict[str, tuple[Backbone, AdaptedCLIP]] = {}  # of one precision at a time
    contenders: dict[tuple[str, int], Contenders] = {}
    left_out: set[tuple[str, str, int]] = set()  # for memory
    for precision, classes, again in groups(options, default):
        cases = _cases(options, kept, precision, classes)
        turns = itertools.cycle((1, -1))
        while pending := [
            name
            for name, case in cases.items()
            if not is_done(case, options.repeats, again) and (name, precision, classes) not in left_out
        ]:
            # In alternating order, since a step pays for the memory that a larger one before it gave back.
            for name in pending[:: next(turns)]:
                if options.seconds is not None and time.perf_counter() - began > options.seconds:
                    return False
                if not checked:
                    _check(options, device)
                    checked = True
                if precision not in loaded:
                    contenders.clear()
                    loaded.clear()
                    backbone, adapted, kept["adapters"] = _model(options, device, precision)
                    loaded[precision] = backbone, adapted
                if (precision, classes) not in contenders:
                    contenders.clear()
                    contenders[precision, classes] = Contenders(options.batch, *loaded[precision], classes, precision)
                if not fits(contenders[precision, classes], name, free_bytes(device)):
                    left_out.add((name, precision, classes))
                    continue
                _sample(contenders[precision, classes], name, cases[name])
                write_json(path, kept)
    return True


def fits(contenders: Contenders, name: str, free: int) -> bool:
    """Whether a contender that has not run yet is expected to fit into ``free`` bytes; says so where it is not."""
    if name in contenders.warm:
        return True
    contenders.call(name)
    needed = MEMORY_FACTOR * contenders.plans[name].cost.bytes
    if needed > free:
        where = f"{name}, {contenders.precision}, {contenders.classes} classes"
        print(f"{where}: left out, takes about {needed / 1e9:.0f} GB of memory; free: {free / 1e9:.0f} GB", flush=True)
    return needed <= free


def _cases(options: Options, kept: dict[str, Any], precision: str, classes: int) -> dict[str, dict[str, Any]]:
    """Those of one group by contender, from ``kept`` or new in it; under autocast the plain step alone."""
    cases = {}
    for name in options.contenders.split(";"):
        if precision == "autocast" and name != "plain":
            continue
        new = {"contender": name, "precision": precision, "classes": classes, "seconds": [], "disturbed": []}
        cases[name] = kept["cases"].setdefault(f"{name} | {precision} | {classes}", new)
    return cases


def busy_seconds() -> float:
    """CPU seconds that the whole machine has worked, this process included; 0 where the system does not say."""
    try:
        user, nice, system = (int(field) for field in Path("/proc/stat").read_text().split()[1:4])
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def timed(device: torch.device, call: Callable[[], object], least: float = 0.0) -> tuple[float, float]:
    """Seconds of a call, and the share of the machine's processors that others used meanwhile.

    Calls follow one another as in training until ``least`` seconds are over, and the mean counts.
    """
    others = busy_seconds() - time.process_time()
    began = time.perf_counter()
    calls = 0
    while calls == 0 or time.perf_counter() - began < least:
        call()
        calls += 1
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - began
    others = busy_seconds() - time.process_time() - others
    return seconds / calls, others / seconds / (os.cpu_count() or 1)


def _model(options: Options, device: torch.device, precision: str) -> tuple[Backbone, AdaptedCLIP, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights are meant here
        backbone = load_backbone(options.model, None if brings_weights(options.model) else RANDOM, device)
    backbone = store_backbone(backbone, DTYPES.get(precision, torch.float32))
    torch.manual_seed(0)
    adapted = inject(backbone.clip, RMAdapterConfig()).train()
    backend, sentence = choose_backend(adapted, True, options.backend)
    print(sentence, flush=True)
    return backbone, adapted, backend


def _check(options: Options, device: torch.device) -> None:
    """Compare the steps in fp32, with a model of its own, whatever the precisions that are timed."""
    backbone, adapted, _ = _model(options, device, "fp32")
    check(options.batch, backbone, adapted, graphs=GRAPHS in options.contenders.split(";"))


def _measure_memory(contenders: Contenders, call: Callable[[], object], case: dict[str, Any]) -> None:
    """What the call holds before a step, and what the step allocates beside it: its gradients are the step's."""
    contenders.clear_gradients()
    case["held_bytes"] = held_bytes(call)
    case["allocated_bytes"] = allocated_peak(contenders.device, call)


def _sample(contenders: Contenders, name: str, case: dict) -> None:
    """One sample more of a case; a first call that was short warms up and is none."""
    call = contenders.call(name)
    if name not in contenders.warm:
        contenders.warm.add(name)
        if name == GRAPHS:
            # A replay allocates nothing: what counts are the steps before the recording, and the recording.
            _measure_memory(contenders, call, case)
        seconds, others = timed(contenders.device, call)
        if "allocated_bytes" not in case:
            _measure_memory(contenders, call, case)  # after a step, so that its momentum is there
        plan = contenders.plans[name]
        views = name == "all, views"
        case["flop"] = step_cost(plan.work, plan.shortcuts, plan.by_token, cached_views=views).flop
        case["plain_flop"] = plan.plain.flop
        if seconds < NEEDS_NO_WARMING:
            return
    else:
        seconds, others = timed(contenders.device, call, SAMPLE)
    disturbed = others > DISTURBED
    if disturbed:
        case["disturbed"].append([seconds, others])
    else:
        case["seconds"].append(seconds)
    print(
        f"{name}, {case['precision']}, {case['classes']} classes: {seconds:.2f} s"
        + (f", not counted: others used {others:.0%} of the machine" if disturbed else ""),
        flush=True,
    )


def main(argv: list[str] | None = None) -> int:
    """The command line; 2 for input that has to be mended."""
    try:
        run(parse_arguments(Options, sys.argv[1:] if argv is None else argv, prog="bench.step"))
    except InputError as error:
        print(f"bench.step: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
