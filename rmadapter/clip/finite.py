"""Values that have to be finite: the weights that come in, the features and logits that go out."""

from __future__ import annotations

import torch
from torch import Tensor

from rmadapter.clip.tower_kind import CHILD
from rmadapter.clip.types import ClipModel
from rmadapter.errors import InputError


def is_finite(tensor: Tensor) -> bool:
    """Whether no value of ``tensor`` is NaN or infinite, in one pass and without a copy; true on the meta device."""
    return all(bool(torch.isfinite(end)) for end in _ends(tensor))


def has_nan(tensor: Tensor) -> bool:
    """Whether a value of ``tensor`` is NaN, in one pass and without a copy; false on the meta device."""
    return any(bool(torch.isnan(end)) for end in _ends(tensor))


def _ends(tensor: Tensor) -> tuple[Tensor, ...]:
    """The least and the greatest value, both NaN where any value is; none where there are no numbers to look at."""
    if tensor.is_meta or not tensor.is_floating_point() or not tensor.numel():
        return ()
    return tuple(torch.aminmax(tensor))


def check_base_weights(clip: ClipModel) -> None:
    """Raise InputError, naming the first one, where a tensor of the base model's weights is not finite."""
    for name, tensor in clip.state_dict().items():
        if f".{CHILD}." not in name and not is_finite(tensor):
            raise InputError(
                f"the base model's {name} holds values that are not finite; valid: weights as they were published "
                "(load the file again, or another one)"
            )


def check_finite(what: str, tensor: Tensor) -> Tensor:
    """``tensor`` itself, which messages call ``what``.

    Raises:
        InputError: a value in it is NaN or infinite, of which no accuracy and no probability can be made.
    """
    if not is_finite(tensor):
        raise InputError(
            f"the {what} hold values that are not finite, of finite weights; valid: --precision fp32 (or bf16 in place "
            "of fp16), or another adapter"
        )
    return tensor
