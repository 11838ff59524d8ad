"""Where a tower keeps its blocks: data, one record a kind of tower. A new kind is a record beside these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from rmadapter.clip.types import ClipModel
from rmadapter.errors import InputError


@dataclass(frozen=True)
class TowerKind:
    """How to find the transformer blocks of one kind of tower inside a CLIP model.

    Args:
        name: what it is called in messages.
        modality: "vision" or "text".
        blocks: dotted path from the CLIP model to the list of blocks.
        norm: attribute of a block: the LayerNorm in front of its attention.
        transformer: dotted path to the module with the flags ``batch_first`` (activations are [batch, tokens,
            width]) and ``grad_checkpointing`` (blocks are recomputed in backward).
        causal_mask: dotted path to the additive mask of a causal tower, or None.
        pool_type: dotted path to the pooling's name, or None where the features are not those of one token.
    """

    name: str
    modality: str
    blocks: str
    norm: str
    transformer: str
    causal_mask: str | None
    pool_type: str | None


TOWER_KINDS = (
    TowerKind(
        name="open_clip ViT",
        modality="vision",
        blocks="visual.transformer.resblocks",
        norm="ln_1",
        transformer="visual.transformer",
        causal_mask=None,
        pool_type="visual.pool_type",
    ),
    TowerKind(
        name="open_clip text transformer",
        modality="text",
        blocks="transformer.resblocks",
        norm="ln_1",
        transformer="transformer",
        causal_mask="attn_mask",
        pool_type="text_pool_type",
    ),
)

# Under this name what is trained beside a block is a child of it, here so that a base model can be told from it.
CHILD = "rm_adapter"

WORKING = "open_clip's CLIP models whose towers are both transformers, such as ViT-B-32, ViT-B-16 and ViT-L-14"


def _lookup(model: ClipModel, path: str | None) -> Any:
    """The attribute at a dotted path, or None where a part is missing or there is no path."""
    if path is None:
        return None
    found: Any = model
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


@dataclass(frozen=True)
class Tower:
    """One tower of one model: its kind, and what the kind's paths lead to: a module, and a list of modules."""

    kind: TowerKind
    transformer: Any
    blocks: Any

    @property
    def width(self) -> int:
        """Width D of the tower's tokens."""
        return self.norm(1).normalized_shape[0]

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    def pool_type(self, model: ClipModel) -> str | None:
        """How ``model``, whose tower this is, makes one vector of its tokens; None where its kind does not say."""
        return _lookup(model, self.kind.pool_type)

    def norm(self, layer: int) -> nn.LayerNorm:
        """The LayerNorm in front of the attention of block ``layer``, counted from 1."""
        return getattr(self.blocks[layer - 1], self.kind.norm)


def find_towers(model: ClipModel) -> dict[str, Tower]:
    """The two towers of ``model`` by modality, "vision" and "text".

    Raises:
        InputError: a tower without transformer blocks of a known kind; the message names what it is instead.
    """
    towers: dict[str, Tower] = {}
    for kind in TOWER_KINDS:
        blocks = _lookup(model, kind.blocks)
        usable = isinstance(blocks, nn.ModuleList) and all(
            isinstance(getattr(block, kind.norm, None), nn.LayerNorm) for block in blocks
        )
        if usable and len(blocks):
            transformer = _lookup(model, kind.transformer)
            if not transformer.batch_first:
                raise InputError(f"the {kind.modality} tower keeps its batch second; valid: batch_first=True")
            towers[kind.modality] = Tower(kind, transformer, blocks)
    missing = [modality for modality in ("vision", "text") if modality not in towers]
    if missing:
        modality = missing[0]
        raise InputError(
            f"the {modality} tower of this {type(model).__name__} is {_describe(model, modality)}, which has no "
            f"transformer blocks that an adapter fits; these work: {WORKING}"
        )
    return towers


def _describe(model: ClipModel, modality: str) -> str:
    """What stands in place of a transformer: the class, and timm's name for the trunk where there is one."""
    tower = getattr(model, "visual" if modality == "vision" else "text", None)
    if tower is None:
        return "missing"
    trunk = getattr(tower, "trunk", None) or getattr(tower, "transformer", None)
    return f"a {type(tower).__name__}" + (f" around a {type(trunk).__name__}" if trunk is not None else "")


def text_is_trimmable(model: ClipModel) -> bool:
    """Whether leaving out the tokens after the longest prompt's end changes no text feature.

    It does not where attention is causal and the features are those of the end-of-text token: no token looks
    at a later one, and none after it is read.
    """
    kind = next(kind for kind in TOWER_KINDS if kind.modality == "text")
    return _lookup(model, kind.causal_mask) is not None and _lookup(model, kind.pool_type) in ("argmax", "eos")


def pooled_token(model: ClipModel, modality: str) -> int | None:
    """The one place at which a tower is pooled, -1 for the last; None where it depends on the prompt, or is none."""
    pool = find_towers(model)[modality].pool_type(model)
    return {"tok": 0, "first": 0, "last": -1}.get(pool or "")
