"""A training step by number of classes: plain, each shortcut alone, all of them, and the floor.

    python -m bench.step --model ViT-B-16 --classes 10,50,100,397,1000 --batch 16

Weights and images are random, prompts have 8 to 12 tokens, the losses are the default ones. Every contender takes one
step a round, so that what disturbs the machine disturbs them all; medians are reported. Samples are kept in
``--out`` (JSON) as they are taken: a run that was stopped, or that stops itself after ``--seconds``, goes on there.
Fast and plain step are compared with each other before anything is timed.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch

from rmadapter.arguments import parse_arguments
from rmadapter.backbone import Backbone, load_backbone, store_backbone
from rmadapter.config import LossConfig, RMAdapterConfig
from rmadapter.costs import step_cost
from rmadapter.errors import InputError, check_choice
from rmadapter.files import read_json, write_json
from rmadapter.injection import AdaptedCLIP, inject
from rmadapter.model import RMAdapterCLIP
from rmadapter.plan import Plan
from rmadapter.runtime import DTYPES, choose_backend, residual_dtype, resolve_device, resolve_precision
from rmadapter.step import TrainStep
from rmadapter.step_config import StepConfig

ALONE = {
    f"only {f.name}": StepConfig(**{o.name: o.name == f.name for o in fields(StepConfig)}) for f in fields(StepConfig)
}
MAIN = ("plain", "all", "all, views")
CONTENDERS = (*MAIN, *ALONE, "all, no reconstruction", "floor")
# A sample is taken again where other processes used more than this share of the processors meanwhile.
DISTURBED = 0.03
# The first call of a contender warms it up and is no sample, unless it takes this many seconds.
NEEDS_NO_WARMING = 20
WORDS = "red old small apple house river stone light green car"


@dataclass
class Options:
    """Seconds, memory and operations of a training step.

    Args:
        model: open_clip model name
        classes: numbers of classes, separated by commas
        batch: images a step
        precision: precisions, separated by commas: fp32, bf16, fp16, default, or autocast (of the plain step, bf16)
        contenders: which, separated by semicolons; default: plain, all, and all with cached views; 'every' for all
        repeats: samples of each
        seconds: stop after this time; the same command goes on
        backend: one adapter backend by name
        device: auto, cpu, cuda or cuda:N
        out: where the samples are kept; table (.md) and plot (.png) go beside them
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
    numbers: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        try:
            self.numbers = [int(number) for number in self.classes.split(",")]
        except ValueError as error:
            raise InputError(f"classes is {self.classes!r}; valid: numbers separated by commas") from error
        self.contenders = ";".join(CONTENDERS) if self.contenders == "every" else self.contenders
        for name in self.contenders.split(";"):
            check_choice("contenders", name, CONTENDERS)
        for name in self.precision.split(","):
            check_choice("precision", name, (*DTYPES, "autocast", "default"))


def names(count: int) -> list[str]:
    """Class names of one to five words, so that prompts have 8 to 12 tokens, all lengths alike."""
    words = itertools.cycle(WORDS.split())
    return [" ".join(next(words) for _ in range(1 + index % 5)) for index in range(count)]


