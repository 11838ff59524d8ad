"""What ``bench.step`` lets compete of a method: the plain step, each shortcut alone, all, and the floor under them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import fields, replace

import torch

from bench.step_methods import DEFAULT, Subject, names
from rmadapter.clip.backbone import Backbone
from rmadapter.config.shortcuts import StepConfig
from rmadapter.errors import InputError
from rmadapter.objectives.projection import project_gradients
from rmadapter.runtime import residual_dtype
from rmadapter.step.cuda_graphs import WARM_UP, CudaRecorder, GraphedStep
from rmadapter.step.device_step import DeviceStep, StepInputs
from rmadapter.step.plain import RMAdapterCLIP
from rmadapter.step.plan import Plan
from rmadapter.step.train_step import TrainStep
from rmadapter.tuners.adapted_clip import AdaptedCLIP
from rmadapter.tuners.image_encoder import ImageEncoder

ALONE = {
    f"only {f.name}": StepConfig(**{o.name: o.name == f.name for o in fields(StepConfig)}) for f in fields(StepConfig)
}
VIEWS = "all, views"
NO_RECONSTRUCTION = "all, no reconstruction"
COMPILED = "all, compiled"
BACKBONE = "backbone"
RECORDED = ", cuda graphs"
GRAPHS = "all" + RECORDED
COMPARED = ("plain", "all", VIEWS)
MAIN = (*COMPARED, NO_RECONSTRUCTION)
# What is also recorded as one CUDA graph.
ON_CUDA = tuple(name + RECORDED for name in ("all", VIEWS, NO_RECONSTRUCTION, COMPILED, BACKBONE))
CONTENDERS = (*MAIN, *ALONE, "floor", BACKBONE, COMPILED, *ON_CUDA)
CHECKED_CLASSES = 10


def unrecorded(name: str) -> str:
    """The contender that ``name`` is, or is a recording of."""
    return name.removesuffix(RECORDED)


class Contenders:
    """The contenders on one model in one precision, for one number of classes.

    Args:
        batch: images a step.
        backbone, adapted: the model, and ``subject`` in it.
        classes: number of them.
        precision: of the weights, or autocast.
        subject: the method; default: RMAdapter.
        text_bytes: memory for the activations of all prompts; None: without a bound.
    """

    def __init__(
        self,
        batch: int,
        backbone: Backbone,
        adapted: AdaptedCLIP,
        classes: int,
        precision: str,
        subject: Subject | None = None,
        text_bytes: int | None = None,
    ):
        self.classes, self.precision = classes, precision
        self.autocast = precision == "autocast"
        self.device = adapted.clip.logit_scale.device
        self.subject = subject or Subject.of(DEFAULT)
        self.tokenizer, self.loss, self.text_bytes = backbone.tokenizer, self.subject.config.loss, text_bytes
        stream = None if self.autocast else residual_dtype("auto", precision)
        self.stream = stream
        generator = torch.Generator().manual_seed(0)
        size = backbone.preprocessing.size
        views = (2,) if self.loss.reads_two_views else ()
        self.images = torch.randn(batch, *views, 3, size, size, generator=generator).to(self.device)
        self.labels = (torch.arange(batch) % classes).to(self.device)
        self.adapted = adapted
        self.calls: dict[str, Callable[[], object]] = {}
        self.warm: set[str] = set()  # those that have run
        self.plans: dict[str, Plan] = {}
        self.views = None

    def clear_gradients(self) -> None:
        """As before any step."""
        for parameter in self.adapted.trained().values():
            parameter.grad = None

    def applies(self, name: str) -> bool:
        """Whether the method has a step like contender ``name`` that is another one than ``all``."""
        if name in ON_CUDA and self.loss.projected:
            return False
        name = unrecorded(name)
        if name == BACKBONE:
            return any(self.adapted.adapters())
        if name == NO_RECONSTRUCTION:
            rebuilds = self.adapted.config.reconstruct and any(self.adapted.adapters())
            return rebuilds and self.loss.lambda1 + self.loss.lambda2 > 0
        if name == VIEWS:
            image = ImageEncoder(self.adapted)
            return image.first != 0 or image.begins_beside or self.loss.needs_image
        return True

    def shortcuts(self, name: str) -> StepConfig:
        """Those that contender ``name`` takes."""
        return StepConfig.none() if name == "plain" else ALONE.get(unrecorded(name), StepConfig())

    def call(self, name: str) -> Callable[[], object]:
        """One step of contender ``name``; made at first use."""
        if name not in self.calls:
            shortcuts, model = self.shortcuts(name), self._model(unrecorded(name))
            settings = {"stream": self.stream, "images": len(self.images), "text_bytes": self.text_bytes}
            step = model if name == "plain" else TrainStep(model, shortcuts, **settings)
            self.plans[name] = Plan.of(step, len(self.images))
            # Once a run, so in no step that is timed.
            if isinstance(step, TrainStep):
                if unrecorded(name) == COMPILED:
                    step.compile_parts()
                step.prepare()
            elif step.targets and step.loss.needs_text:
                step.frozen_text_features()
            if unrecorded(name) == VIEWS and self.views is None:
                self.views = step.views(self.images)
            self.calls[name] = self._made(step, name)
        return self.calls[name]

    def _made(self, step, name: str) -> Callable[[], object]:
        if name == "floor":
            return self._floor(step)
        if unrecorded(name) == BACKBONE:
            call = self._backbone(step)
            return self._replayed(call) if name in ON_CUDA else call
        return self._graphed(step, name) if name in ON_CUDA else self._training(step, name)

    def _model(self, name: str) -> RMAdapterCLIP:
        """The shared adapters on prompts and kept features that are this contender's own."""
        trim = self.shortcuts(name).trim
        rebuilt = name not in (NO_RECONSTRUCTION, BACKBONE)
        loss = self.loss if rebuilt else replace(self.loss, lambda1=0, lambda2=0)
        return RMAdapterCLIP(
            self.adapted,
            self.tokenizer,
            names(self.classes),
            self.subject.template,
            loss=loss,
            trim=trim,
            keep_targets=trim,
            target_templates=self.subject.targets,
        ).train()

    def _training(self, step, name: str) -> Callable[[], torch.Tensor]:
        # The model's switches belong to the adapters, which all contenders share. The call closes over what this one
        # step needs and nothing else: it is what ``held_bytes`` counts.
        arguments = (None, self.labels, self.views) if name == VIEWS else (self.images, self.labels)
        context = torch.autocast(self.device.type, torch.bfloat16) if self.autocast else contextlib.nullcontext()
        wanted = step.model.loss if isinstance(step, TrainStep) else step.loss
        adapted, parameters = self.adapted, list(self.adapted.trained().values())
        optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=0.9)

        def call() -> torch.Tensor:
            for tower, weight in (("vision", wanted.lambda1), ("text", wanted.lambda2)):
                adapted.set_reconstruction(tower, weight > 0)
            with context:
                losses = step(*arguments).losses
            optimizer.zero_grad(set_to_none=True)
            losses["total"].backward(retain_graph=wanted.projected > 0)
            if wanted.projected:
                project_gradients(losses["distillation"], parameters, wanted.projected)
            optimizer.step()
            return losses["total"].detach()

        return call

    def _graphed(self, step: TrainStep, name: str) -> Callable[[], torch.Tensor]:
        adapted, wanted = self.adapted, step.model.loss
        optimizer = torch.optim.SGD(adapted.trained().values(), lr=0.0, momentum=0.9, fused=True)
        scaler = torch.amp.GradScaler(self.device.type, enabled=False)
        graphed = GraphedStep(DeviceStep(step, optimizer, scaler), CudaRecorder(self.device))
        inputs = StepInputs(self.labels, self.images)
        if unrecorded(name) == VIEWS:
            inputs = StepInputs(self.labels, None, self.views)

        def call() -> torch.Tensor:
            for tower, weight in (("vision", wanted.lambda1), ("text", wanted.lambda2)):
                adapted.set_reconstruction(tower, weight > 0)
            # What is before the recording counts as warming up.
            for _ in range(1 if graphed.recordings else WARM_UP + 1):
                graphed(inputs)
            return graphed.step.losses[-1]  # the total

        return call

    def _backbone(self, step: TrainStep) -> Callable[[], torch.Tensor]:
        """The fast step without what its adapters do: frozen model, losses, gradients down to the first adapter."""
        leaves = []
        for encoder in (step.image, step.text):

            def left_alone(number, adapter_input, output, layout, reconstruct, encoder=encoder):
                if number == encoder.branches[0]:
                    output = output.detach().requires_grad_()
                    leaves.append(output)
                return output, output.new_empty(0)

            encoder._add = left_alone  # type: ignore[method-assign]
        images, labels = self.images, self.labels

        def call() -> torch.Tensor:
            leaves.clear()
            total = step(images, labels).losses["total"]
            torch.autograd.grad(total, leaves)
            return total.detach()

        return call

    def _replayed(self, call: Callable[[], object]) -> Callable[[], None]:
        recorder = CudaRecorder(self.device)
        replays: list[Callable[[], None]] = []

        def replayed() -> None:
            if not replays:
                for _ in range(WARM_UP):
                    recorder.run(call)
                try:
                    replays.append(recorder.record(call))
                except RuntimeError as error:
                    raise InputError(f"the step cannot be recorded: {error}") from error
            replays[0]()

        return replayed

    @torch.no_grad()
    def _floor(self, step: TrainStep) -> Callable[[], object]:
        """The frozen blocks above the first adapter alone, forward, at the tokens and chunks of the fast step."""
        entry = step.image.begin(self.images)
        prompts = step._classes

        @torch.no_grad()
        def call() -> None:
            for piece in step.pieces(entry):
                step.image.frozen(piece, step.image.layout)
            for classes in prompts:
                step.text.frozen(classes.entry, classes.layout)

        return call


