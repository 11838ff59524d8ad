"""Which of open_clip's configurations can be adapted, with which shortcuts of the fast step, and why not."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from open_clip.hf_model import HFTextEncoder
from torch import nn
from torch.overrides import TorchFunctionMode

from rmadapter.clip.obstacles import last_block_obstacle, shared_start_obstacle
from rmadapter.clip.towers import find_towers, text_is_trimmable
from rmadapter.clip.types import ClipModel
from rmadapter.errors import InputError, nearest

# The hub's encoders that open_clip's configurations name: the architecture that transformers has for them, and how many
# blocks they have where that is not its default.
ENCODERS: dict[str, tuple[str, dict[str, int]]] = {
    "roberta-base": ("roberta", {}),
    "xlm-roberta-base": ("xlm-roberta", {}),
    "xlm-roberta-large": ("xlm-roberta", {"num_hidden_layers": 24}),
    "google/mt5-base": ("mt5", {"num_layers": 12}),
    "google/mt5-xl": ("mt5", {"num_layers": 24}),
    "facebook/nllb-200-distilled-600M": ("m2m_100", {}),
    "facebook/nllb-200-distilled-1.3B": ("m2m_100", {"encoder_layers": 24}),
}


@dataclass(frozen=True)
class ModelRow:
    """One configuration.

    Attributes:
        name: open_clip's.
        refused: why it cannot be adapted; None where it can, and then there are
        vision, text: the kinds of its towers;
        blocks: of both, image tower first;
        shortcuts: shortcut -> "yes", or what stands against it.
    """

    name: str
    refused: str | None
    vision: str = ""
    text: str = ""
    blocks: tuple[int, int] = (0, 0)
    shortcuts: dict[str, str] | None = None


def model_rows(names: Sequence[str] = ()) -> Iterator[ModelRow]:
    """A row for each of ``names``, by default for all that open_clip has; nothing is downloaded.

    Raises:
        InputError: a name that open_clip does not know.
    """
    known = open_clip.list_models()
    for name in names:
        if name not in known:
            raise InputError(
                f"model is {name!r}, which open_clip does not know{nearest(name, known)}; valid: one of "
                f"open_clip.list_models() ({len(known)})"
            )
    for name in names or known:
        yield _row(name)


def _row(name: str) -> ModelRow:
    try:
        clip = _without_weights(name)
        towers = find_towers(clip)
    except InputError as error:
        return ModelRow(name, str(error).partition("; these work")[0])
    except ImportError as error:
        return ModelRow(name, f"not looked at: {error}")
    last = {modality: last_block_obstacle(clip, modality) for modality in towers}
    shortcuts = {
        "trim": "yes" if text_is_trimmable(clip) else "what stands behind a prompt's end counts",
        "shared_start": shared_start_obstacle(clip) or "yes",
        "last_token, vision": last["vision"] or "yes",
        "last_token, text": last["text"] or "yes",
    }
    vision, text = towers["vision"], towers["text"]
    return ModelRow(name, None, vision.kind.name, text.kind.name, (vision.depth, text.depth), shortcuts)


class _RatesAreZero(TorchFunctionMode):
    """Floating-point numbers that a model reads of a meta tensor are 0: timm 1.0.17 and others read their rates
    of stochastic depth from one. Sizes are integers, and stay an error."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.item, torch.Tensor.tolist) and args[0].is_meta and args[0].is_floating_point():
            return func(torch.zeros(args[0].shape, device="cpu"))
        return func(*args, **(kwargs or {}))


def _without_weights(name: str) -> ClipModel:
    """The model ``name`` on PyTorch's meta device, which keeps shapes alone."""
    config = copy.deepcopy(open_clip.get_model_config(name))
    text = config["text_cfg"]
    encoder = text.pop("hf_model_name", None)
    custom = config.pop("custom_text", False) or encoder is not None
    kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP if custom else open_clip.CLIP
    encoder_settings = {key: text.pop(key) for key in list(text) if key.startswith("hf_") and key.endswith("_type")}
    if encoder is not None:
        text.update(layers=1, width=64, heads=1)  # stands there until the encoder does
    with torch.device("meta"), _RatesAreZero():
        clip = kind(**config)
        if encoder is not None:
            clip.text = _encoder(encoder, config["embed_dim"], encoder_settings)
    for module in clip.modules():
        # On the meta device a mask has no values; open_clip's are all the causal one.
        mask = getattr(module, "attn_mask", None)
        if isinstance(mask, torch.Tensor) and mask.is_meta:
            module.attn_mask = torch.full(mask.shape, float("-inf"), device="cpu").triu_(1)
    return clip


def _encoder(name: str, embed: int, settings: dict[str, Any]) -> nn.Module:
    from transformers import AutoConfig  # an extra

    if name not in ENCODERS:
        raise ImportError(f"its encoder {name} is not known here")
    architecture, sizes = ENCODERS[name]
    config = AutoConfig.for_model(architecture, **sizes)
    # Of an encoder with a decoder open_clip takes the encoder; made from a configuration alone it takes both.
    made = HFTextEncoder(
        name, embed, config=config, pooler_type=settings.get("hf_pooler_type"), proj_type=settings.get("hf_proj_type")
    )
    if getattr(config, "is_encoder_decoder", False):
        made.transformer = made.transformer.encoder
    return made
