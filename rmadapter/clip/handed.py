"""What was handed over in place of a CLIP model, said to whoever did."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rmadapter.errors import InputError

VALID = "an open_clip CLIP model, such as open_clip.create_model('ViT-B-16', pretrained='openai')"
# What wrappers call the child that they keep a model in: DataParallel, torch.compile, FSDP, others, AdaptedCLIP.
INNER = ("module", "_orig_mod", "_fsdp_wrapped_module", "model", "clip")
# What is no open_clip model though it is a CLIP, by the package that it is from.
OTHERS = {
    "transformers": "of Hugging Face's transformers; open_clip has the same weights under names of its own",
    "timm": "of timm, which is an image model alone; open_clip has CLIP models with towers from it",
    "clip": "of OpenAI's package; open_clip has the same weights: pretrained='openai', force_quick_gelu=True",
}


def check_handed(model: Any) -> None:
    """Raise InputError unless ``model`` is a CLIP model on one device, of ordinary weights; the message says what.

    Whether its towers are ones that adapters fit is seen by ``find_towers``.
    """
    if isinstance(model, nn.Module):
        _check_module(model)
    elif isinstance(model, (tuple, list)) and model and isinstance(model[0], nn.Module):
        raise InputError(
            f"clip is a {type(model).__name__} of {len(model)}, as create_model_and_transforms returns it; valid: its "
            "first part, the model"
        )
    elif model is None:
        raise InputError(f"clip is None; valid: {VALID}")
    else:
        raise InputError(f"clip is {model!r:.60} ({type(model).__name__}); valid: {VALID}")


def check_whole(model: nn.Module, what: str) -> None:
    """Raise InputError where weights of ``model`` are spread over processes; ``what`` begins the message."""
    if is_spread(model):
        raise InputError(
            f"{what}: the model's weights are spread over processes; valid: a model that is not sharded, with the full "
            "state dict of this one"
        )


def is_spread(model: nn.Module) -> bool:
    """Whether a process has a part of a weight alone (FSDP, tensor parallel)."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def check_tokenizer_given(tokenizer: Any) -> None:
    """Raise InputError unless ``tokenizer`` can be called; a model does not bring its own."""
    if not callable(tokenizer):
        raise InputError(
            f"tokenizer is {tokenizer!r}; valid: that of the model, such as open_clip.get_tokenizer('ViT-B-16')"
        )


def check_names_given(class_names: Any) -> None:
    """Raise InputError unless ``class_names`` are texts, at least one; a text alone would be a class a letter."""
    if isinstance(class_names, str) or not len(class_names):
        raise InputError(f"class_names is {class_names!r}; valid: a list of names, such as ['rose', 'tulip']")
    others = [name for name in class_names if not isinstance(name, str)]
    if others:
        raise InputError(f"class_names holds {others[0]!r} ({type(others[0]).__name__}); valid: texts, such as 'rose'")


def _check_module(model: nn.Module) -> None:
    kind = type(model)
    named = f"clip is a {kind.__name__}"
    children = dict(model.named_children())
    # A wrapper has the model as its first child, and itself no towers.
    # A compiled one has the model's own attributes as well.
    has_towers = hasattr(model, "visual") and "_orig_mod" not in children
    inner = None if has_towers else next((name for name in INNER if [*children][:1] == [name]), None)
    if inner is not None:
        raise InputError(f"{named} around a {type(children[inner]).__name__}; valid: what is in it, clip.{inner}")
    if kind.__name__.startswith("FSDP") or is_spread(model):
        raise InputError(f"{named}, whose weights are spread over processes; valid: the model before it is sharded")
    # OpenAI's own class has the parts as well, its tokens in another order.
    other = OTHERS.get(kind.__module__.partition(".")[0])
    if other is not None:
        raise InputError(f"{named} {other}; valid: {VALID}")
    if not (hasattr(model, "visual") and hasattr(model, "encode_image") and hasattr(model, "encode_text")):
        raise InputError(f"{named}, which has no image and text tower; valid: {VALID}")
    _check_weights(model)


def _check_weights(model: nn.Module) -> None:
    """All on one device, and each an ordinary floating-point tensor: quantised ones have no product for adapters."""
    devices: dict[torch.device, str] = {}
    for name, buffer in model.named_buffers():
        devices.setdefault(buffer.device, name)
    for name, parameter in model.named_parameters():
        devices.setdefault(parameter.device, name)
        if not parameter.is_floating_point():
            kind = str(parameter.dtype).removeprefix("torch.")
            raise InputError(f"clip has {name} in {kind}; valid: a model of floating-point weights")
        if type(parameter) is not nn.Parameter:
            raise InputError(
                f"clip has {name} as a {type(parameter).__name__}; valid: a model of ordinary weights, before it is "
                "quantised"
            )
    if len(devices) > 1:
        listed = ", ".join(f"{name} on {device}" for device, name in devices.items())
        raise InputError(f"clip is spread over {len(devices)} devices ({listed}); valid: a model on one")
    for name, module in model.named_modules():
        if "quantized" in type(module).__module__:
            raise InputError(
                f"clip has {name} as a quantised {type(module).__name__}; valid: a model of ordinary weights, before "
                "it is quantised"
            )
