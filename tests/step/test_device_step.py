"""The step that can be recorded: the same as the ordinary one, and nothing in it that a recording does not allow."""

from __future__ import annotations

import contextlib
import math
from itertools import product

import pytest
import torch
import torch.distributed as dist
from conftest import small_clip
from step_cases import NoHost

from rmadapter import InputError, LossConfig, RMAdapterCLIP, RMAdapterConfig
from rmadapter.clip.storage import store_weights
from rmadapter.config.shortcuts import StepConfig
from rmadapter.objectives.losses import gradient_norms
from rmadapter.step.cuda_graphs import WARM_UP, CudaRecorder, GraphedStep, check_graphs
from rmadapter.step.device_step import FINITE, DeviceStep, StepInputs
from rmadapter.step.distributed import Ranks, _GatherRows, parallel
from rmadapter.step.train_step import TrainStep

NAMES = ["cat", "a rather long name of a bird", "dog", "guinea pig"]
RATES = (0.1, 0.05, 0.2, 0.2, 0.01)
BAD = (2, 13)  # steps whose images are not numbers


def make_step(tokenizer, device="cpu", dtype=torch.float32, shortcuts=None, chunks=None) -> TrainStep:
    clip = small_clip().to(device).requires_grad_(False)
    store_weights(clip, dtype)
    torch.manual_seed(0)
    config = RMAdapterConfig(layers="2-3", bottleneck=8, scale=0.1)
    shortcuts = shortcuts or StepConfig()
    model = RMAdapterCLIP(clip, tokenizer, NAMES, config=config, loss=LossConfig(1, 1, 1, 1), trim=shortcuts.trim)
    return TrainStep(model.train(), shortcuts, text_bytes=chunks, stream=torch.float32)


def batch(number: int, size: int = 4, device="cpu") -> StepInputs:
    generator = torch.Generator().manual_seed(number)
    images = torch.randn(size, 3, 32, 32, generator=generator)
    if number in BAD:
        images *= float("nan")
    return StepInputs((torch.arange(size) % len(NAMES)).to(device), images.to(device))


def sgd(step: TrainStep, fused: bool, momentum=0.9) -> torch.optim.SGD:
    parameters = step.model.adapted.adapter_tensors().values()
    return torch.optim.SGD(parameters, lr=1.0, momentum=momentum, weight_decay=0.01, fused=fused)


def no_scaler(device: str = "cpu") -> torch.amp.GradScaler:
    return torch.amp.GradScaler(device, enabled=False)


def w_down(step: TrainStep) -> list:
    return [p for name, p in step.model.adapted.adapter_tensors().items() if name.endswith("w_down")]


def weights(step: TrainStep) -> dict[str, torch.Tensor]:
    return {name: p.detach().cpu().clone() for name, p in step.model.adapted.adapter_tensors().items()}


def ordinary(step: TrainStep, rates=RATES, sizes=(4, 4, 4, 4, 4), momentum=0.9):
    """Weights after each step of the loop's ordinary kind, sums over those with a finite loss, last gradient norms."""
    optimizer, found = sgd(step, False, momentum), []
    losses, correct, images, norms = {}, 0, 0, {}
    for number, (lr, size) in enumerate(zip(rates, sizes, strict=True)):
        optimizer.param_groups[0]["lr"] = lr
        inputs = batch(number, size, step.model.prompts.tokens.device)
        logits, terms = step(inputs.images, inputs.labels)
        if math.isfinite(terms["total"].item()):
            norms = gradient_norms(terms, step.model.loss, w_down(step))
            optimizer.zero_grad()
            terms["total"].backward()
            optimizer.step()
            losses = {name: losses.get(name, 0) + value.item() for name, value in terms.items()}
            correct += int((logits.argmax(-1) == inputs.labels).sum())
            images += size
        found.append(weights(step))
    return found, losses, correct, images, {name: float(value) for name, value in norms.items()}


def assert_close(found: dict, expected: dict, tolerance=1e-6):
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=10 * tolerance, atol=tolerance, msg=lambda m, n=name: n + m)


