"""What a training step costs, counted in floating-point operations and in bytes kept for the backward pass.

A product of an [m, k] with a [k, n] matrix is 2 m k n operations. Frozen weights get no gradient, so a block's backward
pass costs its linear layers once more, and attention's five products in place of two; what is trained costs its own
products three times. Norms, activations and the loss are left out; they move bytes and count few operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from open_clip.transformer import QuickGELU

from rmadapter.clip.parts import BlockParts
from rmadapter.clip.tower_kind import CHILD
from rmadapter.clip.towers import find_towers, towers_embed
from rmadapter.clip.types import Block
from rmadapter.config.shortcuts import StepConfig
from rmadapter.step.chunks import Chunk
from rmadapter.tuners.adapted_clip import AdaptedCLIP


@dataclass(frozen=True)
class TowerShape:
    """The numbers that a tower's cost depends on.

    Attributes:
        width, hidden, heads, depth: of its blocks, their MLP and their attention, and how many they are.
        linear: operations of a block's matrices on a token.
        first: place of the last block from 0 whose own part is frozen and has nothing trained before it: of the first
            one with an adapter beside it, -1 where something is trained before or in the first; ``depth`` where
            nothing is.
        adapters: number of them.
        adapter: operations of one adapter's forward pass on a token.
        added: for each block, how many tokens a row has there beside those of the untouched tower.
        read: tokens of a row that the tower is read at beside the pooled one.
        updates: for each block, operations of its low-rank updates on a token, forward.
        update_bytes: what a block's updates keep of a token for the backward pass.
        inner: whether the first block above ``first`` is trained inside alone, so that no gradient goes to its input.
        embed: operations before the first block, a token.
        finish: operations behind the last block, a row: of pooling by attention.
        keys: at one token, operations of the last block's keys and values on a token; None where they are not formed.
        hidden_kept: how many tensors as large as the hidden layer the activation keeps for the backward pass.
        module_keeps: how many more the model's own module keeps: QuickGELU's both factors of a product.
        size, stream: bytes a number in the compute dtype and in the residual stream above the first adapter.
    """

    width: int
    hidden: int
    linear: int
    heads: int
    depth: int
    first: int
    adapters: int
    adapter: int
    added: tuple[int, ...]
    read: int
    updates: tuple[int, ...]
    update_bytes: int
    inner: bool
    embed: int
    finish: int
    keys: int | None
    hidden_kept: int
    module_keeps: int
    size: int
    stream: int

    def saved_bytes(self, chunk: Chunk) -> int:
        """Bytes that the adapted blocks keep of ``chunk`` for the backward pass.

        Of a token a block keeps the inputs of its two LayerNorms, queries, keys, values, the attention's output, the
        input of the MLP's activation, and what the adapter reads. Keys and values of tokens that all rows begin with
        are copied to each row. Of the first adapted block, whose frozen part leaves no graph, it is the adapter's
        alone.
        """
        if self.untouched:
            return 0
        token = 2 * self.width * self.stream + (5 * self.width + self.hidden_kept * self.hidden) * self.size
        above = 0
        for block in range(self.first + 1, self.depth):
            here = chunk.longer(self.added[block])
            copies = here.rows * here.length * 2 * self.width * self.size if here.shared else 0
            above += here.tokens * (token + (self.update_bytes if self.updates[block] else 0)) + copies
        return above + chunk.tokens * self.width * self.size

    @property
    def untouched(self) -> bool:
        """Whether nothing is trained in it."""
        return self.first == self.depth

    def forward(self, chunk: Chunk, start: int, stop: int, by_token: bool = False) -> float:
        """Operations of the blocks ``start`` to ``stop`` of the untouched tower.

        With ``by_token`` its last block is computed at one token.
        """
        return sum(self._block(chunk, by_token and block == self.depth - 1) for block in range(start, stop))

    def tuned(self, chunk: Chunk, by_token: bool, *, backward: bool = False) -> float:
        """Operations of the trained blocks with the tokens and updates that enter them, or of their backward pass."""
        found = 0.0
        for block in range(self.first + 1, self.depth):
            here, last = chunk.longer(self.added[block]), by_token and block == self.depth - 1
            found += self._block(here, last, products=5 if backward else 2, taken=1 + self.read)
            if self.updates[block]:
                found += self._updates(here, block, last, backward)
        return found

    def _updates(self, chunk: Chunk, block: int, at_token: bool, backward: bool) -> float:
        """Operations of a block's low-rank updates, or what its backward pass costs more with them than without."""
        tokens = chunk.rows if at_token else chunk.tokens
        each = self.updates[block]
        # At one token q, k and v are products with matrices that are formed, of which the gradients are made.
        once = each * self.width / 2 if at_token else each * chunk.tokens
        if not backward:
            return once
        found = 2 * once + (6 * self.width**2 * tokens if at_token else 0)
        if self.inner and block == self.first + 1:
            found -= 6 * self.width**2 * tokens + (0 if at_token else once)
        return found

    def _block(self, chunk: Chunk, at_token: bool, products: int = 2, taken: int = 1) -> float:
        """Operations of one block with ``products`` of attention, at all tokens or ``taken`` ones of each row."""
        linear = self.linear
        attention = 2 * products * self.width
        if not at_token:
            return chunk.tokens * linear + chunk.pairs * attention
        if self.keys is not None:
            return chunk.rows * (taken * (linear - self.keys + chunk.length * attention) + chunk.length * self.keys)
        # All four projections are those of these tokens; their heads look at the tokens as they are, each over their
        # width.
        return chunk.rows * taken * (linear + self.heads * chunk.length * attention)

    def adapters_flop(self, tokens: int) -> float:
        """Forward, the same again in the backward pass, and gradients to weights and input."""
        return self.adapters * tokens * 4 * self.adapter


