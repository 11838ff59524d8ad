"""What a model computes with its weights, as plain values read off its modules."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from rmadapter.clip.tower_kind import CHILD
from rmadapter.clip.types import ClipModel

# What a module says of itself beside what it computes in evaluation: bookkeeping, training, another way to the same
# values, and sizes that the shapes of its weights say too.
NO_FACTS = {
    *("training", "output_dict", "output_tokens", "grad_checkpointing", "inplace", "use_fsdpa", "dropout"),
    *("in_features", "out_features", "in_channels", "out_channels", "embed_dim", "kdim", "vdim", "head_dim"),
    *("normalized_shape", "elementwise_affine", "num_embeddings", "embedding_dim", "width", "output_dim", "layers"),
    # Rows of the preprocessing, which is recorded on its own.
    *("image_mean", "image_std"),
}
# Modules that leave what goes through them as it is, in evaluation.
NOTHING = ("Identity", "Dropout", "PatchDropout")
# Where a tower says how its features are pooled.
POOLS = ("text_pool_type", "pool_type")


def structure_of(clip: ClipModel) -> dict[str, Any]:
    """What ``clip`` computes with its weights, as plain values by name.

    Read off the modules themselves, so that nothing has to be listed for each kind of tower: the class of every
    module, its plain attributes (heads, eps, approximation, stride, pooling), and the buffers that are no weights
    (masks). Blocks that are alike are said once: "visual.transformer.resblocks.*.attn.num_heads" is 12, or where they
    differ the list of all.

    The same model has the same structure whatever versions of PyTorch and open_clip have built it, and in whatever
    dtype it is stored by now. Switches that are off or not set are left out, since later versions have more of them;
    so are the attributes in ``NO_FACTS``, and the end-of-text number, which older versions lack, where features are
    not pooled at it. Of modules from other libraries (timm, transformers) only the class counts.
    """
    facts: list[tuple[str, Any]] = []
    for name, module in clip.named_modules():
        kind = type(module).__name__
        if f".{CHILD}" in name or kind in NOTHING:
            continue
        # LayerNormFp32 is how a LayerNorm is stored beside 16-bit weights.
        facts.append((name or "model", kind.removesuffix("Fp32")))
        if type(module).__module__.partition(".")[0] not in ("timm", "transformers"):
            facts += [(f"{name}.{key}".lstrip("."), value) for key, value in _plain_attributes(module)]
    stored = clip.state_dict()
    facts += [
        (name, _mask(tensor)) for name, tensor in clip.named_buffers() if name not in stored and CHILD not in name
    ]
    grouped: dict[str, list[Any]] = {}
    for name, value in facts:
        pattern = ".".join("*" if part.isdigit() else part for part in name.split("."))
        grouped.setdefault(pattern, []).append(value)
    return {
        name: values[0] if all(value == values[0] for value in values) else values
        for name, values in sorted(grouped.items())
    }


def _plain_attributes(module: nn.Module) -> list[tuple[str, Any]]:
    """The attributes of ``module`` that are numbers, texts or lists of them, as JSON has them, without what is off."""
    found: list[tuple[str, Any]] = []
    for name, value in sorted(vars(module).items()):
        if name.startswith("_") or name in NO_FACTS or value is None or value is False or value == "":
            continue
        if name in ("text_eos_id", "eos_id") and "eos" not in (vars(module).get(pool) for pool in POOLS):
            continue
        if isinstance(value, (bool, int, float, str)):
            found.append((name, value))
        elif isinstance(value, (tuple, list)) and all(isinstance(item, (bool, int, float, str)) for item in value):
            found.append((name, list(value)))
    return found


def _mask(tensor: Tensor) -> str:
    """A short hash of a buffer's values, whatever dtype it is kept in."""
    wide = tensor.float() if tensor.is_floating_point() else tensor
    digest = hashlib.sha256(f"{tuple(tensor.shape)}".encode())
    digest.update(tensor_bytes(wide))
    return digest.hexdigest()[:12]


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The values of ``tensor`` as they lie in memory."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
