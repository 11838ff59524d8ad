"""What timm's image transformers have alike inside open_clip's ``TimmModel``: pooling, head, blocks of their parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from open_clip.timm_model import TimmModel
from timm.layers import Mlp as TimmMlp
from timm.layers import SwiGLU
from torch import Tensor, nn

from rmadapter.clip.parts import BlockParts, Mlp, normed
from rmadapter.clip.tower_kind import TowerKind
from rmadapter.clip.types import Block

PartsOf = Callable[[Block, Any], BlockParts]


def known(module: nn.Module | None) -> nn.Module | None:
    """``module``, or None where it leaves what goes through it as it is."""
    return None if module is None or isinstance(module, nn.Identity) else module


def _place(root: Any, tokens: Tensor | None) -> int | str:
    """``TowerKind.place``."""
    trunk = root.trunk
    if getattr(trunk, "attn_pool", None) is not None:
        return "features are pooled by attention over all tokens"
    return 0 if trunk.global_pool == "token" else f"features are pooled by {trunk.global_pool!r} over all tokens"


def _finish_at(root: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
    """``TowerKind.finish_at``."""
    trunk = root.trunk
    return root.head(trunk.head(trunk.fc_norm(normed(trunk.norm, x, dtype))))


def _finish(root: Any, x: Tensor, tokens: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``TowerKind.finish``."""
    return root.head(root.trunk.forward_head(normed(root.trunk.norm, x, dtype)))


def _embed_width(root: Any) -> int:
    """``TowerKind.embed_width``: of the last layer that changes the width."""
    layers = [*root.trunk.head.modules(), *root.head.modules()]
    return next((m.out_features for m in reversed(layers) if isinstance(m, nn.Linear)), root.trunk.num_features)


def _size(root: Any) -> int:
    """``TowerKind.size``: patches, and what stands in front of them."""
    return root.trunk.patch_embed.num_patches + getattr(root.trunk, "num_prefix_tokens", 1)


def _grid(root: Any) -> tuple[int, int] | None:
    """``TowerKind.grid``."""
    found = getattr(root.trunk.patch_embed, "grid_size", None)
    return None if found is None else (found[0], found[1])


def _embed_operations(root: Any) -> int:
    """``TowerKind.embed_operations`` of a patch embedding that is one convolution; a stem of several is left out."""
    convolution = getattr(root.trunk.patch_embed, "proj", None)
    return 2 * convolution.weight.numel() if isinstance(convolution, nn.Conv2d) else 0


def _finish_operations(root: Any) -> int:
    """``TowerKind.finish_operations``: of a pool that is attention of one query to all tokens."""
    pool = getattr(root.trunk, "attn_pool", None)
    if pool is None:
        return 0
    tokens, own = _size(root), [p for p in pool.parameters() if p.dim() == 2]
    keys = pool.kv.weight if hasattr(pool, "kv") else None
    of_tokens = 2 * tokens * keys.numel() if keys is not None else 0
    return of_tokens + sum(2 * p.numel() for p in own if p is not keys) + 4 * tokens * root.trunk.embed_dim


def mlp_of(mlp: nn.Module) -> Mlp | None:
    """timm's MLP taken apart; None where it is of another class."""
    layers: Any = mlp
    if type(mlp) is TimmMlp and isinstance(mlp.fc1, nn.Linear):
        return Mlp(layers.fc1, layers.act, layers.fc2, known(getattr(mlp, "norm", None)))
    if type(mlp) is SwiGLU:
        return Mlp(mlp.fc1_x, mlp.act, mlp.fc2, known(mlp.norm), mlp.fc1_g)
    return None


def timm_kind(
    name: str,
    fits: Callable[[Any], bool],
    parts: PartsOf,
    embed: Callable[[Any, Tensor], Tensor],
    norm: str | None = "norm1",
) -> TowerKind:
    """The kind ``name`` of timm's transformers: what differs between them, beside all that they have alike."""
    return TowerKind(
        name=name,
        modality="vision",
        root="visual",
        fits=lambda root: isinstance(root, TimmModel) and fits(root),
        blocks="trunk.blocks",
        norm=norm,
        parts=parts,
        embed=embed,
        place=_place,
        finish_at=_finish_at,
        finish=_finish,
        embed_width=_embed_width,
        size=_size,
        grid=_grid,
        embed_operations=_embed_operations,
        finish_operations=_finish_operations,
    )