@dataclass(frozen=True)
class Cost:
    """Operations of one step by what they are for, and bytes of activations kept for the backward pass."""

    image_prefix: float = 0.0
    image_frozen: float = 0.0
    image_adapted: float = 0.0
    text_prefix: float = 0.0
    text_frozen: float = 0.0
    text_adapted: float = 0.0
    outside: float = 0.0
    bytes: float = 0.0

    @property
    def flop(self) -> float:
        """All operations."""
        return self.outside + sum(getattr(self, f"{tower}_{part}") for tower in ("image", "text") for part in PARTS)


PARTS = ("prefix", "frozen", "adapted")


@dataclass(frozen=True)
class Workload:
    """One step's work.

    Attributes:
        image, text: the towers.
        images, image_tokens: batch size, and tokens of one image.
        context: tokens of an untrimmed prompt.
        chunks: the classes.
        targets: whether the frozen image and the frozen text features are needed.
        target_prompts: prompts a class that the frozen text features are of, where they are others than those that are
            classified by; 0: those. The plain step too computes others once a run.
        rebuilds: whether the reconstruction of the towers is that of the frozen pass, which then runs in every step.
        by_block: whether adapted blocks are computed again in the backward pass, one by one (--grad-checkpointing).
        per_image: whether the classes are computed for each image.
        outside: operations outside of the towers: logits, heads, what makes tokens of weights.
        backwards: backward passes of a step.
        two_views: whether the frozen image features are those of a second view.
    """

    image: TowerShape
    text: TowerShape
    images: int
    image_tokens: int
    context: int
    chunks: Sequence[Chunk]
    targets: tuple[bool, bool]
    rebuilds: tuple[bool, bool]
    by_block: bool
    per_image: bool = False
    target_prompts: int = 0
    outside: float = 0.0
    backwards: int = 1
    two_views: bool = False

    @property
    def classes(self) -> int:
        """Number of classes."""
        return max(chunk.stop for chunk in self.chunks)

    def plain(self) -> Workload:
        """That of the plain step: all prompts at full length, in one chunk, and activations by the model's modules."""
        towers = (self.image, self.text)
        image, text = (replace(tower, hidden_kept=tower.hidden_kept + tower.module_keeps) for tower in towers)
        return replace(self, image=image, text=text, chunks=[Chunk(0, self.classes, self.context)])


