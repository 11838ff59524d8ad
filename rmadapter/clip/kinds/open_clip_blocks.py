"""open_clip's own transformer blocks, which its image and its text towers have alike."""

from __future__ import annotations

from typing import Any

from open_clip.transformer import CustomResidualAttentionBlock, ResidualAttentionBlock
from torch import Tensor, nn

from rmadapter.clip.parts import Attention, BlockParts, Mlp, whole_block
from rmadapter.clip.types import Block
from rmadapter.errors import InputError


def batch_first(root: Any) -> bool:
    """True, unless activations are [tokens, batch, width], which newer versions of open_clip have no switch for.

    Raises:
        InputError: they are.
    """
    if not getattr(root.transformer, "batch_first", True):
        raise InputError(f"the {type(root).__name__} keeps its batch second; valid: batch_first=True")
    return True


def open_clip_parts(block: Block, root: Any) -> BlockParts:
    """``block`` taken apart; of ``CustomResidualAttentionBlock`` the attention is one piece, others are whole."""
    if type(block) not in (ResidualAttentionBlock, CustomResidualAttentionBlock) or hasattr(block, "ln_1_kv"):
        return BlockParts(whole_block(block), getattr(block, "ln_1", None))
    inner = getattr(block.mlp, "ln", None)
    mlp = Mlp(block.mlp.c_fc, block.mlp.gelu, block.mlp.c_proj, None if isinstance(inner, nn.Identity) else inner)
    attention, attend = None, None
    attn = block.attn
    if type(block) is CustomResidualAttentionBlock:
        attend = _custom(block)
    elif attn.in_proj_weight is None or attn.bias_k is not None or attn.add_zero_attn or attn.dropout:
        attend = _whole_attention(block)
    else:
        attention = Attention(attn.num_heads, ((attn.in_proj_weight, attn.in_proj_bias),), attn.out_proj)
    return BlockParts(
        whole_block(block), block.ln_1, block.ln_2, attention, attend, mlp, scale1=block.ls_1, scale2=block.ls_2
    )


def _custom(block: Block) -> Any:
    def attend(u: Tensor, mask: Tensor | None) -> Tensor:
        return block.ln_attn(block.attn(u, attn_mask=mask))

    return attend


def _whole_attention(block: Block) -> Any:
    def attend(u: Tensor, mask: Tensor | None) -> Tensor:
        return block.attention(u, attn_mask=mask)

    return attend
