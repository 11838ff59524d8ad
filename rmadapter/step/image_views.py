"""The images of a step: one augmented view of each, or two where the loss compares with a second one."""

from __future__ import annotations

from torch import Tensor

from rmadapter.errors import InputError


def split_views(images: Tensor, two_views: bool) -> tuple[Tensor, Tensor]:
    """What is trained on and what the frozen model sees, each [n, 3, size, size]: the same, or the two views.

    Args:
        images: [n, 3, size, size], or [n, 2, 3, size, size] with ``two_views``.
        two_views: whether there are two.

    Raises:
        InputError: images of the other kind.
    """
    if images.dim() != (5 if two_views else 4) or (two_views and images.shape[1] != 2):
        views = "2 views, as loss.second_view needs" if two_views else "one view"
        valid = "[n, 2, 3, size, size]" if two_views else "[n, 3, size, size]"
        raise InputError(f"images have the shape {list(images.shape)}, which is not {views} of each; valid: {valid}")
    if not two_views:
        return images, images
    first, second = images.unbind(1)
    return first, second