def workload(
    model: AdaptedCLIP,
    chunks: Sequence[Chunk],
    images: int,
    *,
    targets: tuple[bool, bool],
    rebuilds: tuple[bool, bool],
    stream: int,
    context: int,
    target_prompts: int = 0,
    backwards: int = 1,
    two_views: bool = False,
) -> Workload:
    """The work of one step on ``images`` images with ``model``; ``stream`` in bytes a number, ``context`` in tokens."""
    vision, words = find_towers(model.clip).values()
    image = tower_shape(model, "vision", embed=vision.kind.embed_operations(vision.root), stream=stream)
    text = tower_shape(model, "text", stream=stream)
    classes = max(chunk.stop for chunk in chunks)
    return Workload(
        image=image,
        text=text,
        images=images,
        image_tokens=vision.kind.size(vision.root),
        context=context + words.kind.added(words.root),
        chunks=chunks,
        targets=targets,
        rebuilds=rebuilds,
        by_block=vision.recomputes,
        per_image=model.sites("text").per_image,
        target_prompts=target_prompts,
        outside=outside_flop(model, images, classes, image, text),
        backwards=backwards,
        two_views=two_views,
    )


def outside_flop(model: AdaptedCLIP, images: int, classes: int, image: TowerShape, text: TowerShape) -> float:
    """Operations of one step outside of the towers: what the tuners say of themselves, and the logits."""
    trained = {side for side, shape in (("image", image), ("text", text)) if not shape.untouched}
    found = 0.0
    for tuner in model.tuners:
        found += tuner.operations(images, classes, trained)
        trained |= tuner.changed
    # The product itself, and one for each side that a gradient goes to.
    return found + 2 * images * classes * towers_embed(model.clip) * (1 + len(trained))


def tower_shape(model: AdaptedCLIP, modality: str, *, stream: int, embed: int = 0) -> TowerShape:
    """The shape of one tower of ``model``; ``stream`` in bytes a number, ``embed`` as in ``TowerShape``."""
    tower = find_towers(model.clip)[modality]
    layers = [found.layer for found in model.adapters(modality)]
    sites = model.sites(modality)
    inside = sites.first
    starts = [*(layers[:1] and [layers[0] - 1]), *([] if inside is None else [inside - 1])]
    branch = next((found.adapter.branch for found in model.adapters(modality)), None)
    block, parts = tower.blocks[0], tower.parts[0]
    first = min(starts, default=tower.depth)
    size = tower.dtype.itemsize
    updates = [model.update(modality, number) or () for number in range(tower.depth)]
    lows = [[low for low in update if low is not None] for update in updates]
    # Dropout keeps its output, and which values it has left out.
    kept = [sum((tower.width * (size + 1)) if low.dropout else 0 for low in found) for found in lows]
    return TowerShape(
        width=tower.width,
        hidden=_hidden(parts, block),
        linear=2 * _matrix_numbers(parts, block),
        heads=1 if parts.attention is None else parts.attention.heads,
        depth=tower.depth,
        first=first,
        adapters=len(layers),
        adapter=2 * sum(p.numel() for p in branch.parameters() if p.dim() == 2) if branch is not None else 0,
        added=tuple(sites.added_before(number + 1) for number in range(tower.depth)),
        read=sites.read,
        updates=tuple(sum(2 * (low.a.numel() + low.b.numel()) for low in found) for found in lows),
        update_bytes=max(kept),
        inner=first + 1 in sites.updates and sites.before(first + 1) is None,
        embed=embed,
        finish=tower.kind.finish_operations(tower.root),
        keys=_keys(tower.parts[-1]),
        hidden_kept=_hidden_kept(parts),
        module_keeps=parts.mlp is not None and type(parts.mlp.act) is QuickGELU,
        size=size,
        stream=stream,
    )


def _matrix_numbers(parts: BlockParts, block: Block) -> int:
    """Numbers in a block's matrices, of which each is two operations a token."""
    if parts.apart and parts.attention is not None:
        return sum(weight.numel() for weight in parts.matrices())
    trained = {id(p) for p in getattr(block, CHILD).parameters()} if hasattr(block, CHILD) else set()
    return sum(p.numel() for p in block.parameters() if p.dim() == 2 and id(p) not in trained)


def _keys(parts: BlockParts) -> int | None:
    """``TowerShape.keys``."""
    if parts.attention is None or parts.attention.plain or len(parts.attention.qkv) == 1:
        return None
    return 2 * sum(weight.numel() for weight, _ in parts.attention.qkv[1:])


