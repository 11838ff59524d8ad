"""The towers of a CLIP model, found by the kinds that ``clip.kinds`` has and by those that were registered."""

from __future__ import annotations

from torch import nn

from rmadapter.clip.kinds import KINDS
from rmadapter.clip.tower_kind import Tower, TowerKind, at_path
from rmadapter.clip.types import ClipModel
from rmadapter.errors import InputError, check_choice

MODALITIES = ("vision", "text")
WORKING = (
    "open_clip's CLIP models whose towers are both transformers, such as ViT-B-32, ViT-B-16-SigLIP and EVA02-L-14; "
    "rmadapter models lists them"
)

# Newest first.
_registered: list[TowerKind] = []


def register_tower(kind: TowerKind) -> None:
    """Let models with towers of ``kind`` be adapted from now on; it is asked before the kinds that are there.

    Raises:
        InputError: another modality than "vision" and "text".
    """
    check_choice("modality of a tower kind", kind.modality, MODALITIES)
    _registered.insert(0, kind)


def find_towers(model: ClipModel) -> dict[str, Tower]:
    """The two towers of ``model`` by modality, "vision" and "text".

    Raises:
        InputError: a tower without transformer blocks of a known kind; the message names what it is instead.
    """
    towers: dict[str, Tower] = {}
    for modality in MODALITIES:
        for kind in (*_registered, *KINDS):
            root = at_path(model, kind.root) if kind.modality == modality else None
            if root is None or not kind.fits(root):
                continue
            blocks = at_path(root, kind.blocks)
            if isinstance(blocks, (nn.ModuleList, nn.Sequential)) and len(blocks):
                towers[modality] = Tower(kind, root, blocks)
                break
        if modality not in towers:
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


def pooled_token(model: ClipModel, modality: str) -> int | None:
    """The one place at which a tower is pooled, -1 for the last; None where it depends on the prompt, or is none."""
    place = find_towers(model)[modality].place()
    return place if isinstance(place, int) else None


def text_is_trimmable(model: ClipModel) -> bool:
    """Whether leaving out the tokens behind the longest prompt's end changes no text feature."""
    tower = find_towers(model)["text"]
    return tower.kind.trims(tower.root)


def towers_embed(model: ClipModel) -> int:
    """The width of both towers' features."""
    tower = find_towers(model)["text"]
    return tower.kind.embed_width(tower.root)
