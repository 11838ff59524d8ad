"""Tuners in open_clip's own forward passes, by hooks: the plain way, which the fast step is tested against.

A hook is a bound method of ``Installed``, which is a child of the model, so that a deep copy's hooks are the copy's.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rmadapter.clip.attention import longer_mask, scaled_attention
from rmadapter.clip.low_rank import added
from rmadapter.clip.tower_kind import at_path
from rmadapter.clip.towers import find_towers
from rmadapter.clip.types import Block, ClipModel
from rmadapter.tuners.sites import APPEND, INSERT, Sites, TokenEdit
from rmadapter.tuners.tuner import Tuner, Values


class _Passing(threading.local):
    """What one hook of a pass leaves for a later one, of each thread by itself: several may ask one model at once.

    A recomputation, which autograd may run in a thread of its own, finds none of it, and needs none: each is read
    within the call of one module, or after the pass.
    """

    def __init__(self) -> None:
        self.image_features: Tensor | None = None
        self.read: Tensor | None = None
        self.attending: dict[tuple[str, int], tuple[Tensor, Tensor | None]] = {}


class Installed(nn.Module):
    """The tuners of a model, and the switches that the hooks read.

    Attributes:
        tuners: in the order in which their heads apply.
        active: whether they are switched on; ``frozen_pass``: off for one pass of the untouched model.
        places: int64 [classes, text_tokens], where the learned tokens of each prompt stand; set with the classes.
    """

    places: Tensor | None

    def __init__(self, tuners: list[Tuner]):
        super().__init__()
        self.tuners = nn.ModuleList(tuners)
        self.active, self.frozen_pass = True, False
        self.register_buffer("places", None, persistent=False)
        self._values: dict[str, Values] = {}
        self.passing = _Passing()

    def __getstate__(self) -> dict[str, Any]:
        # A copy starts without a pass: what entered in the last one has a graph, and cannot be copied.
        return {**self.__dict__, "_values": {}, "passing": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.passing = _Passing()

    def sites(self, tower: str) -> Sites:
        """Those of all tuners."""
        return Sites.joined([tuner.sites(tower) for tuner in self.all])

    @property
    def all(self) -> list[Tuner]:
        """The tuners."""
        return [tuner for tuner in self.tuners if isinstance(tuner, Tuner)]

    def values(self, image_features: Tensor | None = None) -> dict[str, Values]:
        """What enters both towers, of all tuners."""
        found: dict[str, dict[int, Tensor]] = {"vision": {}, "text": {}}
        for tuner in self.all:
            for tower, values in tuner.values(image_features).items():
                found[tower].update(values)
        return dict(found)

    def update(self, tower: str, block: int) -> Any:
        """The low-rank updates of a block; at most one tuner has some."""
        return next((u for tuner in self.all if (u := tuner.update(tower, block)) is not None), None)

    @property
    def running(self) -> bool:
        """Whether a pass now is one of the tuned model."""
        return self.active and not self.frozen_pass

    def install(self, clip: ClipModel) -> None:
        """Put the hooks into ``clip``."""
        for name, tower in find_towers(clip).items():
            sites = self.sites(name)
            if sites.edits and name == "text":
                at_path(tower.root, tower.kind.words).register_forward_hook(self._after_embedding)
            if sites.edits and name == "vision":
                at_path(tower.root, tower.kind.enter).register_forward_pre_hook(self._before_norm)
            for number, block in enumerate(tower.blocks):
                edit, more = sites.before(number), sites.inserted(number + 1)
                if more or (edit is not None and not edit.embedded):
                    hook = partial(before_block, self, name, edit, more)
                    block.register_forward_pre_hook(hook, with_kwargs=True)
            if inserted := sites.inserted(tower.depth):
                # Behind the adapter's hook, which adds to the inserted tokens too.
                hook = partial(after_blocks, self, inserted, sites.read)
                tower.blocks[-1].register_forward_hook(hook)
            for block in sites.updates:
                attention = tower.blocks[block].attn
                attention.register_forward_pre_hook(partial(before_attention, self, (name, block)), with_kwargs=True)
                attention.register_forward_hook(partial(after_attention, self, (name, block)), with_kwargs=True)

    def uninstall(self, clip: ClipModel) -> None:
        """Take the hooks out of ``clip`` again."""
        for module in clip.modules():
            for hooks in (module._forward_hooks, module._forward_pre_hooks):
                for key, hook in list(hooks.items()):
                    if _owner(hook) is self:
                        del hooks[key]
                        module._forward_hooks_with_kwargs.pop(key, None)
                        module._forward_pre_hooks_with_kwargs.pop(key, None)

    def _before_norm(self, norm: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if not self.running:
            return args
        values = self._values["vision"] = self.values()["vision"]
        edit = self.sites("vision").before(0)
        if edit is None or not edit.embedded:
            return args
        return (edited(edit, args[0], values[0]), *args[1:])

    def _after_embedding(self, embedding: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not self.running:
            return output
        values = self._values["text"] = self.values(self.passing.image_features)["text"]
        edit = self.sites("text").before(0)
        if edit is None or not edit.embedded:
            return output
        assert self.places is not None  # set with the classes
        tokens = values[0].to(output.dtype).expand(len(output), -1, -1)
        return output.scatter(1, self.places[:, :, None].expand_as(tokens), tokens)

    def with_read(self, clip: ClipModel, features: Tensor) -> Tensor:
        """Image ``features`` [n, embed] of the pass that has just ended, with the mean of the tokens that are read."""
        read, self.passing.read = self.passing.read, None
        if read is None or not self.running:
            return features
        vision = find_towers(clip)["vision"]
        return torch.cat([features, at_path(vision.root, vision.kind.leave)(read).mean(1).to(features.dtype)], -1)

    @contextlib.contextmanager
    def bypassed(self) -> Iterator[None]:
        """Inside, the model's own modules are those of the untouched model."""
        before, self.frozen_pass = self.frozen_pass, True
        try:
            yield
        finally:
            self.frozen_pass = before

    @contextlib.contextmanager
    def of_image(self, features: Tensor) -> Iterator[None]:
        """Inside, classes are encoded for the image whose frozen features are ``features`` [1, embed]."""
        self.passing.image_features = features
        try:
            yield
        finally:
            self.passing.image_features = None


