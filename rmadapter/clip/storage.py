"""The dtype that a frozen model is stored and computed in."""

from __future__ import annotations

from dataclasses import replace

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.transformer import Attention, AttentionalPooler, LayerNorm, LayerNormFp32, LayerScale
from timm.layers import LayerNorm as TimmLayerNorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rmadapter.clip.backbone import Backbone
from rmadapter.clip.identity import weights_hash
from rmadapter.clip.types import ClipModel

# Parameters that are stored in the compute dtype, by the class of their module; what is not named stays fp32.
STORED = (
    ((nn.Linear, nn.Conv2d), ("weight", "bias")),
    (nn.MultiheadAttention, ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias")),
    (Attention, ("in_proj_weight", "in_proj_bias", "head_scale", "logit_scale")),
    (AttentionalPooler, ("query",)),
    (LayerScale, ("gamma",)),
)
# LayerNorms of one dtype alone; those of other classes (timm's of two dimensions) go with the matrices.
PLAIN_NORMS = (LayerNorm, nn.LayerNorm, TimmLayerNorm)
OTHERS = ("text_projection", "proj", "cls_emb")


def store_backbone(backbone: Backbone, dtype: torch.dtype) -> Backbone:
    """``store_weights`` of its model; the record returned keeps the hash of the weights as they were loaded."""
    if dtype == torch.float32:
        return backbone
    stored = replace(backbone, weights_hash=backbone.weights_hash or weights_hash(backbone.clip))
    store_weights(backbone.clip, dtype)
    return stored


def store_weights(clip: ClipModel, dtype: torch.dtype) -> None:
    """Keep the frozen weights of ``clip`` in ``dtype`` from now on: bf16, fp16 or fp32 (which changes nothing).

    As in open_clip's own precision modes the matrices are stored in it, while norms and embeddings stay fp32 and
    LayerNorms compute in fp32. Scales inside blocks go with the matrices, or they would make the stream fp32.
    Autocast in place of it casts every frozen weight again at each call: 16 images through ViT-B/16 took 5.6 s under
    it and 0.79 s with bf16 weights (2 cores with AVX512_BF16; fp32: 3.1 s).
    """
    if dtype == torch.float32:
        return
    trunk, encoder = getattr(clip.visual, "trunk", None), getattr(clip, "text", None)
    if trunk is not None:
        _store_whole(trunk, dtype)
    if isinstance(encoder, HFTextEncoder):
        encoder.transformer.to(dtype)  # its norms too, as transformers stores them
    for module in list(clip.modules()):
        names = next((names for kinds, names in STORED if isinstance(module, kinds)), OTHERS)
        for name in names:
            parameter = getattr(module, name, None)
            if isinstance(parameter, nn.Parameter):
                parameter.data = parameter.data.to(dtype)
        for name, child in module.named_children():
            if isinstance(child, nn.LayerNorm) and type(child) in PLAIN_NORMS and not _is_stored_whole(child, dtype):
                setattr(module, name, _in_fp32(child))


def _is_stored_whole(norm: nn.LayerNorm, dtype: torch.dtype) -> bool:
    """Whether ``norm`` is one of transformers', which compute in the dtype that they are stored in."""
    return norm.weight is not None and norm.weight.dtype == dtype


def _store_whole(trunk: nn.Module, dtype: torch.dtype) -> None:
    """All of timm's ``trunk`` but norms and rotations: positions and tokens in fp32 would make the stream fp32."""
    for module in list(trunk.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.LayerNorm) and type(child) in PLAIN_NORMS:
                setattr(module, name, _in_fp32(child))
        if isinstance(module, (LayerNormFp32, _BatchNorm)) or type(module) in PLAIN_NORMS:
            continue
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(dtype)
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point() and "Rotary" not in type(module).__name__:
                setattr(module, name, buffer.to(dtype))


def _in_fp32(norm: nn.LayerNorm) -> LayerNormFp32:
    """The same parameters under the class that computes in fp32: F.layer_norm on CUDA takes one dtype alone."""
    wide = LayerNormFp32(norm.normalized_shape, norm.eps, norm.elementwise_affine, bias=norm.bias is not None)
    wide.weight, wide.bias = norm.weight, norm.bias
    return wide.train(norm.training)


def image_dtype(clip: ClipModel) -> torch.dtype | None:
    """The dtype that the image tower takes images in, that of its first convolution; None where it has none."""
    first = next((module for module in clip.visual.modules() if isinstance(module, nn.Conv2d)), None)
    return None if first is None else first.weight.dtype
