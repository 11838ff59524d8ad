"""Which step a run takes: its shortcuts, why, and what they are expected to save (``rmadapter train --explain``)."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, replace

import torch

from rmadapter.clip.frozen_linear import packing_obstacle
from rmadapter.clip.obstacles import last_block_obstacle, shared_start_obstacle
from rmadapter.clip.prompts import context_of
from rmadapter.clip.towers import find_towers, text_is_trimmable
from rmadapter.config import TrainConfig
from rmadapter.config.shortcuts import StepConfig
from rmadapter.config.sizes import parse_bytes
from rmadapter.errors import InputError
from rmadapter.runtime import compiler_obstacle, residual_dtype
from rmadapter.step.chunks import Chunk
from rmadapter.step.costs import Cost, Workload, step_cost, workload
from rmadapter.step.cuda_graphs import check_graphs
from rmadapter.step.distributed import Ranks
from rmadapter.step.memory import free_bytes, total_bytes
from rmadapter.step.plain import RMAdapterCLIP
from rmadapter.step.train_step import TrainStep

WHAT = {
    "trim": "prompts end at their end-of-text token",
    "shared_start": "what all prompts begin with once for all classes",
    "text_prefix": "prompts below the first trained block once a run",
    "frozen_targets": "frozen text features once a run",
    "image_prefix": "images below the first trained block once a step",
    "class_chunks": "prompts in chunks of like length",
    "last_token": "last block at the pooled token alone",
    "packed_weights": "frozen matrices laid out for the processor once a run",
}

# Of a device's memory, for the activations of all prompts.
TEXT_SHARE = 0.25
APPLY_OR_NOT = ("trim", "shared_start", "packed_weights")  # the others may apply to one of the towers


def wanted_shortcuts(config: TrainConfig) -> StepConfig:
    """The shortcuts that ``config`` asks for, after --no-shortcuts."""
    return config.step if config.shortcuts else StepConfig.none()


def text_budget(config: TrainConfig, device: torch.device) -> tuple[int, str]:
    """Bytes for the activations of all prompts, and what that is: --text-memory, or a quarter of the device's memory.

    Of all its memory, not of what is free, so that two runs on one machine have the same chunks of classes, and the
    same last bits; unless more than half of it is taken. Processes that share the memory of one machine share it.
    """
    if config.text_memory is not None:
        return parse_bytes("text_memory", config.text_memory), "as --text-memory says"
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if device.type == "cpu" else 1
    total, free = total_bytes(device), free_bytes(device)
    where = "this machine" if device.type == "cpu" else str(device)
    shared = f", shared by {sharing} processes" if sharing > 1 else ""
    if free >= 2 * TEXT_SHARE * total:
        return int(TEXT_SHARE * total / sharing), f"a quarter of the {total / 1e9:.1f} GB that {where} has{shared}"
    return int(free / 2 / sharing), (
        f"half of the {free / 1e9:.1f} GB that are free on {where}{shared}: a run while more of its "
        f"{total / 1e9:.1f} GB is free may differ in its last bits, unless both have the same --text-memory"
    )


def _unrecorded(config: TrainConfig) -> str | None:
    """The option that recorded steps do not have, or None."""
    others = {
        "optimizer": config.optimizer != "sgd",
        "loss.projected": config.loss.projected > 0,
        # Which sentence is drawn then decides on the host what is encoded.
        "loss.target sentences without step.frozen_targets": (
            config.loss.target == "sentences" and not config.step.frozen_targets
        ),
    }
    return next((name for name, on in others.items() if on), None)


def with_graphs_settled(config: TrainConfig, ranks: Ranks) -> TrainConfig:
    """``config`` with ``cuda_graphs`` on or off; where it says neither, on if steps can be recorded there.

    Not with dropout: what a recording draws has not been compared on a GPU with what an ordinary step draws.
    """
    if config.cuda_graphs is not None:
        return config
    alone_on_cuda = ranks.device.type == "cuda" and ranks.world == 1
    draws = config.lora.any and config.lora.dropout > 0
    on = alone_on_cuda and wanted_shortcuts(config).any and _unrecorded(config) is None and not draws
    return dataclasses.replace(config, cuda_graphs=on)


def make_step(
    model: RMAdapterCLIP, config: TrainConfig, precision: str, text_bytes: int, ranks: Ranks | None = None
) -> tuple[RMAdapterCLIP | TrainStep, str]:
    """What a run calls at every step, ``(images, labels) -> Output``, and a sentence on it.

    Without any shortcut that is ``model`` itself, through open_clip's own forward passes and hooks: the reference that
    the shortcuts are tested against.
    """
    shortcuts = wanted_shortcuts(config)
    if not shortcuts.any:
        for name, value, without in (
            ("views", config.views, 0),
            ("compile", config.compile, False),
            ("cuda_graphs", bool(config.cuda_graphs), False),
            ("processes", (ranks or Ranks()).world, 1),
        ):
            if value != without:
                raise InputError(
                    f"{name} is {value}, which the plain step (--no-shortcuts) does not have; valid: {without}"
                )
        if config.residual == "fp32" and precision != "fp32":
            raise InputError(
                f"residual is 'fp32', but the plain step (--no-shortcuts) has its residual stream in {precision} as "
                "all else; valid: auto, compute"
            )
        return model, f"step: plain (--no-shortcuts); residual stream {precision}"
    device = model.prompts.tokens.device
    if config.cuda_graphs:
        check_graphs(device, (ranks or Ranks()).world)
    if config.cuda_graphs and (option := _unrecorded(config)) is not None:
        raise InputError(
            f"cuda_graphs is True, but {option} is nothing that recorded steps have; valid: without one of them"
        )
    if config.loss.projected and (ranks or Ranks()).world > 1:
        raise InputError(f"loss.projected is {config.loss.projected}, which one process alone does; valid: 0")
    stream = residual_dtype(config.residual, precision)
    step = TrainStep(
        model,
        shortcuts,
        text_bytes=text_bytes,
        stream=stream,
        recompute=config.grad_checkpointing,
        ranks=ranks,
        images=(ranks or Ranks()).most(config.batch_size),
    )
    if config.compile:
        if (why := compiler_obstacle(device)) is not None:
            raise InputError(f"compile is True, but {why}; valid on {device.type}: install one, or without --compile")
        step.compile_parts()
    off = [name for name, on in dataclasses.asdict(shortcuts).items() if not on]
    recomputed = sum(chunk.stop - chunk.start for chunk in step.chunks if chunk.recompute)
    return step, (
        f"step: frozen part computed once{', without ' + ', '.join(off) if off else ''}; residual stream "
        f"{str(stream).removeprefix('torch.')}{_rounding(step, stream)}{'; compiled' if config.compile else ''}"
        f"{'; recorded as CUDA graphs' if config.cuda_graphs else ''}"
        + (f"; {recomputed} of {len(model.class_names)} classes recomputed in backward" if recomputed else "")
    )


def _rounding(step: TrainStep, stream: torch.dtype) -> str:
    """Which towers round a wide residual stream to the dtype of their weights in every block."""
    whole = [e.modality for e in (step.image, step.text) if e.dtype != stream and not all(p.apart for p in e.parts)]
    return f" (rounded in every block of the {' and '.join(whole)} tower, which run whole)" if whole else ""


@dataclass(frozen=True)
class Plan:
    """A step's cost as planned, and that of the plain step for the same work."""

    work: Workload
    shortcuts: StepConfig
    by_token: tuple[bool, bool]
    reasons: dict[str, str]
    views: int = 0
    epochs: int | None = None

    @classmethod
    def of(cls, step: RMAdapterCLIP | TrainStep, images: int, views: int = 0, epochs: int | None = None) -> Plan:
        """The plan of ``step`` for batches of ``images`` of which ``views`` views are kept, in a run of ``epochs``."""
        model = step.model if isinstance(step, TrainStep) else step
        reasons = {}
        if not text_is_trimmable(model.clip):
            reasons["trim"] = "padding counts: the text tower is neither causal and pooled at end-of-text nor masks it"
        elif model.config.rec_tokens == "all":
            reasons["trim"] = "rec_tokens is all: the reconstruction counts padding"
        if (why := shared_start_obstacle(model.clip)) is not None:
            reasons["shared_start"] = why
        towers = find_towers(model.clip)
        if (why := packing_obstacle(model.prompts.tokens.device, towers["text"].dtype)) is not None:
            reasons["packed_weights"] = why
        random = {tower: model.adapted.sites(tower).random for tower in ("vision", "text")}
        if random["text"]:
            reasons["shared_start"] = "dropout draws for every prompt"
        last = {
            tower: "dropout draws for every token" if draws else last_block_obstacle(model.clip, tower)
            for tower, draws in random.items()
        }
        against = [f"{tower}: {obstacle}" for tower, obstacle in last.items() if obstacle is not None]
        if against:
            reasons["last_token"] = "; ".join(against)
        fast = isinstance(step, TrainStep)
        planned = step if isinstance(step, TrainStep) else TrainStep(model, StepConfig.none())
        loss, needs_image = model.loss, model.loss.needs_image or model.per_image
        if fast and not loss.needs_text:
            reasons["frozen_targets"] = "no loss term needs them: lambda4 is 0"
        if fast and not needs_image:
            reasons["image_prefix"] = "no loss term needs a frozen pass to share it with: lambda3 is 0"
        if fast and loss.reads_two_views:
            reasons["image_prefix"] = "the frozen pass is of a second view"
        work = workload(
            model.adapted,
            planned.chunks,
            images,
            targets=(needs_image, loss.needs_text),
            rebuilds=(model.rebuilds_frozen("vision"), model.rebuilds_frozen("text")),
            stream=planned.text.stream.itemsize,
            context=context_of(model.clip, model.tokenizer),
            target_prompts=1 if model.draws else len(model.targets),
            backwards=2 if loss.projected else 1,
            two_views=loss.reads_two_views,
        )
        return cls(work, planned.shortcuts, (last["vision"] is None, last["text"] is None), reasons, views, epochs)

    @property
    def cost(self) -> Cost:
        """Of the step."""
        return step_cost(self.work, self.shortcuts, self.by_token)

    @property
    def plain(self) -> Cost:
        """Of the plain step: everything at every step, prompts at full length."""
        return step_cost(self.work.plain(), StepConfig.none(), self.by_token)

    @property
    def ratio(self) -> float:
        """Operations of the plain step over those of this one."""
        return self.plain.flop / self.cost.flop

    def without(self, name: str) -> Cost:
        """The cost with the shortcut ``name`` left out."""
        work = self.work
        whole = Chunk(0, work.classes, max(chunk.length for chunk in work.chunks), work.chunks[0].shared)
        if name == "trim":
            work = replace(work, chunks=[replace(whole, length=work.context)])
        if name == "class_chunks":
            work = replace(work, chunks=[whole])
        if name == "shared_start":
            work = replace(work, chunks=[replace(chunk, shared=0) for chunk in work.chunks])
        return step_cost(work, replace(self.shortcuts, **{name: False}), self.by_token)

    def __str__(self) -> str:
        cost, plain = self.cost, self.plain
        lines = [f"{'shortcut':<15} {'':<4} {'saves GFLOP':>11} {'MB':>8}  a step of {self.work.images} images"]
        for name, what in WHAT.items():
            on = getattr(self.shortcuts, name)
            reason = self.reasons.get(name)
            nowhere = name == "last_token" and not any(self.by_token)
            if not on or nowhere or (reason is not None and name in APPLY_OR_NOT):
                lines.append(f"{name:<15} {'off':<4} {'':>11} {'':>8}  {reason or 'switched off'}")
                continue
            other = self.without(name)
            saved, freed = (other.flop - cost.flop) / 1e9, (other.bytes - cost.bytes) / 1e6
            lines.append(
                f"{name:<15} {'on':<4} {saved:>11.1f} {freed:>8.0f}  {what}" + (f" ({reason})" if reason else "")
            )
        for name, found in (("plain step", plain), ("this step", cost)):
            lines.append(f"{name:<15} {'':<4} {found.flop / 1e9:>11.1f} {found.bytes / 1e6:>8.0f}")
        if self.views:
            kept = step_cost(self.work, self.shortcuts, self.by_token, cached_views=True)
            ratio = plain.flop / kept.flop
            few = f" (this run has {self.epochs})" if self.epochs is not None and self.epochs <= self.views else ""
            lines.append(
                f"{'views at hand':<15} {'':<4} {kept.flop / 1e9:>11.1f} {kept.bytes / 1e6:>8.0f}  from epoch "
                f"{self.views + 1} on{few}, {ratio:.2f} times fewer operations than the plain step"
            )
        lines.append(
            f"{len(self.work.chunks)} chunk(s) of {self.work.classes} prompts, up to "
            f"{max(chunk.length for chunk in self.work.chunks)} of {self.work.context} tokens; "
            f"expected {self.ratio:.2f} times fewer operations than the plain step"
        )
        return "\n".join(lines)
