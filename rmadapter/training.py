"""Training: from a checked configuration to an adapter, its metrics and its accuracy."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from rmadapter.backbone import Backbone, base_hash, load_backbone, store_backbone
from rmadapter.checkpoint import save_adapter
from rmadapter.config import TrainConfig
from rmadapter.data import (
    EpochBatches,
    FewShotSample,
    ImageData,
    Item,
    TrainImages,
    base_new_names,
    base_new_split,
    check_images,
    few_shot_sample,
    load_data,
    train_transform,
)
from rmadapter.encoders import Encoders
from rmadapter.errors import InputError
from rmadapter.evaluation import Loading, describe, evaluate_parts
from rmadapter.files import write_json
from rmadapter.injection import inject
from rmadapter.losses import gradient_norms
from rmadapter.model import RMAdapterCLIP
from rmadapter.plan import Plan, make_step, text_budget, wanted_shortcuts
from rmadapter.results import FORMAT
from rmadapter.run_folder import MetricsLog, RunFolder, State
from rmadapter.runtime import (
    DTYPES,
    FiniteFlag,
    choose_backend,
    environment,
    residual_dtype,
    resolve_device,
    resolve_precision,
)
from rmadapter.step import TrainStep

REMEDY = "A smaller --lr, or smaller --loss.lambda1 and --loss.lambda2, keeps it finite: lr times lambda decides"


class DivergedError(RuntimeError):
    """The loss is not finite too often; the message names the last such batch and what usually helps."""


def train(config: TrainConfig) -> dict[str, Any]:
    """Run ``config`` from start, or from where its folder stopped, to the end; returns what results.json holds.

    With ``explain`` it prints how the step is planned, trains nothing and returns nothing.

    Raises:
        InputError: anything in the configuration, the data or the folder that cannot work, before training.
        DivergedError: the loss was not finite at more than ``max_bad_steps`` steps.
    """
    folder = RunFolder(config.run_folder)
    folder.check(config)
    if config.resume and (done := folder.results()) is not None:
        print(f"the run in {folder.path} is finished; its results: {folder.results_file}\n{describe(done)}")
        return done
    device = resolve_device(config.device)
    precision = resolve_precision(config.precision, device)
    data = load_data(config.data, config.data_root)
    for note in data.notes:
        print(note)
    sample, items, names = _few_shot(config, data)
    backbone = load_backbone(config.model, config.pretrained, device)
    model, backend = _make_model(config, backbone, names, precision)
    state = folder.load_state() if config.resume else None
    # The chunks of classes depend on it, and the last bits on the chunks: a resumed run takes what it began with.
    text_bytes = state.values["text_bytes"] if state is not None else text_budget(config, device)
    step, sentence = make_step(model, config, precision, text_bytes)
    print(sentence)
    if config.explain:
        print(Plan.of(step, config.batch_size))
        return {}
    run = _Run(config, model, step, items, data, backbone, device, precision, text_bytes)
    if state is not None:
        run.restore(state)
        print(f"resuming at epoch {run.epoch + 1}, step {run.step_in_epoch} of {run.steps_per_epoch}")
    elif config.resume:
        print(f"nothing to resume in {folder.path}, starting")

    folder.prepare(config)
    write_json(folder.environment_file, {**environment(device), "backend": backend, "precision": precision})
    sample.save(folder.sample_file)
    run.fit(folder)
    training = {
        "method": config.method,
        "data": data.name,
        "classes": config.classes,
        "shots": config.shots,
        "seed": config.seed,
    }
    save_adapter(model.adapted, folder.adapter, class_names=names, template=config.template, training=training)
    results = _results(config, run, backend, _evaluate(config, run) if config.evaluate else None)
    write_json(folder.results_file, results)
    folder.remove_state()
    if config.evaluate:
        print(describe(results))
    print(f"adapter: {folder.adapter}\nresults: {folder.results_file}")
    return results


def _few_shot(config: TrainConfig, data: ImageData) -> tuple[FewShotSample, list[Item], list[str]]:
    """The few-shot sample over all classes, and of it the chosen part's training items and class names."""
    names = base_new_names(data.class_names, config.classes)
    if len(names) < 2:
        raise InputError(
            f"classes is {config.classes!r}, which leaves {len(names)} of {len(data.class_names)} classes; "
            "valid: a part with at least two"
        )
    left_out: set[str] = set()
    while True:
        # Drawn again without the unreadable images, so that every class gets its shots where it has them.
        candidates = [item for item in data.train if item.path not in left_out]
        train_items, val_items = few_shot_sample(candidates, data.val, config.shots, config.seed)
        _, bad = check_images(data.root, train_items, skip_bad=config.skip_bad_images)
        if not bad:
            break
        left_out |= {path for path, _ in bad}
    if left_out:
        print(f"{len(left_out)} unreadable training images left out, such as {min(left_out)}")
    sample = FewShotSample(train_items, val_items, config.shots, config.seed, data.name)
    return sample, base_new_split(train_items, config.classes), names


