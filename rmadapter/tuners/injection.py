"""Adapters inside a frozen open_clip model: put in, switched, taken out.

An adapter is a child module of its transformer block and one forward hook on the block adds its term:

    block(x) -> output          becomes          output + scale * base(ln_1(x))

The hook is a function of this module that reads the block it is called with, so a deep copy's hook finds the
copy's adapter, a pickle holds no closure, and the base model's state-dict keys stay as they are.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rmadapter.config import TOWERS, RMAdapterConfig, layer_numbers
from rmadapter.errors import InputError
from rmadapter.towers import Tower, find_towers
from rmadapter.variants import SharedLayer, VariantAdapter
from rmadapter_kernels import FusedRMAdapter

CHILD = "rm_adapter"


class _GraphToken:
    """Something to be alive: held by a hook of the autograd node of an adapter's output."""


class BlockAdapter(nn.Module):
    """One block's adapter with the switches that its hook reads.

    Args:
        branch: the adapter proper, ``FusedRMAdapter`` or ``VariantAdapter``.
        norm_name: the block's LayerNorm that the adapter reads through, or None for the block's raw input.
        rec_stream: "adapted" or "frozen", the pass in which the reconstruction is computed.
    """

    def __init__(self, branch: nn.Module, norm_name: str | None, rec_stream: str):
        super().__init__()
        self.branch = branch
        self.norm_name = norm_name
        self.rec_stream = rec_stream
        self.active = True
        self.frozen_pass = False
        self.reconstructs = True
        self.slot_open = False
        self.rec_loss: Tensor | None = None
        self._tokens: weakref.WeakSet[_GraphToken] = weakref.WeakSet()
        self.train(self.training)

    def __getstate__(self) -> dict[str, Any]:
        # A copy starts without a graph: losses in slots are not leaves and cannot be copied.
        return {**self.__dict__, "rec_loss": None, "_tokens": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._tokens = weakref.WeakSet()

    def train(self, mode: bool = True) -> BlockAdapter:
        """Training mode; the branch computes its reconstruction only where the adapted pass needs it."""
        super().train(mode)
        self.branch.train(mode and self.reconstructs and self.rec_stream == "adapted")
        return self

    def after_block(self, block: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        """The block's output with the adapter's term; ``x`` and ``output`` are [batch, tokens, D]."""
        norm = getattr(block, self.norm_name) if self.norm_name else None
        norm = (norm.weight, norm.bias, norm.eps) if norm is not None else None
        if self.frozen_pass:
            if self.training and self.reconstructs and self.rec_stream == "frozen":
                self.branch.train()
                self._fill_slot(self.branch(x.detach(), None, norm)[1])
                self.branch.eval()
            return output
        if not self.active:
            return output
        out, rec_loss = self.branch(x, output, norm)
        if self.branch.training:
            self._fill_slot(rec_loss)
        if out.requires_grad and not torch.compiler.is_compiling():
            self._mark_graph(out)
        return out

    def _fill_slot(self, rec_loss: Tensor) -> None:
        # Recomputation under checkpointing comes here a second time, when the slot is closed: its loss is
        # not part of the step's sum and must not be kept.
        if self.slot_open and rec_loss.numel():
            self.rec_loss = rec_loss

    def _mark_graph(self, out: Tensor) -> None:
        # The hook owns the token, so the token dies with the graph; it is struck off when backward gets here.
        token, tokens = _GraphToken(), self._tokens
        tokens.add(token)
        out.grad_fn.register_prehook(lambda gradients: tokens.discard(token))

    @property
    def graph_alive(self) -> bool:
        """Whether a forward pass through this adapter still waits for its backward pass."""
        return len(self._tokens) > 0


def _adapter_hook(block: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return getattr(block, CHILD).after_block(block, args[0], output)


@dataclass(frozen=True)
class ModelSource:
    """What a base model was made from: open_clip's name and a pretrained tag or file, None for random weights."""

    name: str
    pretrained: str | None = None

    def __str__(self) -> str:
        # A name with a scheme, such as local-dir:, brings its own weights.
        return self.name if ":" in self.name else f"{self.name} ({self.pretrained or 'random weights'})"


class Injected(NamedTuple):
    """One adapter and its place: tower "vision" or "text", block number from 1."""

    tower: str
    layer: int
    adapter: BlockAdapter


class AdaptedCLIP(nn.Module):
    """An open_clip model with adapters in its blocks; made by ``inject``.

    Attributes:
        clip: the model itself, frozen; its own calls (``clip.encode_image`` ...) run the adapters too.
        config: the adapters' configuration.
        source: where the model came from, or None where the caller did not say.
    """

    def __init__(self, clip: nn.Module, config: RMAdapterConfig, source: ModelSource | None):
        super().__init__()
        self.clip = clip
        self.config = config
        self.source = source
        self.train(False)

    def train(self, mode: bool = True) -> AdaptedCLIP:
        """Adapters follow ``mode``; the frozen model stays in eval mode, so that it drops no patches."""
        self.training = mode
        self.clip.eval()
        for _, _, adapter in self.adapters():
            adapter.train(mode)
        return self

    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:
        """Image features [batch, embed] of ``images`` [batch, 3, size, size]."""
        return self.clip.encode_image(images, normalize=normalize)

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        """Text features [batch, embed] of ``tokens`` [batch, context] (int64), untrimmed."""
        return self.clip.encode_text(tokens, normalize=normalize)

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> Any:
        """The open_clip model's own forward."""
        return self.clip(image, text)

    def adapters(self, tower: str | None = None) -> Iterator[Injected]:
        """Every adapter, image tower first, in the order of the blocks; of one tower where it is named."""
        for name, found in find_towers(self.clip).items():
            if tower in (None, name):
                for layer, block in enumerate(found.blocks, start=1):
                    if hasattr(block, CHILD):
                        yield Injected(name, layer, getattr(block, CHILD))

    def adapter_tensors(self) -> dict[str, nn.Parameter]:
        """Trained parameters by their name in an adapter file: ``vision.5.w_down``, ``shared.1.weight``."""
        named: dict[str, nn.Parameter] = {}
        for tower in TOWERS:
            for number, (_, layer, adapter) in enumerate(self.adapters(tower), start=1):
                for key, parameter in adapter.branch.named_parameters():
                    name = f"shared.{number}.{key[7:]}" if key.startswith("shared.") else f"{tower}.{layer}.{key}"
                    named[name] = parameter
        return named

    def set_backend(self, backend: str) -> None:
        """Let every adapter that the operator covers run on ``backend``; variants stay plain PyTorch."""
        for _, _, adapter in self.adapters():
            if isinstance(adapter.branch, FusedRMAdapter):
                adapter.branch.backend = backend

    @property
    def enabled(self) -> bool:
        """Whether the adapters are switched on."""
        return all(adapter.active for _, _, adapter in self.adapters())

    def set_enabled(self, enabled: bool) -> None:
        """Switch all adapters on or off.

        Raises:
            RuntimeError: a backward pass is still to come; recomputation in it would meet the other state.
        """
        if any(adapter.graph_alive for _, _, adapter in self.adapters()):
            raise RuntimeError(
                "adapters cannot be switched while a graph through them is alive: "
                "run backward() first, or drop the outputs of the forward pass"
            )
        for _, _, adapter in self.adapters():
            adapter.active = enabled

    @contextlib.contextmanager
    def adapters_disabled(self) -> Iterator[None]:
        """Inside, the model is the untouched CLIP; raises as ``set_enabled`` does."""
        before = [(adapter, adapter.active) for _, _, adapter in self.adapters()]
        self.set_enabled(False)
        try:
            yield
        finally:
            for adapter, active in before:
                adapter.active = active

    @contextlib.contextmanager
    def frozen_pass(self) -> Iterator[None]:
        """For one forward pass of the frozen model inside a training step, while other graphs may be alive.

        Nothing is recomputed for it: the frozen model leaves no graph, and a recomputation would come when the
        adapters are switched on again.
        """
        adapters = [adapter for _, _, adapter in self.adapters()]
        transformers = [tower.transformer for tower in find_towers(self.clip).values()]
        checkpointing = [transformer.grad_checkpointing for transformer in transformers]
        for adapter in adapters:
            adapter.frozen_pass = True
        for transformer in transformers:
            transformer.grad_checkpointing = False
        try:
            yield
        finally:
            for adapter in adapters:
                adapter.frozen_pass = False
            for transformer, recomputes in zip(transformers, checkpointing, strict=True):
                transformer.grad_checkpointing = recomputes

    @contextlib.contextmanager
    def collect(self, tower: str) -> Iterator[list[Tensor]]:
        """Collects the per-token reconstruction losses [batch, tokens] of the forward pass run inside.

        The list is filled, one tensor an adapter in the order of the blocks, when the context ends.
        """
        adapters = [adapter for _, _, adapter in self.adapters(tower)]
        losses: list[Tensor] = []
        for adapter in adapters:
            adapter.slot_open, adapter.rec_loss = True, None
        try:
            yield losses
            losses += [adapter.rec_loss for adapter in adapters if adapter.rec_loss is not None]
        finally:
            for adapter in adapters:
                adapter.slot_open, adapter.rec_loss = False, None

    def set_reconstruction(self, tower: str, wanted: bool) -> None:
        """Whether training computes the reconstruction in ``tower``; off where its weight in the loss is 0."""
        for _, _, adapter in self.adapters(tower):
            adapter.reconstructs = wanted
            adapter.train(adapter.training)

    def summary(self) -> str:
        """Towers, adapted layers, parameter shapes and counts, and the share of the whole model, as text."""
        lines = []
        for name, tower in find_towers(self.clip).items():
            found = list(self.adapters(name))
            layers = ", ".join(str(layer) for _, layer, _ in found) or "none"
            lines.append(f"{name}: {tower.kind.name}, {tower.depth} blocks, width {tower.width}; adapters in {layers}")
            if found:
                shapes = {key: tuple(p.shape) for key, p in found[0].adapter.branch.named_parameters()}
                lines.append("  each: " + ", ".join(f"{k} {list(s)}" for k, s in shapes.items()))
                count = sum(p.numel() for _, _, a in found for p in a.branch.parameters())
                lines.append(f"  parameters: {count:,}")
        trained = sum(p.numel() for p in self.adapter_tensors().values())
        total = sum(p.numel() for p in self.clip.parameters())
        lines.append(f"trained: {trained:,} of {total:,} parameters ({100 * trained / total:.2f} %)")
        return "\n".join(lines)

    def save_adapter(self, folder: str | Path, *, class_names: list[str] | None = None, template: str | None = None):
        """Write the adapter to ``folder``; see ``rmadapter.checkpoint.save_adapter``."""
        from rmadapter.checkpoint import save_adapter

        save_adapter(self, Path(folder), class_names=class_names, template=template)

    def load_adapter(self, folder: str | Path) -> None:
        """Read weights from ``folder``; see ``rmadapter.checkpoint.load_adapter`` for what is checked."""
        from rmadapter.checkpoint import load_adapter

        load_adapter(self, Path(folder))

    def remove(self) -> nn.Module:
        """Take the adapters out and return the CLIP model as it was (still frozen)."""
        for tower in find_towers(self.clip).values():
            for block in tower.blocks:
                if hasattr(block, CHILD):
                    delattr(block, CHILD)
                    hooks = block._forward_hooks
                    for key in [key for key, hook in hooks.items() if hook is _adapter_hook]:
                        del hooks[key]
        return self.clip


def inject(clip: nn.Module, config: RMAdapterConfig | None = None, *, source: ModelSource | None = None) -> AdaptedCLIP:
    """Freeze ``clip`` and put adapters into its blocks, in place.

    Args:
        clip: an open_clip CLIP model with two transformer towers, any device and floating dtype.
        config: the adapters; default ``RMAdapterConfig()``.
        source: name and pretrained tag of ``clip``, kept in adapter files so that they can be loaded by name.

    Adapter weights are fp32 on the model's device, drawn from torch's global generator.

    Raises:
        InputError: a tower that is no transformer, a layer outside its tower, adapters there already.
    """
    config = config or RMAdapterConfig()
    towers = find_towers(clip)
    if any(hasattr(block, CHILD) for tower in towers.values() for block in tower.blocks):
        raise InputError("this model has adapters already; take them out with remove() first")
    layers = {
        name: layer_numbers(config.tower(name).layers, tower.depth, f"adapter layers of the {name} tower")
        for name, tower in towers.items()
    }
    if not any(layers.values()):
        raise InputError("adapter.layers leaves both towers without an adapter; valid: layers in at least one tower")
    shared: list[SharedLayer] = []
    if config.shared_layer:
        if len(layers["vision"]) != len(layers["text"]):
            raise InputError(
                f"adapter.shared_layer pairs the towers' adapted blocks, but there are {len(layers['vision'])} in "
                f"vision and {len(layers['text'])} in text; valid: as many in each"
            )
        shared = [SharedLayer(config.tower("vision").bottleneck) for _ in layers["vision"]]
    clip.requires_grad_(False)
    device = next(clip.parameters()).device
    for name in TOWERS:
        for index, layer in enumerate(layers[name]):
            branch = _make_branch(towers[name], config, name, shared[index] if shared else None)
            norm_name = towers[name].kind.norm if config.adapter_input == "ln_1" else None
            block = towers[name].blocks[layer - 1]
            setattr(block, CHILD, BlockAdapter(branch, norm_name, config.rec_stream).to(device))
            block.register_forward_hook(_adapter_hook)
    return AdaptedCLIP(clip, config, source)


def _make_branch(tower: Tower, config: RMAdapterConfig, name: str, shared: SharedLayer | None) -> nn.Module:
    settings = config.tower(name)
    arguments = {
        "bottleneck": settings.bottleneck,
        "rec_hidden": settings.rec_hidden,
        "activation": config.activation,
        "objective": config.objective,
        "scale": settings.scale,
        "reconstruct": config.reconstruct,
        "local_reconstruction": config.local_reconstruction,
        "branch_grad_scale": settings.branch_grad_scale,
        "init": config.init,
    }
    if config.in_operator:
        return FusedRMAdapter(tower.width, **arguments)
    return VariantAdapter(
        tower.width, **arguments, rec_layers=config.rec_layers, separate_down=config.separate_down, shared=shared
    )