def _hidden_kept(parts: BlockParts) -> int:
    """How many tensors as wide as the hidden layer an MLP keeps: an activation's input, both factors of a product."""
    if parts.mlp is None:
        return 1
    return (3 if parts.mlp.gate is not None else 1) + (parts.mlp.norm is not None)


def _hidden(parts: BlockParts, block: Block) -> int:
    """Width of the MLP's hidden layer; of a block that is not taken apart that of its widest matrix."""
    if parts.mlp is not None:
        return parts.mlp.first.out_features
    return max(max(p.shape) for p in block.parameters() if p.dim() == 2)


def step_cost(work: Workload, shortcuts: StepConfig, by_token: tuple[bool, bool], cached_views: bool = False) -> Cost:
    """The cost of one step with ``shortcuts``; ``by_token`` says for which tower ``last_token`` applies.

    Without any shortcut it is the plain step's.
    """
    at_token = [shortcuts.last_token and applies for applies in by_token]
    # What nothing is trained in gives the frozen features by itself, of the same view; the plain step runs it twice.
    plain = not shortcuts.any
    twice = (plain or work.two_views or not work.image.untouched, plain or not work.text.untouched)
    image = _tower_cost(
        work.image,
        [Chunk(0, work.images, work.image_tokens)],
        at_token[0],
        prefix=0 if cached_views else 1,
        frozen=work.rebuilds[0] or (work.targets[0] and twice[0] and not cached_views),
        shared=shortcuts.image_prefix and not work.two_views,
        by_block=work.by_block,
        backwards=work.backwards,
    )
    own = work.targets[1] and not work.target_prompts
    text = _tower_cost(
        work.text,
        work.chunks,
        at_token[1],
        prefix=0 if shortcuts.text_prefix else 1,
        frozen=work.rebuilds[1] or (own and twice[1] and not shortcuts.frozen_targets),
        shared=shortcuts.text_prefix,
        by_block=work.by_block,
        backwards=work.backwards,
    )
    if work.per_image:
        text = {name: value * work.images for name, value in text.items()}
    if work.targets[1] and not plain and not shortcuts.frozen_targets:
        others = (replace(chunk, shared=0) for chunk in work.chunks)
        once = sum(work.text.forward(chunk, 0, work.text.depth, at_token[1]) for chunk in others)
        text["frozen"] += work.target_prompts * once
    flop = {f"{name}_{part}": cost[part] for name, cost in (("image", image), ("text", text)) for part in PARTS}
    return Cost(**flop, outside=work.outside, bytes=image["bytes"] + text["bytes"])


def _tower_cost(
    shape: TowerShape,
    chunks: Sequence[Chunk],
    by_token: bool,
    *,
    prefix: int,
    frozen: bool,
    shared: bool,
    by_block: bool,
    backwards: int,
) -> dict[str, float]:
    cost = dict.fromkeys((*PARTS, "bytes"), 0.0)
    recomputed = 0.0
    for chunk in chunks:
        # Up to and with the frozen part of the first adapted block.
        begin = shape.forward(chunk, 0, min(shape.first + 1, shape.depth), by_token) + chunk.tokens * shape.embed
        cost["prefix"] += prefix * begin
        if frozen:
            above = shape.forward(chunk, shape.first + 1, shape.depth, by_token) + chunk.rows * shape.finish
            cost["frozen"] += above + (0 if shared else begin)
        cost["adapted"] += shape.tuned(chunk, by_token) * (2 if chunk.recompute or by_block else 1)
        cost["adapted"] += shape.tuned(chunk, by_token, backward=True) * backwards
        cost["adapted"] += shape.adapters_flop(chunk.tokens)
        # Of what a gradient goes through, its inputs' once more.
        cost["adapted"] += chunk.rows * shape.finish * (1 if shape.untouched else 1 + backwards)
        saved = shape.saved_bytes(chunk)
        if by_block:
            blocks = max(1, shape.depth - shape.first - 1)
            saved = saved // blocks + blocks * chunk.tokens * shape.width * shape.stream
        if chunk.recompute:
            recomputed = max(recomputed, saved)
        else:
            cost["bytes"] += saved
    cost["bytes"] += recomputed
    return cost