def check(batch: int, backbone: Backbone, adapted: AdaptedCLIP, graphs: bool = False, subject: Subject | None = None):
    """Fast and plain step have the same losses and gradients, in fp32; with ``graphs`` the recorded step too.

    Gradients without consistency: it is an L1 distance, and where a fresh adapter moves a feature by less than its
    rounding, the sign that is its gradient is that of the rounding.

    Args:
        batch, backbone, adapted, subject: as in ``Contenders``; ten classes, no dropout.

    Raises:
        RuntimeError: they differ.
    """
    subject = subject or Subject.of(DEFAULT)
    compared = (*COMPARED, *(name for name in ON_CUDA if unrecorded(name) in COMPARED)) if graphs else COMPARED
    near = replace(subject.config.loss, lambda3=0, lambda4=0)
    for loss, tensors in ((near, True), (subject.config.loss, False)):
        contenders = Contenders(batch, backbone, adapted, CHECKED_CLASSES, "fp32", subject.with_loss(loss))
        found = {}
        for name in filter(contenders.applies, compared):
            try:
                value = contenders.call(name)()
            except InputError as error:
                print(f"{subject.name}: {name}, not compared: {error}", flush=True)
                continue
            gradients = [p.grad.clone() for p in adapted.trained().values() if p.grad is not None]
            found[name] = [value, *(gradients if tensors else [])]
        plain = found.pop("plain")
        for name, values in found.items():
            for one, other in zip(values, plain, strict=True):
                error = (one - other).norm() / other.norm()
                if error > 1e-3:
                    raise RuntimeError(f"{subject.name}: {name} and plain differ by {error:.1e}")
    print(f"{subject.name}: fast and plain step agree", flush=True)