def _make_model(config: TrainConfig, backbone: Backbone, names: list[str], precision: str) -> tuple[RMAdapterCLIP, str]:
    """The model with fresh adapters from the seed, and the name of their backend."""
    store_backbone(backbone.clip, DTYPES[precision])
    torch.manual_seed(config.seed)
    adapted = inject(backbone.clip, config.adapter, source=backbone.source)
    print(adapted.summary())
    backend, sentence = choose_backend(adapted, config.fused, config.backend)
    print(sentence)
    if config.grad_checkpointing:
        backbone.clip.set_grad_checkpointing(True)
    shortcuts = wanted_shortcuts(config)
    model = RMAdapterCLIP(
        adapted,
        backbone.tokenizer,
        names,
        config.template,
        loss=config.loss,
        trim=shortcuts.trim,
        keep_targets=shortcuts.frozen_targets,
    )
    if shortcuts.any:
        stream = residual_dtype(config.residual, precision)
        model.encoders = Encoders.of(adapted, by_token=shortcuts.last_token, stream=stream)
    return model.train(), backend


@dataclass
class _Means:
    """Means over some steps. Sums stay on the device until they are read, so that no step waits for them."""

    sums: dict[str, Tensor | float] = field(default_factory=dict)
    correct: Tensor | int = 0
    images: int = 0
    steps: int = 0

    def add(self, losses: dict[str, Tensor], logits: Tensor, labels: Tensor) -> None:
        for name, value in losses.items():
            name = "loss" if name == "total" else name
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.correct = self.correct + (logits.argmax(-1) == labels).sum()
        self.images += len(labels)
        self.steps += 1

    def values(self) -> dict[str, float]:
        """Each mean by its name; nothing where no step has been added."""
        means = {name: float(value) / self.steps for name, value in self.sums.items()}
        return {**means, "accuracy": 100 * int(self.correct) / self.images} if self.images else {}

    def plain(self) -> dict[str, Any]:
        """The fields as plain values, for the state file."""
        sums = {name: float(value) for name, value in self.sums.items()}
        return {"sums": sums, "correct": int(self.correct), "images": self.images, "steps": self.steps}


