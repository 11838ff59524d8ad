"""A training step by number of classes: plain, each shortcut alone, all of them, and the floor.

    python -m bench.step --model ViT-B-16 --classes 10,50,100,397,1000 --batch 16
    python -m bench.step --method coop,cocoop,maple,promptsrc --classes 100 --batch 4

Weights and images are random, prompts have 8 to 12 tokens, the losses are those of each method's recipe, the optimiser
is SGD. Contenders of one method and number of classes take turns, so that what disturbs the machine disturbs them all;
medians are reported. Every sample is kept in ``--out`` (JSON) as it is taken: a run that was stopped, or that stops
itself after ``--seconds``, goes on there. A file is of one model, batch, backend, device, number of threads, torch and
commit, and of one set of options; another run's is refused. What the targets hang on comes first, with one sample where
a step is long; more samples of those come last. In every process fast and plain step of each method are compared with
each other before anything is timed.

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
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from bench.memory import allocated_peak, held_bytes
from bench.step_contenders import CHECKED_CLASSES, CONTENDERS, MAIN, ON_CUDA, VIEWS, Contenders, check, unrecorded
from bench.step_gpu import gpu_work
from bench.step_methods import DEFAULT, Subject
from bench.step_report import Time, as_table, heading, plot, targets
from bench.step_samples import group, open_samples
from bench.step_targets import TARGETS
from rmadapter.clip.backbone import Backbone, load_backbone
from rmadapter.clip.names import RANDOM, brings_weights
from rmadapter.clip.storage import store_backbone
from rmadapter.config.arguments import parse_arguments
from rmadapter.config.sizes import parse_bytes
from rmadapter.errors import InputError, check_choice, check_range
from rmadapter.files import write_json, write_text
from rmadapter.runtime import DTYPES, resolve_device, resolve_precision
from rmadapter.step.costs import step_cost
from rmadapter.step.memory import free_bytes
from rmadapter.tuners.adapted_clip import AdaptedCLIP
from rmadapter.tuners.backend_choice import choose_backend

# A sample is set apart, and another one taken, where others used more than this share of the processors meanwhile.
DISTURBED = 0.03
# The first call of a contender warms it up and is no sample, unless it takes this many seconds.
NEEDS_NO_WARMING = 20
# A sample is the mean over so many seconds of steps: one alone, on a GPU, is the launch of its kernels.
SAMPLE = 0.25
# One sample of a step of this many seconds is enough until everything else is measured.
LONG = 20
# A process takes so much of what the plan counts for the backward pass: the plain step of ViT-B-32 in fp32 grew by 25
# MB a class from 10 to 100 classes, where 13.9 are counted. 1000 classes of it are more than 23 GB.
MEMORY_FACTOR = 1.9


@dataclass
class Options:
    """Seconds, memory and operations of a training step.

    Args:
        method: methods, separated by commas
        options: options of rmadapter train, for each of the methods that has them, such as '--lora.dropout=0'
        model: open_clip model name
        classes: numbers of classes, separated by commas
        batch: images a step; default: that of each method's recipe
        text_memory: memory for the activations of all prompts, such as 2GB; default: as much as they take
        precision: precisions, separated by commas: fp32, bf16, fp16, default, or autocast (of the plain step, bf16)
        contenders: which, separated by semicolons; default: plain, all, all with cached
            views, and all without reconstruction; 'every' for all there are. A method that
            has no such step is without it
        repeats: samples of each
        seconds: stop after this time; the same command goes on
        backend: one adapter backend by name
        device: auto, cpu, cuda or cuda:N
        out: where the samples are kept; table (.md) and plot (.png) go beside them
        overwrite: begin anew where ``out`` has samples of another model, batch, backend, device,
            number of threads, torch or commit
    """

    method: str = DEFAULT
    options: str = ""
    model: str = "ViT-B-16"
    classes: str = "10,50,100"
    batch: int | None = None
    text_memory: str | None = None
    precision: str = "fp32"
    contenders: str = ";".join(MAIN)
    repeats: int = 3
    seconds: float | None = None
    backend: str | None = None
    device: str = "auto"
    out: str = "bench/results/step.json"
    overwrite: bool = False

    def __post_init__(self) -> None:
        try:
            self.numbers = [int(number) for number in self.classes.split(",")]
        except ValueError as error:
            raise InputError(f"classes is {self.classes!r}; valid: numbers separated by commas") from error
        if self.contenders == "every":
            cuda = resolve_device(self.device).type == "cuda"
            self.contenders = ";".join(name for name in CONTENDERS if cuda or name not in ON_CUDA)
        for name in self.contenders.split(";"):
            check_choice("contenders", name, CONTENDERS)
            if name in ON_CUDA and resolve_device(self.device).type != "cuda":
                raise InputError(f"contenders names {name!r}, which needs a CUDA device")
        for name in self.precision.split(","):
            check_choice("precision", name, (*DTYPES, "autocast", "default"))
        if self.batch is not None:
            check_range("batch", self.batch, 1)
        assert self.subjects  # made now, for what may be wrong with them
        assert self.text_bytes is None or self.text_bytes > 0

    @cached_property
    def subjects(self) -> list[Subject]:
        """The methods that are timed."""
        return [Subject.of(name, self.options.split(), self.batch) for name in self.method.split(",")]

    @property
    def text_bytes(self) -> int | None:
        """``text_memory`` in bytes."""
        return None if self.text_memory is None else parse_bytes("text_memory", self.text_memory)


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
    batches = {subject.batch for subject in options.subjects}
    batch = batches.pop() if len(batches) == 1 else None
    others = {"options": options.options, "text_memory": options.text_memory}
    own = group(options.model, batch, options.backend, device, **others)
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


class Ready:
    """The contenders of one method, precision and number of classes, made where others were asked for before."""

    def __init__(self, options: Options, kept: dict[str, Any], device: torch.device):
        self.options, self.kept, self.device = options, kept, device
        self.backbone: Backbone | None = None
        self.adapted: AdaptedCLIP | None = None
        self.there: tuple[str, str, int] | None = None
        self.contenders: Contenders | None = None

    def of(self, subject: Subject, precision: str, classes: int) -> Contenders:
        """Those of ``subject``; the ones before are let go first."""
        key = (subject.name, precision, classes)
        if self.contenders is not None and self.there == key:
            return self.contenders
        self.contenders = None
        if self.adapted is not None:
            self.adapted.remove()
        if self.there is None or self.there[1] != precision:
            self.backbone = None
            self.backbone = _backbone(self.options, self.device, precision)
        assert self.backbone is not None
        self.adapted, backend = _adapted(self.options, subject, self.backbone, classes)
        self.kept["adapters"] = backend or self.kept.get("adapters")
        self.there = key
        self.contenders = Contenders(
            subject.batch, self.backbone, self.adapted, classes, precision, subject, self.options.text_bytes
        )
        return self.contenders


def _measure(options: Options, kept: dict[str, Any], path: Path, device: torch.device, default: str) -> bool:
    """Whether all samples were taken before ``options.seconds`` were over."""
    began = time.perf_counter()
    checked = False
    ready = Ready(options, kept, device)
    left_out: set[tuple[str, str, str, int]] = set()  # what a method does not have, and for memory
    for (precision, classes, again), subject in itertools.product(groups(options, default), options.subjects):
        cases = _cases(options, kept, subject, precision, classes)
        turns = itertools.cycle((1, -1))
        while pending := [
            name
            for name, case in cases.items()
            if not is_done(case, options.repeats, again) and (subject.name, name, precision, classes) not in left_out
        ]:
            # In alternating order, since a step pays for the memory that a larger one before it gave back.
            for name in pending[:: next(turns)]:
                if options.seconds is not None and time.perf_counter() - began > options.seconds:
                    return False
                if not checked:
                    _check(options, device)
                    checked = True
                contenders = ready.of(subject, precision, classes)
                if not contenders.applies(name) or not fits(contenders, name, free_bytes(device)):
                    left_out.add((subject.name, name, precision, classes))
                    continue
                try:
                    _sample(contenders, name, cases[name])
                except InputError as error:  # a step that cannot be recorded
                    print(f"{subject.name}: {name}, left out: {error}", flush=True)
                    left_out.add((subject.name, name, precision, classes))
                    continue
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


def _cases(
    options: Options, kept: dict[str, Any], subject: Subject, precision: str, classes: int
) -> dict[str, dict[str, Any]]:
    """Those of one method and group by contender, from ``kept`` or new in it; under autocast the plain step alone."""
    cases = {}
    for name in options.contenders.split(";"):
        if precision == "autocast" and name != "plain":
            continue
        new = {
            "method": subject.name,
            "batch": subject.batch,
            "contender": name,
            "precision": precision,
            "classes": classes,
            "seconds": [],
            "disturbed": [],
        }
        cases[name] = kept["cases"].setdefault(f"{subject.name} | {name} | {precision} | {classes}", new)
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


def _backbone(options: Options, device: torch.device, precision: str) -> Backbone:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights are meant here
        backbone = load_backbone(options.model, None if brings_weights(options.model) else RANDOM, device)
    return store_backbone(backbone, DTYPES.get(precision, torch.float32))


def _adapted(options: Options, subject: Subject, backbone: Backbone, classes: int) -> tuple[AdaptedCLIP, str | None]:
    """The method in the model, and the backend of its adapters; None without any."""
    adapted = subject.put_in(backbone, classes)
    if not any(adapted.adapters()):
        return adapted, None
    backend, sentence = choose_backend(adapted, True, options.backend)
    print(sentence, flush=True)
    return adapted, backend


def _check(options: Options, device: torch.device) -> None:
    """Compare each method's steps in fp32, with a model of its own, whatever the precisions that are timed."""
    backbone = _backbone(options, device, "fp32")
    for subject in options.subjects:
        adapted, _ = _adapted(options, subject.certain(), backbone, CHECKED_CLASSES)
        graphs = any(name in ON_CUDA for name in options.contenders.split(";"))
        check(subject.batch, backbone, adapted, graphs=graphs, subject=subject.certain())
        adapted.remove()


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
        if name in ON_CUDA:
            # A replay allocates nothing: what counts are the steps before the recording, and the recording.
            _measure_memory(contenders, call, case)
        seconds, others = timed(contenders.device, call)
        if "allocated_bytes" not in case:
            _measure_memory(contenders, call, case)  # after a step, so that its momentum is there
        if contenders.device.type == "cuda":
            case["gpu"] = gpu_work(call)
        plan = contenders.plans[name]
        case["flop"] = step_cost(plan.work, plan.shortcuts, plan.by_token, cached_views=unrecorded(name) == VIEWS).flop
        case["plain_flop"] = plan.plain.flop
        if seconds < NEEDS_NO_WARMING:
            if contenders.device.type != "cuda":
                return
            # What comes before costs more there than a sample, which a run that is cut off then has.
            seconds, others = timed(contenders.device, call, SAMPLE)
    else:
        seconds, others = timed(contenders.device, call, SAMPLE)
    disturbed = others > DISTURBED
    if disturbed:
        case["disturbed"].append([seconds, others])
    else:
        case["seconds"].append(seconds)
    print(
        f"{contenders.subject.name}: {name}, {case['precision']}, {case['classes']} classes: {Time(seconds)} s"
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