class Contenders:
    """The contenders on one model in one precision, for one number of classes."""

    def __init__(
        self,
        options: Options,
        backbone: Backbone,
        adapted: AdaptedCLIP,
        classes: int,
        precision: str,
        loss: LossConfig | None = None,
    ):
        self.autocast = precision == "autocast"
        self.device = adapted.clip.logit_scale.device
        self.models = {}
        loss = loss or LossConfig()
        single = replace(loss, lambda1=0, lambda2=0)
        for trim, wanted in ((True, loss), (False, loss), (True, single)):
            self.models[trim, wanted is loss] = RMAdapterCLIP(
                adapted, backbone.tokenizer, names(classes), loss=wanted, trim=trim, keep_targets=trim
            ).train()
        stream = None if self.autocast else residual_dtype("auto", precision)
        self.stream = stream
        generator = torch.Generator().manual_seed(0)
        size = backbone.preprocessing.size
        self.images = torch.randn(options.batch, 3, size, size, generator=generator).to(self.device)
        self.labels = (torch.arange(options.batch) % classes).to(self.device)
        self.adapted = adapted
        self.optimizer = torch.optim.SGD(adapted.adapter_tensors().values(), lr=0.0, momentum=0.9)
        self.calls: dict[str, Callable[[], object]] = {}
        self.plans: dict[str, Plan] = {}
        self.views = None

    def shortcuts(self, name: str) -> StepConfig:
        """Those that contender ``name`` takes."""
        return StepConfig.none() if name == "plain" else ALONE.get(name, StepConfig())

    def call(self, name: str) -> Callable[[], object]:
        """One step of contender ``name``; made at first use."""
        if name not in self.calls:
            shortcuts = self.shortcuts(name)
            model = self.models[shortcuts.trim, name != "all, no reconstruction"]
            step = model if name == "plain" else TrainStep(model, shortcuts, stream=self.stream)
            self.plans[name] = Plan.of(step, len(self.images))
            if name == "all, views" and self.views is None:
                self.views = step.views(self.images)
            self.calls[name] = self._floor(step) if name == "floor" else self._training(step, name)
        return self.calls[name]

    def _training(self, step, name: str) -> Callable[[], torch.Tensor]:
        # The model's switches belong to the adapters, which all contenders share.
        arguments = (None, self.labels, self.views) if name == "all, views" else (self.images, self.labels)
        context = torch.autocast(self.device.type, torch.bfloat16) if self.autocast else contextlib.nullcontext()
        wanted = step.model.loss if isinstance(step, TrainStep) else step.loss

        def call() -> torch.Tensor:
            for tower, weight in (("vision", wanted.lambda1), ("text", wanted.lambda2)):
                self.adapted.set_reconstruction(tower, weight > 0)
            with context:
                loss = step(*arguments).losses["total"]
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            return loss.detach()

        return call

    @torch.no_grad()
    def _floor(self, step: TrainStep) -> Callable[[], object]:
        """The frozen blocks above the first adapter alone, forward, at the tokens and chunks of the fast step."""
        entry = step.image.begin(self.images)
        step(self.images, self.labels)
        prompts = step._classes

        @torch.no_grad()
        def call() -> None:
            step.image.frozen(entry, step.image.token)
            for classes in prompts:
                step.text.frozen(classes.entry, classes.token)

        return call


def peak_bytes(device: torch.device, call: Callable[[], object]) -> int:
    """Most memory of the process (on CUDA: that PyTorch has allocated) while ``call`` runs."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to what is resident now
    call()
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def busy_seconds() -> float:
    """CPU seconds that the whole machine has worked, this process included; 0 where the system does not say."""
    try:
        user, nice, system = (int(field) for field in Path("/proc/stat").read_text().split()[1:4])
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def timed(device: torch.device, call: Callable[[], object]) -> tuple[float, float]:
    """Seconds of one call, and the share of the machine's processors that others used meanwhile."""
    others = busy_seconds() - time.process_time()
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - began
    others = busy_seconds() - time.process_time() - others
    return seconds, others / seconds / (os.cpu_count() or 1)


def check(options: Options, backbone: Backbone, adapted: AdaptedCLIP) -> None:
    """Fast and plain step have the same losses and gradients, in fp32, before anything is timed.

    Gradients without consistency: it is an L1 distance, and where a fresh adapter moves a feature by less than its
    rounding, the sign that is its gradient is that of the rounding.
    """
    for loss, tensors in ((LossConfig(lambda3=0, lambda4=0), True), (LossConfig(), False)):
        contenders = Contenders(options, backbone, adapted, 10, "fp32", loss)
        found = []
        for name in MAIN:
            value = contenders.call(name)()
            gradients = [p.grad.clone() for p in adapted.adapter_tensors().values()]
            found.append([value, *(gradients if tensors else [])])
        for name, values in zip(MAIN[1:], found[1:], strict=True):
            for one, other in zip(values, found[0], strict=True):
                error = (one - other).norm() / other.norm()
                if error > 1e-3:
                    raise RuntimeError(f"{name} and plain differ by {error:.1e}")
    print("fast and plain step agree", flush=True)