def _owner(hook: Any) -> Any:
    """Whose hook this is: an ``Installed`` for all that it puts in."""
    return hook.args[0] if isinstance(hook, partial) and hook.args else getattr(hook, "__self__", None)


def is_entered(clip: ClipModel) -> bool:
    """Whether the modules of ``clip`` have hooks of tuners."""
    hooks = (h for module in clip.modules() for h in (module._forward_hooks, module._forward_pre_hooks))
    return any(isinstance(_owner(hook), Installed) for found in hooks for hook in found.values())


def before_block(
    installed: Installed,
    tower: str,
    edit: TokenEdit | None,
    more: int,
    block: Block,
    args: tuple[Any, ...],
    names: dict[str, Any],
) -> Any:
    """Forward pre-hook of a block: its input with the learned tokens, its mask for ``more`` tokens."""
    if not installed.running:
        return args, names
    x, *others = args
    if edit is not None and not edit.embedded:
        x = edited(edit, x, installed._values[tower][edit.block])
    # open_clip hands the mask on by its name, and where it recomputes activations by its place.
    others = [longer_mask(other, more) for other in others]
    return (x, *others), {name: longer_mask(value, more) for name, value in names.items()}


def after_blocks(
    installed: Installed, inserted: int, read: int, block: Block, args: tuple[Any, ...], output: Tensor
) -> Tensor:
    """Forward hook of the last block: its output without the ``inserted`` tokens, of which ``read`` are kept."""
    if not installed.running:
        return output
    if read:
        installed.passing.read = output[:, 1 : 1 + read]
    return taken_out(output, inserted)


def taken_out(x: Tensor, inserted: int) -> Tensor:
    """``x`` [rows, tokens, D] without the ``inserted`` tokens behind the first."""
    return torch.cat([x[:, :1], x[:, 1 + inserted :]], 1) if inserted else x


def edited(edit: TokenEdit, x: Tensor, values: Tensor) -> Tensor:
    """``x`` [rows, tokens, D] with ``values`` [count, D] where ``edit`` says."""
    values = values.to(x.dtype).expand(x.shape[0], -1, -1)
    if edit.place == APPEND:
        return torch.cat([x, values], 1)
    if edit.place == INSERT:
        return torch.cat([x[:, :1], values, x[:, 1:]], 1)
    if edit.last:
        return torch.cat([x[:, : -edit.count], values], 1)
    return torch.cat([x[:, :1], values, x[:, 1 + edit.count :]], 1)


def before_attention(
    installed: Installed, place: tuple[str, int], attn: Any, args: tuple[Tensor, ...], names: dict[str, Any]
) -> Any:
    """Forward pre-hook of a block's attention: none of its rows, where ``after_attention`` computes them."""
    if not installed.running or installed.update(*place) is None:
        return args, names
    mask = names.get("attn_mask")
    if mask is not None and mask.dim() == 3:  # [rows * heads, tokens, tokens]: CoCa has one for each prompt
        mask = mask.unflatten(0, (-1, attn.num_heads))
    installed.passing.attending[place] = args[0], mask
    return tuple(arg[:0] for arg in args), {**names, "attn_mask": None}


def after_attention(
    installed: Installed,
    place: tuple[str, int],
    attn: Any,
    args: tuple[Tensor, ...],
    names: dict[str, Any],
    output: tuple[Tensor, Any],
) -> tuple[Tensor, Any]:
    """Forward hook of a block's attention: what it gives with low-rank updates of its matrices."""
    attending = installed.passing.attending
    if place not in attending:
        return output
    (x, mask), update = attending.pop(place), installed.update(*place)
    parts = F.linear(x, attn.in_proj_weight, attn.in_proj_bias).chunk(3, -1)
    q, k, v = (
        added(low, x, part).unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
        for low, part in zip(update[:3], parts, strict=True)
    )
    found = scaled_attention(q, k, v, mask, causal=False).transpose(1, 2).flatten(2)
    return added(update.out, found, F.linear(found, attn.out_proj.weight, attn.out_proj.bias)), output[1]