# Each kind, and each way for images; the other pairs by make test-all.
KINDS = ("images", "views", "recomputed chunks", "nothing kept")
WAYS = {"": (False, 0.9), "scaled": (True, 0.9), "no momentum": (False, 0.0), "scaled, no momentum": (True, 0.0)}
CASES = [
    pytest.param(kind, *way, id=f"{kind}, {name}", marks=[pytest.mark.slow] * (kind != "images" and name != ""))
    for kind, (name, way) in product(KINDS, WAYS.items())
]


@pytest.mark.parametrize(("kind", "scaled", "momentum"), CASES)
def test_it_is_the_ordinary_step(tokenizer, kind, scaled, momentum):
    """Weights after every step with another learning rate each, one of them without a finite loss; sums and norms."""
    settings = {
        "recomputed chunks": {"chunks": 60_000},
        "nothing kept": {"shortcuts": StepConfig(text_prefix=False, frozen_targets=False, trim=False)},
    }.get(kind, {})
    expected, losses, correct, images, norms = ordinary(make_step(tokenizer, **settings), momentum=momentum)
    step = make_step(tokenizer, **settings)
    assert any(chunk.recompute for chunk in step.chunks) == (kind == "recomputed chunks")
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    device_step = DeviceStep(step, sgd(step, True, momentum), scaler, w_down(step))
    assert device_step.take_sums().steps == 0
    assert device_step.take_norms() == {}
    for number, lr in enumerate(RATES):
        inputs = batch(number)
        if kind == "views":
            inputs = StepInputs(inputs.labels, None, step.views(inputs.images))
        device_step.set_lr(lr)
        device_step(inputs, norms=True)
        finite = torch.isfinite(device_step.losses[device_step.names.index("total")])
        assert finite == (number not in BAD)
        assert_close(weights(step), expected[number])
    assert scaler.get_scale() == (2.0**15 if scaled else 1.0)  # a step that was skipped halves it
    sums = device_step.take_sums()
    assert sums.losses == pytest.approx(losses, rel=1e-5)
    assert (sums.correct, sums.images, sums.steps) == (correct, images, len(RATES) - 1)
    assert device_step.take_norms() == pytest.approx(norms, rel=1e-4)
    assert device_step.take_sums().steps == 0
    assert device_step.take_norms() == {}


def test_a_step_whose_gradient_is_not_finite_changes_nothing_and_is_not_counted(tokenizer):
    """Though its loss is; under the scaler, which makes some gradients too large, that is the scaler's affair."""
    step = make_step(tokenizer)
    device_step = DeviceStep(step, sgd(step, True), no_scaler(), w_down(step))
    device_step.set_lr(0.1)
    device_step(batch(0))
    before, momenta = (
        weights(step),
        [state["momentum_buffer"].clone() for state in device_step.optimizer.state.values()],
    )
    parameter = w_down(step)[-1]
    hook = parameter.register_hook(lambda gradient: gradient * float("inf"))
    device_step(batch(1))
    hook.remove()
    losses = dict(zip(device_step.names, device_step.losses.tolist(), strict=True))
    assert math.isfinite(losses["total"])
    assert losses[FINITE] == 0
    assert_close(weights(step), before, 0)
    assert all(map(torch.equal, momenta, (s["momentum_buffer"] for s in device_step.optimizer.state.values())))
    device_step(batch(3))
    assert device_step.losses[device_step.names.index(FINITE)] == 1
    assert device_step.take_sums().steps == 2


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("shortcuts", [StepConfig(), StepConfig(text_prefix=False, frozen_targets=False)])
def test_no_value_comes_to_the_host(tokenizer, scaled, shortcuts):
    step = make_step(tokenizer, shortcuts=shortcuts, chunks=150_000)
    device_step = DeviceStep(step, sgd(step, True), torch.amp.GradScaler("cpu", enabled=scaled), w_down(step))
    device_step(batch(0), norms=True)  # what is made once may
    # GradScaler alone asks the host on a CPU; on CUDA it passes tensors to the fused kernel.
    with NoHost():
        device_step(batch(1), norms=True)
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            float(device_step.lr + 1)


