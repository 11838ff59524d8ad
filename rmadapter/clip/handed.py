"""What was handed over in place of a CLIP model, said to whoever did."""

from __future__ import annotations

from typing import Any

from torch import nn

from rmadapter.errors import InputError

VALID = "an open_clip CLIP model, such as open_clip.create_model('ViT-B-16', pretrained='openai')"
# What libraries call the only child in which their wrapper keeps a model: DataParallel, torch.compile, FSDP, others.
INNER = ("module", "_orig_mod", "_fsdp_wrapped_module", "model", "clip")
# What is no open_clip model though it is a CLIP, by the package that it is from.
OTHERS = {
    "transformers": "of Hugging Face's transformers; open_clip has the same weights under names of its own",
    "timm": "of timm, which is an image model alone; open_clip has CLIP models with towers from it",
    "clip": "of OpenAI's package; open_clip has the same weights: pretrained='openai', force_quick_gelu=True",
}


def check_handed(model: Any) -> None:
    """Raise InputError unless ``model`` has the parts of a CLIP model; the message says what was handed over.

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


def _check_module(model: nn.Module) -> None:
    kind = type(model)
    named = f"clip is a {kind.__name__}"
    children = dict(model.named_children())
    inner = next((name for name in INNER if list(children) == [name]), None)
    if inner is not None:
        raise InputError(f"{named} around a {type(children[inner]).__name__}; valid: what is in it, clip.{inner}")
    if kind.__name__.startswith("FSDP") or any(hasattr(p, "full_tensor") for p in model.parameters()):
        raise InputError(f"{named}, whose weights are spread over processes; valid: the model before it is sharded")
    # OpenAI's own class has the parts as well, its tokens in another order.
    other = OTHERS.get(kind.__module__.partition(".")[0])
    if other is not None:
        raise InputError(f"{named} {other}; valid: {VALID}")
    if not (hasattr(model, "visual") and hasattr(model, "encode_image") and hasattr(model, "encode_text")):
        raise InputError(f"{named}, which has no image and text tower; valid: {VALID}")
