"""What a training step costs, counted in floating-point operations and in bytes kept for the backward pass.

A product of an [m, k] with a [k, n] matrix is 2 m k n operations. Frozen weights get no gradient, so a block's backward
pass costs its linear layers once more, and attention's five products in place of two. Norms, activations and the loss
are left out; they move bytes and count few operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from open_clip.transformer import QuickGELU

from rmadapter.clip.towers import find_towers
from rmadapter.config.shortcuts import StepConfig
from rmadapter.step.chunks import Chunk
from rmadapter.tuners.adapted_clip import AdaptedCLIP


@dataclass(frozen=True)
class TowerShape:
    """The numbers that a tower's cost depends on.

    Attributes:
        width, hidden, heads, depth: of its blocks, their MLP and their attention, and how many they are.
        first: place of the last block from 0 whose own part is frozen and has nothing trained before it: of the first
            one with an adapter beside it, -1 where something is trained before or in the first; ``depth`` where
            nothing is.
        adapters: number of them.
        adapter: operations of one adapter's forward pass on a token.
        embed: operations before the first block, a token.
        hidden_kept: how many tensors as large as the hidden layer the activation keeps for the backward pass.
        size, stream: bytes a number in the compute dtype and in the residual stream above the first adapter.
    """

    width: int
    hidden: int
    heads: int
    depth: int
    first: int
    adapters: int
    adapter: int
    embed: int
    hidden_kept: int
    size: int
    stream: int

    def saved_bytes(self, chunk: Chunk) -> int:
        """Bytes that the adapted blocks keep of ``chunk`` for the backward pass.

        Of a token a block keeps the inputs of its two LayerNorms, queries, keys, values, the attention's output, what
        the MLP's activation needs (its input; QuickGELU's is a product of two factors), and what the adapter reads.
        Keys and values of tokens that all rows begin with are copied to each row. Of the first adapted block, whose
        frozen part leaves no graph, it is the adapter's alone.
        """
        token = 2 * self.width * self.stream + (5 * self.width + self.hidden_kept * self.hidden) * self.size
        copies = chunk.rows * chunk.length * 2 * self.width * self.size if chunk.shared else 0
        above = max(0, self.depth - self.first - 1) * (chunk.tokens * token + copies)
        return above + chunk.tokens * self.width * self.size

    def forward(self, chunk: Chunk, start: int, stop: int, by_token: bool = False) -> float:
        """Operations of the blocks ``start`` to ``stop``; the tower's last one at one token with ``by_token``."""
        return self._blocks(chunk, start, stop, by_token, products=2)

    def backward(self, chunk: Chunk, by_token: bool) -> float:
        """Operations of the backward pass through the blocks above the first adapted one."""
        return self._blocks(chunk, self.first + 1, self.depth, by_token, products=5)

    def _blocks(self, chunk: Chunk, start: int, stop: int, by_token: bool, products: int) -> float:
        linear = 8 * self.width**2 + 4 * self.width * self.hidden
        attention = 2 * products * self.width
        whole = chunk.tokens * linear + chunk.pairs * attention
        if not (by_token and start < self.depth == stop):
            return max(0, stop - start) * whole
        # All four projections are those of one token; its heads look at the tokens as they are, each over their width.
        last = chunk.rows * (linear + self.heads * chunk.length * attention)
        return (stop - start - 1) * whole + last

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
    bytes: float = 0.0

    @property
    def flop(self) -> float:
        """All operations."""
        return sum(getattr(self, f"{tower}_{part}") for tower in ("image", "text") for part in PARTS)


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
        rebuilds: whether the reconstruction of the towers is that of the frozen pass, which then runs in every step.
        by_block: whether adapted blocks are computed again in the backward pass, one by one (--grad-checkpointing).
        per_image: whether the classes are computed for each image.
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
    two_views: bool = False

    @property
    def classes(self) -> int:
        """Number of classes."""
        return max(chunk.stop for chunk in self.chunks)

    def untrimmed(self) -> Workload:
        """The same with all prompts at full length, in one chunk."""
        return replace(self, chunks=[Chunk(0, self.classes, self.context)])