def test_an_optimizer_that_reads_its_rate_on_the_host_is_refused(tokenizer):
    step = make_step(tokenizer)
    with pytest.raises(ValueError, match="fused=True"):
        DeviceStep(step, sgd(step, False), no_scaler())


class CallingRecorder:
    """Stands for CUDA: a recording is the call itself, made again at each replay and not when it is recorded."""

    def __init__(self, device=None):
        self.runs, self.replays = 0, 0

    def run(self, call):
        self.runs += 1
        call()

    def record(self, call):
        def replay():
            self.replays += 1
            call()

        return replay


def test_each_layout_is_warmed_up_recorded_once_and_replayed_on_new_inputs(tokenizer):
    sizes = (4, 4, 4, 3, 4, 4, 3, 4)
    rates = [0.1 / (1 + number) for number in range(len(sizes))]
    expected = ordinary(make_step(tokenizer), rates, sizes)[0]
    step, recorder = make_step(tokenizer), CallingRecorder()
    graphed = GraphedStep(DeviceStep(step, sgd(step, True), no_scaler()), recorder)
    for number, (lr, size) in enumerate(zip(rates, sizes, strict=True)):
        graphed.step.set_lr(lr)
        graphed(batch(number, size))
        assert_close(weights(step), expected[number])
    assert graphed.recordings == 1
    assert recorder.runs == WARM_UP + 2
    assert recorder.replays == sizes.count(4) - WARM_UP


def test_norms_and_views_are_layouts_of_their_own(tokenizer):
    step = make_step(tokenizer)
    graphed = GraphedStep(DeviceStep(step, sgd(step, True), no_scaler(), w_down(step)), CallingRecorder())
    inputs = batch(0)
    views = StepInputs(inputs.labels, None, step.views(inputs.images))
    for _ in range(WARM_UP + 1):
        for kind in (inputs, views):
            for norms in (False, True):
                graphed(kind, norms)
    assert graphed.recordings == 4


def test_what_cannot_be_recorded_says_so(tokenizer):
    class Failing(CallingRecorder):
        def record(self, call):
            raise RuntimeError("operation not permitted when stream is capturing")

    step = make_step(tokenizer)
    graphed = GraphedStep(DeviceStep(step, sgd(step, True), no_scaler()), Failing())
    for _ in range(WARM_UP):
        graphed(batch(0))
    with pytest.raises(InputError, match="cannot be recorded: operation not permitted when stream is capturing"):
        graphed(batch(0))


def test_what_need_not_be_recorded_runs_as_it_is_where_it_cannot(tokenizer, capsys):
    class Failing(CallingRecorder):
        def record(self, call):
            raise RuntimeError("operation not permitted when stream is capturing\nmore of it")

    sizes = (4, 4, 4, 4, 4, 4)
    rates = [0.1 / (1 + number) for number in range(len(sizes))]
    expected = ordinary(make_step(tokenizer), rates, sizes)[0]
    step = make_step(tokenizer)
    graphed = GraphedStep(DeviceStep(step, sgd(step, True), no_scaler()), Failing(), needed=False)
    for number, lr in enumerate(rates):
        graphed.step.set_lr(lr)
        graphed(batch(number))
        assert_close(weights(step), expected[number])
    said = "the step cannot be recorded as a CUDA graph and runs as it is: operation not permitted when stream is"
    assert capsys.readouterr().out.count(said) == 1


