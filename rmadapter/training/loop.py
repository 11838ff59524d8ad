"""The loop of a training run: steps, metrics, the resumable state."""

from __future__ import annotations

import sys
import time

import torch
from torch import Tensor, nn
from tqdm import tqdm

from rmadapter.clip.backbone import Backbone
from rmadapter.clip.classifier import Output
from rmadapter.config import TrainConfig
from rmadapter.data import ImageData, Item, Read, TrainImages, train_transform
from rmadapter.data.loading import drawn_number, seed_dropout
from rmadapter.data.sentences import sentences_hash
from rmadapter.errors import InputError
from rmadapter.objectives.losses import gradient_norms
from rmadapter.objectives.projection import project_gradients
from rmadapter.step.batches import Batch, TrainBatches, Waited
from rmadapter.step.cuda_graphs import CudaRecorder, GraphedStep
from rmadapter.step.device_step import FINITE, DeviceStep, StepInputs, largest_gradient
from rmadapter.step.distributed import Ranks, parallel
from rmadapter.step.plain import RMAdapterCLIP
from rmadapter.step.train_step import TrainStep, Views
from rmadapter.training.arriving import Arriving
from rmadapter.training.means import Means
from rmadapter.training.metrics_log import MetricsLog
from rmadapter.training.recipe import BestEpoch, EpochMean, epochs_of, make_optimizer, make_schedule, steps_of
from rmadapter.training.run_errors import diverged_at, memory_full, nothing_finite
from rmadapter.training.run_folder import RunFolder, State
from rmadapter.training.validation import Validation

# Waiting for the loader is said from this share of an epoch on; less is the start of its workers.
SAID_WAITING = 0.2


