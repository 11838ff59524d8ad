"""Preprocessing as part of a graph: 8-bit pixels of any height and width in, what the image tower takes out.

Resizing is a product with one matrix a side, made from the image's size inside the graph; the centre crop leaves out
its rows. An exporter needs no operator for it, and the numbers are Pillow's: its filters, their weights rounded to a
fixed point, pixels rounded to 8 bits after each side, the width first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rmadapter.data import Preprocessing
from rmadapter.errors import check_choice

INTERPOLATIONS = ("bicubic", "bilinear")
RESIZE_MODES = ("shortest", "squash")
CUBIC = -0.5  # Pillow's parameter of the cubic filter
FIXED_POINT = 2**22  # its weights are multiples of one of these; in fp64 their sums with 8-bit values are exact


class PixelPreprocessing(nn.Module):
    """``data.eval_transform`` on images uint8 [n, 3, height, width] of one size: float [n, 3, size, size].

    From version 13 on, Pillow reduces the height first where it is reduced more than the width. Its pixels then differ
    from those here by a level or two, where neighbours contrast strongly by more.

    Raises:
        InputError: a way of resizing that is not one of ``RESIZE_MODES`` and ``INTERPOLATIONS``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing):
        super().__init__()
        check_choice("preprocess with resize_mode", preprocessing.resize_mode, RESIZE_MODES)
        check_choice("preprocess with interpolation", preprocessing.interpolation, INTERPOLATIONS)
        self.size = preprocessing.size
        self.squash = preprocessing.resize_mode == "squash"
        self.interpolation = preprocessing.interpolation
        self.register_buffer("mean", torch.tensor(preprocessing.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(preprocessing.std)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """The preprocessed images."""
        # Lengths as tensors: numbers of the graph, whatever sizes it was traced with.
        rows, columns = (torch.arange(length) for length in images.shape[-2:])
        height, width = rows[-1] + 1, columns[-1] + 1
        shortest = torch.minimum(height, width)
        down = self._matrix(rows, self.size * height // (height if self.squash else shortest))
        across = self._matrix(columns, self.size * width // (width if self.squash else shortest))
        x = _rounded(images.double() @ across.T)
        x = _rounded(down @ x).float()
        return (x / 255 - self.mean) / self.std

    def _matrix(self, pixels: Tensor, resized: Tensor) -> Tensor:
        """Weights [size, length] of the pixels of one side, resized to ``resized`` and cropped to the size."""
        length = pixels[-1] + 1
        first = torch.round((resized - self.size) / 2).long()
        wanted = first + torch.arange(self.size)
        # Distances in units of 1 / (2 resized) source pixels are whole numbers, of which nothing is rounded off.
        distance = (2 * wanted[:, None] + 1) * length - (2 * pixels + 1) * resized
        weights = self._filter(distance.double() / (2 * torch.maximum(resized, length)).double())
        weights = weights / weights.sum(-1, keepdim=True)
        return torch.floor(weights * FIXED_POINT + 0.5) / FIXED_POINT

    def _filter(self, distance: Tensor) -> Tensor:
        x = distance.abs()
        if self.interpolation == "bilinear":
            return (1 - x).clamp_min(0)
        near = ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1
        far = CUBIC * (((x - 5) * x + 8) * x - 4)
        return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _rounded(x: Tensor) -> Tensor:
    """8-bit values, as floats; halves go up."""
    return torch.floor(x + 0.5).clamp(0, 255)