def test_the_recorder_follows_pytorchs_recipe(monkeypatch):
    """Side stream around what is not recorded, waits on both sides, one pool, a capture that other threads may pass."""
    events = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            events.append(f"{self.name} waits for {other.name}")

    class Graph:
        def replay(self):
            events.append("replay")

    @contextlib.contextmanager
    def stream(chosen):
        events.append(f"on {chosen.name}")
        yield
        events.append(f"off {chosen.name}")

    @contextlib.contextmanager
    def graph(recorded, *, pool, stream, capture_error_mode):
        assert isinstance(recorded, Graph)
        events.append(f"record on {stream.name} in {pool}, {capture_error_mode}")
        yield
        events.append("recorded")

    fakes = {
        "Stream": lambda device: Stream("side"),
        "current_stream": lambda device: Stream("main" if device == torch.device("cuda", 1) else "of another GPU"),
        "stream": stream,
        "graph": graph,
        "CUDAGraph": Graph,
        "graph_pool_handle": lambda: "pool",
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    recorder = CudaRecorder(torch.device("cuda", 1))
    recorder.run(lambda: events.append("call"))
    assert events == ["side waits for main", "on side", "call", "off side", "main waits for side"]
    events.clear()
    replay = recorder.record(lambda: events.append("call"))
    assert events == ["record on side in pool, thread_local", "call", "recorded"]
    replay()
    assert events[-1] == "replay"

    def failing():
        raise RuntimeError("not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: events.append(f"back on {stream.name}"))
    with pytest.raises(RuntimeError, match="not permitted"):
        recorder.record(failing)
    assert events[-1] == "back on main"


def test_off_cuda_and_in_several_processes_it_is_refused():
    with pytest.raises(InputError, match="cuda_graphs is True, which needs a CUDA device, and device is cpu"):
        check_graphs(torch.device("cpu"), 1)
    with pytest.raises(InputError, match="cuda_graphs is True with 2 processes"):
        check_graphs(torch.device("cuda"), 2)
    check_graphs(torch.device("cuda"), 1)


@pytest.mark.gpu
@pytest.mark.telling
@pytest.mark.parametrize("compiled", [False, True], ids=["", "compiled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_recorded_on_a_gpu_it_trains_as_the_ordinary_step_does(tokenizer, dtype, compiled):
    """Twelve steps with a short batch every third, a bad one among the first and one in a replay."""
    sizes = [3 if number % 3 == 2 else 4 for number in range(15)]
    rates = [0.1 / (1 + number) for number in range(len(sizes))]
    expected = ordinary(make_step(tokenizer, "cuda", dtype), rates, sizes)[0]
    step = make_step(tokenizer, "cuda", dtype)
    if compiled:
        step.compile_parts()
    scaler = torch.amp.GradScaler("cuda", init_scale=256.0, enabled=dtype == torch.float16)
    graphed = GraphedStep(DeviceStep(step, sgd(step, True), scaler, w_down(step)), CudaRecorder(torch.device("cuda")))
    for number, (lr, size) in enumerate(zip(rates, sizes, strict=True)):
        graphed.step.set_lr(lr)
        graphed(batch(number, size, "cuda"), norms=number % 5 == 4)
        assert_close(weights(step), expected[number], {torch.float32: 1e-5}.get(dtype, 5e-3))
    assert graphed.recordings == 2
    assert graphed.step.take_sums().steps == len(sizes) - 2


@pytest.mark.parametrize(("device", "backend"), [("cpu", "gloo"), pytest.param("cuda", "nccl", marks=pytest.mark.gpu)])
def test_a_group_of_one_process_takes_the_ordinary_step(tokenizer, device, backend, monkeypatch):
    """Rows and their gradients are gathered, and the weights' gradients averaged, by the group's own collectives."""
    found = []
    for exchanged in (False, True):
        step = module = make_step(tokenizer, device)
        if exchanged:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
            monkeypatch.setattr(Ranks, "gather_rows", lambda self, rows, count: _GatherRows.apply(rows, self, count))
            module = parallel(step, step.model.config, step.model.loss)
        try:
            inputs = batch(0, device=device)
            losses = module(inputs.images, inputs.labels).losses
            losses["total"].backward()
        finally:
            if exchanged:
                dist.destroy_process_group()
        found.append([losses["total"].detach(), *(p.grad for p in step.model.adapted.adapter_tensors().values())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