class TrainingLoop:
    """The state of a run between its start and its end, and the loop over it."""

    def __init__(
        self,
        config: TrainConfig,
        model: RMAdapterCLIP,
        step: RMAdapterCLIP | TrainStep,
        items: list[Item],
        data: ImageData,
        read: Read,
        backbone: Backbone,
        device: torch.device,
        precision: str,
        text_bytes: int,
        ranks: Ranks,
        validation: Validation | None = None,
        graphs_needed: bool = True,
    ):
        self.config, self.model, self.items, self.data, self.backbone = config, model, items, data, backbone
        self.read = read
        self.device, self.precision, self.text_bytes = device, precision, text_bytes
        self.step_module, self.ranks = step, ranks
        self.base_hash = backbone.base_hash
        self.batches = self._make_batches()
        self.parameters = model.adapted.trained()  # none for what is only filled, of which there are no epochs
        shared = ranks.world > 1 and self.parameters
        self.forward = parallel(step, config.adapter, config.loss) if shared else step
        # Two states while one replaces the other, each with weights and momentum in fp32, and 1 MiB for what is small.
        self.bytes_written = 16 * sum(p.numel() for p in self.parameters.values()) + 2**20
        self.optimizer = make_optimizer(config, self.parameters.values())
        self.steps_per_epoch = self.batches.steps_per_epoch
        self.epochs = epochs_of(config, self.steps_per_epoch) if self.parameters else 0
        self.steps = steps_of(config, self.steps_per_epoch) if self.parameters else 0
        self.schedule = make_schedule(config, self.optimizer, self.steps_per_epoch)
        self.kept = self._make_kept(validation)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.epoch, self.step_in_epoch = 0, 0
        self.metrics_length, self.seconds, self.bad_steps = 0, 0.0, 0
        self.since_line, self.since_epoch = Means(), Means()
        self.norms: dict[str, float] = {}
        self._draws_dropout = any(model.adapted.sites(tower).random for tower in ("vision", "text"))
        self.graphed = self._make_graphed(graphs_needed) if config.cuda_graphs else None
        # Losses of the last step from a recording, its epoch and its number there; judged when the next is under way.
        self._unjudged: tuple[Arriving, int, int] | None = None

    @property
    def step(self) -> int:
        """Steps taken so far, over all epochs."""
        return self.epoch * self.steps_per_epoch + self.step_in_epoch

    @property
    def sentences_hash(self) -> str | None:
        """Of the sentences that the losses compare with, or None."""
        return sentences_hash(self.model.sentences) if self.model.draws else None

    @property
    def text_bound(self) -> int | None:
        """The bound on the prompts' memory where it decides the last bits, since not all of them fit in it."""
        return self.step_module.text_bound if isinstance(self.step_module, TrainStep) else None

    def state(self) -> State:
        """What a resumed run needs; randomness is a function of (seed, epoch, index) and needs nothing."""
        tensors = {f"adapter.{name}": tensor.detach() for name, tensor in self.model.adapted.adapter_tensors().items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                if value is not None:  # momentum, or of Adam its moments and the number of its steps
                    tensors[f"optimizer.{key}.{name}"] = value
        if self.kept is not None:
            tensors |= {f"kept.{name}": value for name, value in self.kept.tensors.items()}
        values = {
            "kept": {} if self.kept is None else self.kept.values,
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "metrics_length": self.metrics_length,
            "seconds": self.seconds,
            "bad_steps": self.bad_steps,
            "norms": self.norms,
            "text_bytes": self.text_bytes,
            "since_line": self.since_line.plain(self.ranks),
            "since_epoch": self.since_epoch.plain(self.ranks),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "threads": torch.get_num_threads(),
            "base_hash": self.base_hash,
            "precision": self.precision,
            "items": [list(item) for item in self.items],
            "sentences": self.sentences_hash,
        }
        return State(tensors, values)

    def restore(self, state: State) -> None:
        """Go on from ``state``; InputError where it does not fit this run."""
        values = state.values
        if missing := self.state().values.keys() - values.keys():
            raise InputError(
                f"this run was stopped under another version, whose state lacks {', '.join(sorted(missing))}; valid: "
                "that version, --overwrite, or another --out"
            )
        if values["base_hash"] != self.base_hash:
            raise InputError("the base model's weights are not those that this run began with")
        if values["items"] != [list(item) for item in self.items]:
            raise InputError("the few-shot sample is not the one that this run began with; has the data changed?")
        if values["sentences"] != self.sentences_hash:
            raise InputError(
                f"the sentences in {self.config.loss.sentences} are not those that this run began with; valid with "
                "--resume: the same file as then, or another --out"
            )
        if values["precision"] != self.precision:
            raise InputError(
                f"precision is {self.precision!r} here, but this run began with {values['precision']!r}; valid: "
                "--resume on a device of that kind, or another --out"
            )
        if values["text_bytes"] != self.text_bytes:
            print(
                f"this run began with {values['text_bytes'] / 1e9:.2f} GB for the prompts' activations and goes on "
                f"with {self.text_bytes / 1e9:.2f} GB: it may not be bit-equal to an uninterrupted one"
            )
        if values["threads"] != torch.get_num_threads():
            print(
                f"this run began with {values['threads']} threads and goes on with {torch.get_num_threads()}: "
                "it will not be bit-equal to an uninterrupted one"
            )
        with torch.no_grad():
            for name, tensor in self.model.adapted.adapter_tensors().items():
                tensor.copy_(state.tensors[f"adapter.{name}"])
            for kept, tensor in state.tensors.items():
                kind, _, rest = kept.partition(".")
                if kind == "optimizer":
                    key, _, name = rest.partition(".")
                    place = "cpu" if key == "step" and not self.config.cuda_graphs else self.device
                    self.optimizer.state[self.parameters[name]][key] = tensor.to(place)
                elif kind == "kept" and self.kept is not None:
                    self.kept.tensors[rest] = tensor.to(self.device)
        if self.kept is not None:
            self.kept.values = values["kept"]
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(values["scaler"])
        self.epoch, self.step_in_epoch = values["epoch"], values["step_in_epoch"]
        self.metrics_length, self.seconds = values["metrics_length"], values["seconds"]
        self.bad_steps, self.norms = values["bad_steps"], values["norms"]
        self.since_line, self.since_epoch = (
            Means.restored(values[name], self.ranks) for name in ("since_line", "since_epoch")
        )
        self.schedule.load_state_dict(values["schedule"])
        self.optimizer.param_groups[0]["lr"] = self.schedule.get_last_lr()[0]

    def _make_batches(self) -> TrainBatches:
        """The training images in batches, with a cache of views where they are wanted."""
        config = self.config
        transform = train_transform(self.backbone.preprocessing, config.augmentation, min_crop=config.min_crop)
        images = TrainImages(self.read, self.items, transform, config.seed, config.loss.reads_two_views)
        cache = None
        if config.views:
            from rmadapter.step import view_cache  # needs a system with file locks

            assert isinstance(self.step_module, TrainStep)  # views are kept for its image prefix alone
            contents = (self.data.content(item.path) for item in self.items)
            key = view_cache.cache_key(self.step_module, self.base_hash, transform, contents, config.seed)
            cache = view_cache.open_cache(self.step_module, config, len(images), key, self.ranks)
        return TrainBatches(
            images,
            config.batch_size,
            config.seed,
            config.workers,
            self.device,
            cache=cache,
            ranks=self.ranks,
            drop_last=config.drop_last,
        )

    def _make_kept(self, validation: Validation | None) -> EpochMean | BestEpoch | None:
        """What is made of the epochs' weights where the last ones are not the result."""
        if self.config.average is not None:
            return EpochMean(self.config.average, self.epochs)
        if self.config.select == "last" or validation is None:
            return None
        # The mean over all processes, so that all keep the same epoch.
        return BestEpoch(lambda: float(self.ranks.mean(torch.tensor(validation.accuracy(), dtype=torch.float64))))

    def _make_graphed(self, needed: bool) -> GraphedStep:
        assert isinstance(self.step_module, TrainStep)  # the plan has looked
        assert isinstance(self.optimizer, torch.optim.SGD)  # so has the plan
        step = DeviceStep(self.step_module, self.optimizer, self.scaler, self._measured)
        return GraphedStep(step, CudaRecorder(self.device), needed)

    @property
    def _measured(self) -> list[nn.Parameter]:
        """The weights whose gradients' norms are logged: those that the adapters' branches share, else all."""
        return [p for name, p in self.parameters.items() if name.endswith(".w_down")] or [*self.parameters.values()]

    def fit(self, folder: RunFolder) -> None:
        """Train to the last epoch, logging and saving the state on the way."""
        log = MetricsLog(folder.metrics_file, self.metrics_length) if self.ranks.main else None
        bar = tqdm(
            total=self.steps,
            initial=self.step,
            unit="step",
            disable=not sys.stderr.isatty() or not self.ranks.main,
        )
        try:
            while self.epoch < self.epochs:
                self._epoch(log, folder, bar)
            if self.kept is not None and self.epochs:
                self.kept.write(self.parameters)
        except torch.OutOfMemoryError as error:
            raise memory_full(
                error, self.step_module, self.ranks.most(self.config.batch_size), self.device, self.graphed is not None
            ) from error
        finally:
            bar.close()
            if log is not None:
                log.close()

    def _epoch(self, log: MetricsLog | None, folder: RunFolder, bar: tqdm) -> None:
        config = self.config
        began = time.perf_counter()
        before = self.seconds
        seen = 0
        batches = Waited(self.batches.epoch(self.epoch, self.step_in_epoch))
        for batch in batches:
            wants_norms = config.grad_norm_every > 0 and self.step % config.grad_norm_every == 0
            self.norms |= self._step(batch, wants_norms)
            self.step_in_epoch += 1
            seen += batch.total
            self.seconds = before + time.perf_counter() - began
            rate = seen / (self.seconds - before)
            if self.step % config.log_every == 0 or self.step_in_epoch == self.steps_per_epoch:
                self._settle()
                means = self.since_line.values(self.ranks)
                line = {
                    "kind": "step",
                    "epoch": self.epoch + 1,
                    "step": self.step,
                    "lr": self.schedule.get_last_lr()[0],
                    **({"bad_steps": self.bad_steps} if self.bad_steps else {}),
                }
                if log is not None:
                    log.write({**line, **means, "images_per_second": rate, **self.norms})
                self.since_line, self.norms = Means(), {}
                if means:
                    found = f"loss {means['loss']:.3f}, accuracy {means['accuracy']:.0f} %, {rate:.1f} images/s"
                    bar.set_postfix_str(found, refresh=False)
            bar.update()
            if config.decay == "step":
                self.schedule.step()
            if self.step >= self.steps:
                break
            if config.checkpoint_every and self.step % config.checkpoint_every == 0:
                self._save_state(folder, log)
        means = self.since_epoch.values(self.ranks)
        if not means:
            raise nothing_finite(self.epoch + 1)
        said = {} if self.kept is None else self.kept.add(self.epoch, self.parameters)
        if log is not None:
            log.write({"kind": "epoch", "epoch": self.epoch + 1, "step": self.step, **means, **said})
        self.since_epoch = Means()
        self.epoch, self.step_in_epoch = self.epoch + 1, 0
        if self.config.decay == "epoch":
            self.schedule.step()
        self._save_state(folder, log)
        waited = batches.seconds / (time.perf_counter() - began)
        waiting = f"; {waited:.0%} of the epoch waiting for images" if waited > SAID_WAITING else ""
        tqdm.write(
            f"epoch {self.epoch} of {self.epochs}: loss {means['loss']:.4f}, accuracy {means['accuracy']:.1f} %, "
            f"{self.seconds:.1f} s{waiting}",
            file=sys.stdout,
        )

    def _save_state(self, folder: RunFolder, log: MetricsLog | None) -> None:
        self._settle()
        if log is not None:
            self.metrics_length = log.length
        state = self.state()  # every process, since means are taken over all
        if self.ranks.main:
            folder.save_state(state)

    def views(self, batch: Batch) -> Views | None:
        """Those of the batch where views are kept; what the frozen model sees for the first time is added to them."""
        views = batch.views
        if views is None and self.batches.cache is not None:
            assert isinstance(self.step_module, TrainStep)
            assert batch.images is not None  # what is not in the cache comes as images
            views = self.step_module.views(batch.images)
            self.batches.cache.write(batch.view, batch.numbers, views)
        return views

    def _output(self, batch: Batch) -> Output:
        """Logits and losses."""
        if not isinstance(self.step_module, TrainStep):
            return self.forward(batch.images, batch.labels, self._drawn())
        share = batch.count * self.ranks.world / batch.total
        return self.forward(batch.images, batch.labels, self.views(batch), share, self._drawn())

    def _drawn(self) -> Tensor | None:
        """Which sentence of every class this step compares with, the same in all processes; None without sentences."""
        if not self.model.draws:
            return None
        number = drawn_number(self.config.seed, self.epoch, self.step_in_epoch, len(self.model.sentences))
        return torch.full((), number, dtype=torch.int64, device=self.device)

    def _step(self, batch: Batch, wants_norms: bool) -> dict[str, float]:
        """One step of the optimizer, skipped where loss or gradient is not finite; the gradient norms if wanted."""
        if self._draws_dropout:
            seed_dropout(self.device, self.config.seed, self.epoch, self.step_in_epoch, self.ranks.rank)
        if self.graphed is not None:
            self._graphed_step(batch, wants_norms)
            return {}
        output = self._output(batch)
        # The mean over all processes, so that all skip the same steps; gradients are their means already.
        total = self.ranks.mean(output.losses["total"]).detach()
        norms = {}
        if wants_norms:
            found = gradient_norms(output.losses, self.config.loss, self._measured, self.ranks.mean)
            norms = {name: float(value) for name, value in found.items()}
        self.optimizer.zero_grad(set_to_none=True)
        projected = self.config.loss.projected
        self.scaler.scale(output.losses["total"]).backward(retain_graph=projected > 0)
        if projected:
            project_gradients(output.losses["distillation"], self.parameters.values(), projected)
        # Gradients that the scaler has made too large are its own affair: it skips the step and scales less.
        largest = total.new_zeros(()) if self.scaler.is_enabled() else largest_gradient(self.parameters.values())
        if not Arriving(torch.stack([total, largest.to(total)])).wait().isfinite().all():
            values = {name: value.item() for name, value in output.losses.items()}
            self._count_bad_step(values, self.epoch, self.step_in_epoch)
            return {}
        self.scaler.step(self.optimizer)
        self.scaler.update()
        losses = {name: value.detach() for name, value in output.losses.items()}
        for means in (self.since_line, self.since_epoch):
            means.add(losses, output.logits.detach(), batch.labels, batch.count)
        return norms

    def _graphed_step(self, batch: Batch, wants_norms: bool) -> None:
        """``_step`` from a recording, which itself skips the update; the one before it is judged here."""
        views = self.views(batch)
        inputs = StepInputs(batch.labels, batch.images if views is None else None, views, self._drawn())
        graphed = self.graphed
        assert graphed is not None
        graphed.step.set_lr(self.optimizer.param_groups[0]["lr"])
        graphed(inputs, wants_norms)
        assert graphed.step.losses is not None  # a step was taken
        before, self._unjudged = self._unjudged, (Arriving(graphed.step.losses), self.epoch, self.step_in_epoch)
        self._judge(before)

    def _judge(self, step: tuple[Arriving, int, int] | None) -> None:
        """Count a step of a recording whose loss or gradient was not finite."""
        if step is None:
            return
        assert self.graphed is not None
        arriving, epoch, number = step
        losses = dict(zip(self.graphed.step.names, arriving.wait().tolist(), strict=True))
        if not losses.pop(FINITE):
            self._count_bad_step(losses, epoch, number)

    def _settle(self) -> None:
        """Wait for the steps under way, and take over what they have summed on the device."""
        if self.graphed is None:
            return
        last, self._unjudged = self._unjudged, None
        self._judge(last)
        sums = self.graphed.step.take_sums()
        for means in (self.since_line, self.since_epoch):
            means.add_sums(sums)
        self.norms |= self.graphed.step.take_norms()

    def _count_bad_step(self, losses: dict[str, float], epoch: int, number: int) -> None:
        """Count step ``number`` of ``epoch``, both from 0; DivergedError where it is one too many."""
        self.bad_steps += 1
        if self.bad_steps <= self.config.max_bad_steps:
            return
        images = [self.items[index].path for index in self.batches.numbers(epoch, number)]
        raise diverged_at(epoch * self.steps_per_epoch + number + 1, losses, self.bad_steps - 1, images)
