"""What pretraining makes of a drawing: colours turned and washed out, the shape bent, and a view of it rendered."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rmadapter.data.emoji.rendering import Variations, compose

TURN = 30  # degrees, at most
# Of a drawing in one colour, how much lighter or darker than what is behind it.
CONTRAST = (0.35, 0.8)


def alter(tiles: Tensor, shapes: np.ndarray, generator: np.random.Generator, strength: float = 1.0) -> Tensor:
    """Pictures float [n, 3, side, side] from 0 to 1 of altered drawings.

    Args:
        tiles: float [n, 4, side, side] from 0 to 1, straight alpha.
        shapes: bool [n], which drawings have no colour of their own: they get one that stands out from what is behind.
        generator: of everything random.
        strength: of a view, 0 to 1: the share of its background, turn and noise.
    """
    count = len(tiles)
    views = Variations.draw(generator, count, turn=TURN).milder(strength)
    colours = _recolour(tiles[:, :3], generator)
    if shapes.any():
        colours[torch.from_numpy(shapes)] = _standing_out(views.background[shapes], generator)
    bend = torch.from_numpy(generator.normal(0, 0.07, (count, 2, 4, 4)).astype(np.float32))
    warp = F.interpolate(bend, tiles.shape[-2:], mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    picture = compose(torch.cat([colours, tiles[:, 3:]], 1), views, warp)
    noise = torch.from_numpy(generator.standard_normal(picture.shape, dtype=np.float32))
    picture = picture + noise * torch.from_numpy(views.noise)[:, None, None, None]
    return _blur(picture, generator).clamp_(0, 1)


def show(tiles: Tensor, shapes: np.ndarray, generator: np.random.Generator) -> Tensor:
    """uint8 [n, 3, side, side]: ``tiles`` as a test shows them, unaltered but for shapes' colour; see ``alter``."""
    views = Variations.draw(generator, len(tiles))
    tiles = tiles.clone()
    if shapes.any():
        tiles[torch.from_numpy(shapes), :3] = _standing_out(views.background[shapes], generator)
    picture = compose(tiles, views)
    noise = torch.from_numpy(generator.standard_normal(picture.shape, dtype=np.float32))
    noisy = picture + noise * torch.from_numpy(views.noise)[:, None, None, None]
    return noisy.mul(255).round_().clamp_(0, 255).to(torch.uint8)


def _standing_out(background: np.ndarray, generator: np.random.Generator) -> Tensor:
    """A colour [n, 3, 1, 1] for each of ``background`` [n, 3, cells, cells], lighter or darker than its mean."""
    behind = background.mean((1, 2, 3))
    count = len(behind)
    away = generator.uniform(*CONTRAST, count)
    # To the side with more room, and on a middling background to either.
    lighter = generator.random(count) < 0.5 - 2 * (behind - 0.5)
    shade = behind + np.where(lighter, away, -away)
    tint = generator.normal(0, 0.15, (count, 3))
    return torch.from_numpy((shade[:, None] + tint).clip(0, 1).astype(np.float32))[:, :, None, None]


def _recolour(colours: Tensor, generator: np.random.Generator) -> Tensor:
    """Hue turned by up to a sixth of the circle, colour from grey to strong, contrast; [n, 3, h, w]."""
    count = len(colours)
    grey = colours.mean(1, keepdim=True)
    angle = torch.from_numpy(generator.normal(0, 0.35, count).clip(-1.05, 1.05).astype(np.float32))
    strength = np.where(generator.random(count) < 0.1, 0, generator.uniform(0.5, 1.5, count)).astype(np.float32)
    # A turn about the grey axis: the part across it, and that crossed with the axis.
    across = colours - grey
    crossed = (across.roll(1, 1) - across.roll(-1, 1)) / math.sqrt(3)
    turned = angle.cos()[:, None, None, None] * across + angle.sin()[:, None, None, None] * crossed
    contrast = torch.from_numpy(generator.uniform(0.7, 1.3, (count, 1, 1, 1)).astype(np.float32))
    shade = torch.from_numpy(generator.uniform(-0.1, 0.1, (count, 1, 1, 1)).astype(np.float32))
    return ((grey - 0.5) * contrast + 0.5 + shade + torch.from_numpy(strength)[:, None, None, None] * turned).clamp_(
        0, 1
    )


def _blur(pictures: Tensor, generator: np.random.Generator) -> Tensor:
    """A fifth of the pictures at half the resolution."""
    chosen = torch.from_numpy(generator.random(len(pictures)) < 0.2)
    if chosen.any():
        small = F.avg_pool2d(pictures[chosen], 2)
        pictures[chosen] = F.interpolate(small, pictures.shape[-2:], mode="bilinear", align_corners=False)
    return pictures
