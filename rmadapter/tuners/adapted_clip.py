"""A frozen CLIP with what is trained in it: switched, saved, loaded and taken out together.

``tuners.injection`` puts it in. ``tuners.block_adapter`` has the module and the hook of an adapter beside a block,
``tuners.installed`` those of everything else.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rmadapter.clip.handed import check_whole
from rmadapter.clip.identity import ModelSource, tokenizer_hash
from rmadapter.clip.low_rank import Update
from rmadapter.clip.tower_kind import CHILD
from rmadapter.clip.towers import find_towers
from rmadapter.clip.types import ClipModel
from rmadapter.config import TOWERS, RMAdapterConfig, TunerConfig
from rmadapter.data import Preprocessing
from rmadapter.errors import InputError, check_range
from rmadapter.tuners.adapter_file import AdapterInfo, read_info, read_tensors, write_adapter
from rmadapter.tuners.block_adapter import BlockAdapter, adapter_hook
from rmadapter.tuners.bound_classes import check_same
from rmadapter.tuners.installed import Installed
from rmadapter.tuners.sites import Sites
from rmadapter.tuners.stored_facts import check_facts, check_tokenizer, identity_as_loaded, precision_of
from rmadapter.tuners.tuner import Tuner, Values
from rmadapter.tuners.variants import VariantAdapter
from rmadapter.tuners.weight_draws import weight_generator
from rmadapter_kernels import FusedRMAdapter, draw_weight


class Injected(NamedTuple):
    """One adapter and its place: tower "vision" or "text", block number from 1."""

    tower: str
    layer: int
    adapter: BlockAdapter


class AdaptedCLIP(nn.Module):
    """An open_clip model with something trained in it; made by ``inject``.

    Attributes:
        clip: the model itself, frozen; its own calls (``clip.encode_image`` ...) run what enters the towers too.
        tuned: the configuration of all that is trained.
        installed: what is trained beside the adapters, and its hooks.
        class_names: those that it is or was trained on; None where nobody said.
        source: where the model came from, or None where the caller did not say.
        weights_hash: the hash of its weights as loaded, where they are stored otherwise by now; else None.
    """

    def __init__(
        self,
        clip: ClipModel,
        tuned: TunerConfig,
        tuners: Sequence[Tuner],
        source: ModelSource | None,
        weights_hash: str | None = None,
        class_names: Sequence[str] | None = None,
    ):
        super().__init__()
        self.clip = clip
        self.tuned = tuned
        self.installed = Installed(list(tuners))
        self.class_names = None if class_names is None else list(class_names)
        self.source = source
        self.weights_hash = weights_hash
        self._tokenizer_hash: str | None = None
        self._strength = 1.0
        self._removed = False
        # Of a loaded adapter: its name in messages, and what it was trained on.
        self._loaded_from: str | None = None
        self._recorded_preprocessing: Preprocessing | None = None
        self.train(False)

    @property
    def config(self) -> RMAdapterConfig:
        """The adapters' configuration."""
        return self.tuned.adapter

    def sites(self, tower: str) -> Sites:
        """Where ``tower`` is entered, beside the adapters' branches."""
        return self.installed.sites(tower)

    def values(self, image_features: Tensor | None) -> dict[str, Values]:
        """What enters the towers in one step; ``image_features`` as in ``Tuner.values``."""
        return self.installed.values(image_features)

    def update(self, tower: str, block: int) -> Update | None:
        """The low-rank updates of a block, counted from 0."""
        return self.installed.update(tower, block)

    @property
    def tuners(self) -> list[Tuner]:
        """What is trained beside the adapters, in the order in which heads apply."""
        return self.installed.all

    def touches(self, tower: str) -> bool:
        """Whether anything is trained in ``tower``, whose features then are not the frozen model's."""
        return self.sites(tower).first is not None or self.has_adapters(tower)

    def has_adapters(self, tower: str) -> bool:
        """Whether ``tower`` has adapters beside blocks."""
        return next(self.adapters(tower), None) is not None

    @property
    def classes(self) -> list[str] | None:
        """The names that a tuner is bound to, or None."""
        return next((tuner.classes for tuner in self.tuners if tuner.classes is not None), None)

    def train(self, mode: bool = True) -> AdaptedCLIP:
        """What is trained follows ``mode``; the frozen model stays in eval mode, so that it drops no patches.

        Raises:
            InputError: training at a strength other than 1, which would train another model than the one that is saved.
        """
        if mode and self.strength != 1:
            raise InputError(f"strength is {self.strength:g}, which is for inference; valid in training: 1")
        self.training = mode
        self.clip.eval()
        self.installed.train(mode)
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
        if self._removed:  # what stands in the blocks by now is another's
            return
        for name, found in find_towers(self.clip).items():
            if tower in (None, name):
                for layer, block in enumerate(found.blocks, start=1):
                    if hasattr(block, CHILD):
                        yield Injected(name, layer, getattr(block, CHILD))

    def adapter_tensors(self) -> dict[str, Tensor]:
        """What an adapter file holds, by name: ``vision.5.w_down``, ``shared.1.weight``, ``text.1.tokens``."""
        named: dict[str, Tensor] = {}
        for tower in TOWERS:
            for number, (_, layer, adapter) in enumerate(self.adapters(tower), start=self._first_pair(tower)):
                for key, parameter in adapter.branch.named_parameters():
                    name = f"shared.{number}.{key[7:]}" if key.startswith("shared.") else f"{tower}.{layer}.{key}"
                    named[name] = parameter
        for tuner in self.tuners:
            named.update(tuner.weights())
        return named

    def _first_pair(self, tower: str) -> int:
        """Number of the shared layer that the first adapter of ``tower`` has; the towers are paired from the last."""
        counts = {name: sum(1 for _ in self.adapters(name)) for name in TOWERS}
        return 1 + max(counts.values()) - counts[tower]

    def trained(self) -> dict[str, nn.Parameter]:
        """Those of ``adapter_tensors`` that training changes."""
        named = self.adapter_tensors().items()
        return {name: tensor for name, tensor in named if isinstance(tensor, nn.Parameter) and tensor.requires_grad}

    def reset_adapters(self, seed: int) -> None:
        """Draw every trained weight anew, each from a generator keyed by ``seed``, tower, block and name."""
        for tuner in self.tuners:
            tuner.reset(partial(weight_generator, seed))
        for tower in TOWERS:
            for number, (_, layer, adapter) in enumerate(self.adapters(tower), start=self._first_pair(tower)):
                branch = adapter.branch
                branch.reset_parameters(partial(weight_generator, seed, tower, layer))
                if isinstance(branch, VariantAdapter) and branch.shared is not None:
                    draw_weight(branch.shared.weight, weight_generator(seed, "shared", number, "weight"))
                    nn.init.zeros_(branch.shared.bias)

    def set_backend(self, backend: str) -> None:
        """Let every adapter that the operator covers run on ``backend``; variants stay plain PyTorch."""
        for _, _, adapter in self.adapters():
            if isinstance(adapter.branch, FusedRMAdapter):
                adapter.branch.backend = backend

    @property
    def strength(self) -> float:
        """What ``set_strength`` was given last; 1 before."""
        return self._strength

    @property
    def strength_obstacle(self) -> str | None:
        """Why no other strength than 1 can be set, in words; None where any can."""
        fixed = next((tuner.without_strength for tuner in self.tuners if tuner.without_strength), None)
        return None if fixed is None else f"{fixed} have no number that scales them"

    def set_strength(self, strength: float) -> None:
        """Scale what was trained, for inference: 0 is zero-shot CLIP, 1 as trained, above 1 is beyond.

        It multiplies the scale of every adapter's branch and of low-rank updates, the ratio of feature adapters, and
        the factors of class offsets and of a cache. Nothing of it is saved.

        Raises:
            InputError: a negative number or none; other than 1 where something that is trained has no such number.
            RuntimeError: a backward pass is still to come; recomputation in it would meet the other strength.
        """
        check_range("strength", strength, 0)
        if strength != 1 and self.strength_obstacle is not None:
            raise InputError(f"strength is {strength:g}, but {self.strength_obstacle}; valid: 1")
        self._check_no_graph()
        for tower, _, adapter in self.adapters():
            adapter.branch.scale = float(strength * self.config.tower(tower).scale)
        for tuner in self.tuners:
            tuner.strength = float(strength)
        self._strength = float(strength)

    @property
    def enabled(self) -> bool:
        """Whether what is trained is switched on."""
        return self.installed.active and all(adapter.active for _, _, adapter in self.adapters())

    def set_enabled(self, enabled: bool) -> None:
        """Switch all that is trained on or off.

        Raises:
            RuntimeError: a backward pass is still to come; recomputation in it would meet the other state.
        """
        self._check_no_graph()
        self.installed.active = enabled
        for _, _, adapter in self.adapters():
            adapter.active = enabled

    def _check_no_graph(self) -> None:
        if any(adapter.graph_alive for _, _, adapter in self.adapters()):
            raise RuntimeError(
                "adapters cannot be switched while a graph through them is alive: "
                "run backward() first, or drop the outputs of the forward pass"
            )

    @contextlib.contextmanager
    def adapters_disabled(self) -> Iterator[None]:
        """Inside, the model is the untouched CLIP; raises as ``set_enabled`` does."""
        switches: list[Any] = [self.installed, *(adapter for _, _, adapter in self.adapters())]
        before = [switch.active for switch in switches]
        self.set_enabled(False)
        try:
            yield
        finally:
            for switch, active in zip(switches, before, strict=True):
                switch.active = active

    @contextlib.contextmanager
    def frozen_pass(self) -> Iterator[None]:
        """For one forward pass of the frozen model inside a training step, while other graphs may be alive.

        Nothing is recomputed for it: the frozen model leaves no graph, and a recomputation would come when the
        adapters are switched on again.
        """
        adapters: list[Any] = [self.installed, *(adapter for _, _, adapter in self.adapters())]
        towers = find_towers(self.clip).values()
        recomputing = [switch for tower in towers for switch in tower.recomputing()]
        for adapter in adapters:
            adapter.frozen_pass = True
        for module, name in recomputing:
            setattr(module, name, False)
        try:
            yield
        finally:
            for adapter in adapters:
                adapter.frozen_pass = False
            for module, name in recomputing:
                setattr(module, name, True)

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
        for tuner in self.tuners:
            lines.append(f"{type(tuner).__name__}: " + ", ".join(f"{k} {list(t.shape)}" for k, t in tuner.weights()))
        trained = sum(p.numel() for p in self.trained().values())
        total = sum(p.numel() for p in (*self.clip.parameters(), *self.installed.parameters()))
        lines.append(f"trained: {trained:,} of {total:,} parameters ({100 * trained / total:.2f} %)")
        return "\n".join(lines)

    @property
    def preprocessing(self) -> Preprocessing:
        """What images go through: the model's own, of a loaded adapter what it was trained with."""
        return self._recorded_preprocessing or Preprocessing.of(self.clip)

    def use_tokenizer(self, tokenizer: Callable[..., Tensor]) -> None:
        """Keep which tokenizer makes the prompts, for the adapter's file.

        Raises:
            InputError: the adapter was loaded, and was trained with another one.
        """
        if self._loaded_from is not None:
            check_tokenizer(self._tokenizer_hash, tokenizer, self._loaded_from)
        self._tokenizer_hash = tokenizer_hash(tokenizer)

    def save_adapter(
        self,
        folder: str | Path,
        *,
        class_names: list[str] | None = None,
        template: str | None = None,
        training: dict[str, Any] | None = None,
    ) -> None:
        """Write the adapter to ``folder``, each file atomically, the weights first.

        Args:
            class_names: the classes that it was trained on, for prediction; default: those of ``class_names``.
            template: the prompt that it was trained with, for prediction.
            training: how it was trained, as plain values, for evaluation.

        Raises:
            InputError: the folder cannot be written or the disk is full, a weight is not finite, the adapter was taken
                out, the weights are spread over processes.
        """
        if self._removed:
            raise InputError(
                "the adapter is not saved: remove() has taken it out; valid: save_adapter() before remove()"
            )
        check_whole(self, "the adapter is not saved")
        info = AdapterInfo(
            config=self.tuned,
            source=self.source,
            base=identity_as_loaded(self.clip, self.weights_hash),
            tokenizer=self._tokenizer_hash,
            preprocessing=self.preprocessing,
            precision=precision_of(self.clip),
            class_names=self.class_names if class_names is None else class_names,
            template=template,
            training=training,
        )
        write_adapter(Path(folder), self.adapter_tensors(), info)

    def load_adapter(self, folder: str | Path) -> None:
        """Read the weights in ``folder``, after every check has passed; until then the model is untouched.

        Raises:
            InputError: everything ``adapter_file.read_info`` raises, another base model, adapters of another shape,
                something of each of other classes, tensors that are missing, too many, wrongly shaped or not finite, a
                truncated file, files that do not belong together.
        """
        folder = Path(folder)
        check_whole(self, f"the adapter in {folder} is not loaded")
        info = read_info(folder)
        check_facts(info, f"the adapter in {folder}", self.clip, loaded=self.weights_hash)
        if info.config != self.tuned:
            ours, theirs = self.tuned.flat(), info.config.flat()
            name = next(name for name in ours if ours[name] != theirs[name])
            raise InputError(
                f"the adapter in {folder} has {name} = {theirs[name]!r}, the model has {ours[name]!r}; "
                "inject with the adapter's configuration, or use rmadapter.load"
            )
        check_same(self.classes, info.class_names, f"the adapter in {folder}")
        self.take_weights(folder, info)

    def take_weights(self, folder: Path, info: AdapterInfo) -> None:
        """Read the weights in ``folder``, whose base and configuration, those of ``info``, are this model's."""
        parameters = self.adapter_tensors()
        tensors = read_tensors(folder, info, {name: tuple(p.shape) for name, p in parameters.items()})
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(tensors[name])
        self._take_facts(f"the adapter in {folder}", info)

    def _take_facts(self, what: str, info: AdapterInfo) -> None:
        """Go on with what is recorded beside the weights."""
        if hasattr(self.clip.visual, "preprocess_cfg") and (own := Preprocessing.of(self.clip)) != info.preprocessing:
            warnings.warn(
                f"{what} was trained on images that went through {info.preprocessing}, and this model's own is {own}; "
                "what the adapter was trained with counts (AdaptedCLIP.preprocessing)",
                stacklevel=4,
            )
        self._recorded_preprocessing = info.preprocessing
        self.class_names = info.class_names or self.class_names
        self._loaded_from, self._tokenizer_hash = what, info.tokenizer

    def remove(self) -> nn.Module:
        """Take out what is trained and return the CLIP model as it was (still frozen).

        A second time it does nothing: what was put in since is not this one's.
        """
        if self._removed:
            return self.clip
        for tower in find_towers(self.clip).values():
            for block in tower.blocks:
                if hasattr(block, CHILD):
                    delattr(block, CHILD)
                    hooks = block._forward_hooks
                    for key in [key for key, hook in hooks.items() if hook is adapter_hook]:
                        del hooks[key]
        self.installed.uninstall(self.clip)
        self.installed.active = False  # its heads would go on behind the towers
        self._removed = True
        return self.clip