def workload(
    model: AdaptedCLIP,
    chunks: Sequence[Chunk],
    images: int,
    *,
    targets: tuple[bool, bool],
    rebuilds: tuple[bool, bool],
    stream: int,
    two_views: bool = False,
) -> Workload:
    """The work of one step on ``images`` images with ``model``; ``stream`` in bytes a number."""
    visual = model.clip.visual
    patches = visual.grid_size[0] * visual.grid_size[1]
    patch = visual.conv1.weight[0].numel()
    return Workload(
        image=tower_shape(model, "vision", embed=2 * patch * visual.conv1.out_channels, stream=stream),
        text=tower_shape(model, "text", stream=stream),
        images=images,
        image_tokens=patches + 1 + model.sites("vision").added,
        context=model.clip.context_length,
        chunks=chunks,
        targets=targets,
        rebuilds=rebuilds,
        by_block=bool(visual.transformer.grad_checkpointing),
        per_image=model.sites("text").per_image,
        two_views=two_views,
    )


def tower_shape(model: AdaptedCLIP, modality: str, *, stream: int, embed: int = 0) -> TowerShape:
    """The shape of one tower of ``model``; ``stream`` in bytes a number, ``embed`` as in ``TowerShape``."""
    tower = find_towers(model.clip)[modality]
    layers = [found.layer for found in model.adapters(modality)]
    inside = model.sites(modality).first
    starts = [*(layers[:1] and [layers[0] - 1]), *([] if inside is None else [inside - 1])]
    branch = next((found.adapter.branch for found in model.adapters(modality)), None)
    block = tower.blocks[0]
    return TowerShape(
        width=tower.width,
        hidden=block.mlp.c_fc.out_features,
        heads=block.attn.num_heads,
        depth=tower.depth,
        first=min(starts, default=tower.depth),
        adapters=len(layers),
        adapter=2 * sum(p.numel() for p in branch.parameters() if p.dim() == 2) if branch is not None else 0,
        embed=embed,
        hidden_kept=2 if isinstance(block.mlp.gelu, QuickGELU) else 1,
        size=tower.transformer.get_cast_dtype().itemsize,
        stream=stream,
    )


def step_cost(work: Workload, shortcuts: StepConfig, by_token: tuple[bool, bool], cached_views: bool = False) -> Cost:
    """The cost of one step with ``shortcuts``; ``by_token`` says for which tower ``last_token`` applies."""
    at_token = [shortcuts.last_token and applies for applies in by_token]
    image = _tower_cost(
        work.image,
        [Chunk(0, work.images, work.image_tokens)],
        at_token[0],
        prefix=0 if cached_views else 1,
        frozen=work.rebuilds[0] or (work.targets[0] and not cached_views),
        shared=shortcuts.image_prefix and not work.two_views,
        by_block=work.by_block,
    )
    text = _tower_cost(
        work.text,
        work.chunks,
        at_token[1],
        prefix=0 if shortcuts.text_prefix else 1,
        frozen=work.rebuilds[1] or (work.targets[1] and not shortcuts.frozen_targets),
        shared=shortcuts.text_prefix,
        by_block=work.by_block,
    )
    if work.per_image:
        text = {name: value * work.images for name, value in text.items()}
    flop = {f"{name}_{part}": cost[part] for name, cost in (("image", image), ("text", text)) for part in PARTS}
    return Cost(**flop, bytes=image["bytes"] + text["bytes"])


def _tower_cost(
    shape: TowerShape,
    chunks: Sequence[Chunk],
    by_token: bool,
    *,
    prefix: int,
    frozen: bool,
    shared: bool,
    by_block: bool,
) -> dict[str, float]:
    cost = dict.fromkeys((*PARTS, "bytes"), 0.0)
    recomputed = 0.0
    for chunk in chunks:
        # Up to and with the frozen part of the first adapted block.
        begin = shape.forward(chunk, 0, min(shape.first + 1, shape.depth), by_token) + chunk.tokens * shape.embed
        above = shape.forward(chunk, shape.first + 1, shape.depth, by_token)
        cost["prefix"] += prefix * begin
        if frozen:
            cost["frozen"] += above + (0 if shared else begin)
        cost["adapted"] += above * (2 if chunk.recompute or by_block else 1) + shape.backward(chunk, by_token)
        cost["adapted"] += shape.adapters_flop(chunk.tokens)
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
