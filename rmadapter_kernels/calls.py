"""What every backend answers about: the call, and whether the backend can be used here."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class BackendStatus(NamedTuple):
    """Whether a backend can be used here, and why or why not."""

    available: bool
    reason: str


class Call(NamedTuple):
    """What the choice depends on: x [..., D], r and h (0 without the reconstruction branch)."""

    x: Tensor
    bottleneck: int
    rec_hidden: int