class _Run:
    """The state of a run between its start and its end, and the loop over it."""

    def __init__(
        self,
        config: TrainConfig,
        model: RMAdapterCLIP,
        step: RMAdapterCLIP | TrainStep,
        items: list[Item],
        data: ImageData,
        backbone: Backbone,
        device: torch.device,
        precision: str,
        text_bytes: int,
    ):
        self.config, self.model, self.items, self.data, self.backbone = config, model, items, data, backbone
        self.device, self.precision, self.text_bytes = device, precision, text_bytes
        self.forward = step
        self.parameters = model.adapted.adapter_tensors()
        self.optimizer = torch.optim.SGD(
            self.parameters.values(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=config.epochs)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.steps_per_epoch = math.ceil(len(items) / config.batch_size)
        self.epoch, self.step_in_epoch = 0, 0
        self.metrics_length, self.seconds, self.bad_steps = 0, 0.0, 0
        self.since_line, self.since_epoch = _Means(), _Means()
        self.base_hash = base_hash(backbone.clip)

    @property
    def step(self) -> int:
        """Steps taken so far, over all epochs."""
        return self.epoch * self.steps_per_epoch + self.step_in_epoch

    def state(self) -> State:
        """What a resumed run needs; randomness is a function of (seed, epoch, index) and needs nothing."""
        tensors = {f"adapter.{name}": p.detach() for name, p in self.parameters.items()}
        for name, parameter in self.parameters.items():
            momentum = self.optimizer.state[parameter].get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum.{name}"] = momentum
        values = {
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "metrics_length": self.metrics_length,
            "seconds": self.seconds,
            "bad_steps": self.bad_steps,
            "text_bytes": self.text_bytes,
            "since_line": self.since_line.plain(),
            "since_epoch": self.since_epoch.plain(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "threads": torch.get_num_threads(),
            "base_hash": self.base_hash,
            "items": [list(item) for item in self.items],
        }
        return State(tensors, values)

    def restore(self, state: State) -> None:
        """Go on from ``state``; InputError where it does not fit this run."""
        values = state.values
        if values["base_hash"] != self.base_hash:
            raise InputError("the base model's weights are not those that this run began with")
        if values["items"] != [list(item) for item in self.items]:
            raise InputError("the few-shot sample is not the one that this run began with; has the data changed?")
        if values["threads"] != torch.get_num_threads():
            print(
                f"this run began with {values['threads']} threads and goes on with {torch.get_num_threads()}: "
                "it will not be bit-equal to an uninterrupted one"
            )
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state.tensors[f"adapter.{name}"])
                if (momentum := state.tensors.get(f"momentum.{name}")) is not None:
                    self.optimizer.state[parameter]["momentum_buffer"] = momentum.to(self.device)
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(values["scaler"])
        self.epoch, self.step_in_epoch = values["epoch"], values["step_in_epoch"]
        self.metrics_length, self.seconds = values["metrics_length"], values["seconds"]
        self.bad_steps = values["bad_steps"]
        self.since_line, self.since_epoch = _Means(**values["since_line"]), _Means(**values["since_epoch"])
        self.schedule.load_state_dict(values["schedule"])
        self.optimizer.param_groups[0]["lr"] = self.schedule.get_last_lr()[0]

    def fit(self, folder: RunFolder) -> None:
        """Train to the last epoch, logging and saving the state on the way."""
        log = MetricsLog(folder.metrics_file, self.metrics_length)
        transform = train_transform(
            self.backbone.preprocessing, self.config.augmentation, min_crop=self.config.min_crop
        )
        images = TrainImages(self.data.root, self.items, transform, self.config.seed)
        bar = tqdm(
            total=self.config.epochs * self.steps_per_epoch,
            initial=self.step,
            unit="step",
            disable=not sys.stderr.isatty(),
        )
        try:
            while self.epoch < self.config.epochs:
                self._epoch(images, log, folder, bar)
        finally:
            bar.close()
            log.close()

    def _batches(self, images: TrainImages) -> Iterator[tuple[Tensor, Tensor]]:
        batches = EpochBatches(
            len(images), self.config.batch_size, self.config.seed, self.epoch, start=self.step_in_epoch
        )
        pinned = self.device.type == "cuda"
        # A generator of its own: the loader draws its workers' seeds from it, not from torch's global one.
        loader = DataLoader(
            images,
            batch_sampler=batches,
            num_workers=self.config.workers,
            pin_memory=pinned,
            generator=torch.Generator(),
        )
        for batch, labels in loader:
            yield batch.to(self.device, non_blocking=pinned), labels.to(self.device, non_blocking=pinned)

    def _epoch(self, images: TrainImages, log: MetricsLog, folder: RunFolder, bar: tqdm) -> None:
        config = self.config
        began = time.perf_counter()
        before = self.seconds
        seen = 0
        norms: dict[str, float] = {}
        for batch, labels in self._batches(images):
            wants_norms = config.grad_norm_every and self.step % config.grad_norm_every == 0
            norms |= self._step(batch, labels, wants_norms)
            self.step_in_epoch += 1
            seen += len(labels)
            self.seconds = before + time.perf_counter() - began
            rate = seen / (self.seconds - before)
            if self.step % config.log_every == 0 or self.step_in_epoch == self.steps_per_epoch:
                means = self.since_line.values()
                line = {
                    "kind": "step",
                    "epoch": self.epoch + 1,
                    "step": self.step,
                    "lr": self.schedule.get_last_lr()[0],
                    **({"bad_steps": self.bad_steps} if self.bad_steps else {}),
                }
                log.write({**line, **means, "images_per_second": rate, **norms})
                self.since_line, norms = _Means(), {}
                if means:
                    found = f"loss {means['loss']:.3f}, accuracy {means['accuracy']:.0f} %, {rate:.1f} images/s"
                    bar.set_postfix_str(found, refresh=False)
            bar.update()
            if config.checkpoint_every and self.step % config.checkpoint_every == 0:
                self.metrics_length = log.length
                folder.save_state(self.state())
        means = self.since_epoch.values()
        if not means:
            raise DivergedError(f"the loss is not finite at any step of epoch {self.epoch + 1}. {REMEDY}")
        log.write({"kind": "epoch", "epoch": self.epoch + 1, "step": self.step, **means})
        self.since_epoch = _Means()
        self.epoch, self.step_in_epoch = self.epoch + 1, 0
        self.schedule.step()
        self.metrics_length = log.length
        folder.save_state(self.state())
        tqdm.write(
            f"epoch {self.epoch} of {config.epochs}: loss {means['loss']:.4f}, accuracy {means['accuracy']:.1f} %, "
            f"{self.seconds:.1f} s",
            file=sys.stdout,
        )

    def _step(self, images: Tensor, labels: Tensor, wants_norms: bool) -> dict[str, float]:
        """One step of the optimizer, skipped where the loss is not finite; returns the gradient norms if wanted."""
        output = self.forward(images, labels)
        finite = FiniteFlag(output.losses["total"])
        norms = {}
        if wants_norms:
            w_down = [p for name, p in self.parameters.items() if name.endswith(".w_down")]
            norms = gradient_norms(output.losses, self.config.loss, w_down)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(output.losses["total"]).backward()
        if not finite:
            self._count_bad_step(output.losses)
            return {}
        self.scaler.step(self.optimizer)
        self.scaler.update()
        losses = {name: value.detach() for name, value in output.losses.items()}
        for means in (self.since_line, self.since_epoch):
            means.add(losses, output.logits.detach(), labels)
        return norms

    def _count_bad_step(self, losses: dict[str, Tensor]) -> None:
        self.bad_steps += 1
        if self.bad_steps <= self.config.max_bad_steps:
            return
        size, seed = self.config.batch_size, self.config.seed
        batch = next(iter(EpochBatches(len(self.items), size, seed, self.epoch, start=self.step_in_epoch)))
        names = ", ".join(self.items[index].path for _, index in batch)
        parts = ", ".join(f"{name} {value.item():.3g}" for name, value in losses.items())
        raise DivergedError(
            f"the loss is not finite at step {self.step + 1} ({parts}), after {self.bad_steps - 1} such steps that "
            f"were skipped; its images: {names}. {REMEDY}; --max-bad-steps allows more"
        )


def _evaluate(config: TrainConfig, run: _Run) -> dict[str, Any]:
    """Accuracy on the test images: of base and new after training on base, else of the part trained on."""
    loading = Loading(
        run.backbone.preprocessing, config.eval_batch_size, config.workers, skip_bad=config.skip_bad_images
    )
    parts = ("base", "new") if config.classes == "base" and len(run.data.class_names) > 3 else (config.classes,)
    began = time.perf_counter()
    found = evaluate_parts(run.model, run.data, parts, loading)
    return {**found, "seconds": time.perf_counter() - began}


def _results(config: TrainConfig, run: _Run, backend: str, found: dict[str, Any] | None) -> dict[str, Any]:
    found = found or {"accuracy": {}, "images": {}, "skipped": 0, "seconds": None}
    return {
        "format": FORMAT,
        "method": config.method,
        "data": run.data.name,
        "model": config.model,
        "pretrained": config.pretrained,
        "shots": config.shots,
        "seed": config.seed,
        "classes": config.classes,
        "split": "test",
        "accuracy": found["accuracy"],
        "images": found["images"],
        "skipped": found["skipped"],
        "bad_steps": run.bad_steps,
        "trained_parameters": sum(p.numel() for p in run.parameters.values()),
        "seconds": {"train": run.seconds, "eval": found["seconds"]},
        "backend": backend,
        "precision": run.precision,
        "device": str(run.device),
        "few_shot_hash": json.loads((config.run_folder / "few_shot.json").read_text())["hash"],
    }