def run(options: Options) -> None:
    """Take the samples that are missing, then write table and plot."""
    device = resolve_device(options.device)
    path = Path(options.out)
    kept = read_json(path, "samples") if path.exists() else {"cases": {}}
    kept["machine"] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    began = time.perf_counter()
    late = lambda: options.seconds is not None and time.perf_counter() - began > options.seconds  # noqa: E731
    for precision in options.precision.split(","):
        precision = resolve_precision("auto", device) if precision == "default" else precision
        backbone, adapted = None, None
        for classes in options.numbers:
            cases = {}
            for name in options.contenders.split(";"):
                if precision == "autocast" and name != "plain":
                    continue
                key = f"{name} | {precision} | {classes} | {options.model} | {options.batch}"
                empty = {"contender": name, "precision": precision, "classes": classes, "seconds": []}
                case = kept["cases"].setdefault(key, empty)
                if len(case["seconds"]) < options.repeats:
                    cases[name] = case
            if not cases:
                continue
            if adapted is None:
                backbone, adapted, kept["machine"]["backend"] = _model(options, device, precision)
                if precision == "fp32" and not kept.get("checked"):
                    check(options, backbone, adapted)
                    kept["checked"] = True
            contenders = Contenders(options, backbone, adapted, classes, precision)
            while pending := [name for name, case in cases.items() if len(case["seconds"]) < options.repeats]:
                for name in pending:
                    if late():
                        write_json(path, kept)
                        print("stopped for --seconds; the same command goes on", flush=True)
                        return
                    _sample(contenders, name, cases[name])
                    write_json(path, kept)
    write_json(path, kept)
    table = as_table(kept, options)
    path.with_suffix(".md").write_text(table, encoding="utf-8")
    print(table)
    plot(kept, options, path.with_suffix(".png"))


def _model(options: Options, device: torch.device, precision: str) -> tuple[Backbone, AdaptedCLIP, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights are meant here
        backbone = load_backbone(options.model, None, device)
    store_backbone(backbone.clip, DTYPES.get(precision, torch.float32))
    torch.manual_seed(0)
    adapted = inject(backbone.clip, RMAdapterConfig()).train()
    backend, sentence = choose_backend(adapted, True, options.backend)
    print(sentence, flush=True)
    return backbone, adapted, backend


def _sample(contenders: Contenders, name: str, case: dict) -> None:
    first = name not in contenders.calls
    call = contenders.call(name)
    if first:
        found = []
        case["peak_bytes"] = peak_bytes(contenders.device, lambda: found.append(timed(contenders.device, call)))
        plan = contenders.plans[name]
        views = name == "all, views"
        case["flop"] = step_cost(plan.work, plan.shortcuts, plan.by_token, cached_views=views).flop
        case["plain_flop"] = plan.plain.flop
        if found[0][0] < NEEDS_NO_WARMING:
            return
        seconds, others = found[0]
    else:
        seconds, others = timed(contenders.device, call)
    disturbed = others > DISTURBED
    if not disturbed:
        case["seconds"].append(seconds)
    print(
        f"{name}, {case['precision']}, {case['classes']} classes: {seconds:.2f} s"
        + (f", not counted: others used {others:.0%} of the machine" if disturbed else ""),
        flush=True,
    )


def as_table(kept: dict, options: Options) -> str:
    """All cases in Markdown; ratios are to the plain step of the same precision and number of classes."""
    machine = kept["machine"]
    lines = [
        f"{options.model}, batch {options.batch}, {machine['device']} ({machine['threads']} threads), "
        f"torch {machine['torch']}, adapters {machine.get('backend')}",
        "",
        "| classes | precision | step | seconds | images/s | peak GB | GFLOP | times plain | expected | samples |",
        "|---:|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    cases = [case for case in kept["cases"].values() if case["seconds"]]
    medians = {(c["classes"], c["precision"], c["contender"]): statistics.median(c["seconds"]) for c in cases}
    for case in sorted(cases, key=lambda c: (c["classes"], c["precision"])):
        seconds = statistics.median(case["seconds"])
        plain = medians.get((case["classes"], case["precision"], "plain"))
        ratio = f"{plain / seconds:.2f}" if plain else ""
        expected = f"{case['plain_flop'] / case['flop']:.2f}" if case["contender"] != "floor" else ""
        lines.append(
            f"| {case['classes']} | {case['precision']} | {case['contender']} | {seconds:.2f} | "
            f"{options.batch / seconds:.1f} | {case['peak_bytes'] / 1e9:.2f} | {case['flop'] / 1e9:.0f} | {ratio} | "
            f"{expected} | {len(case['seconds'])} |"
        )
    return "\n".join(lines) + "\n"


def plot(kept: dict, options: Options, path: Path) -> None:
    """Seconds a step against the number of classes."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        print("no plot: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for case in kept["cases"].values():
        if case["seconds"] and case["contender"] in (*MAIN, "floor"):
            point = (case["classes"], statistics.median(case["seconds"]))
            lines.setdefault((case["contender"], case["precision"]), []).append(point)
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for (contender, precision), points in sorted(lines.items()):
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=f"{contender}, {precision}")
    axes.set(xlabel="classes", ylabel="seconds a step", yscale="log", title=f"{options.model}, batch {options.batch}")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


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
