"""From a drawing with transparency to a picture: placed, turned and lit on a random background, with noise."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

BACKGROUND_CELLS = 3  # a background is a grid of so many random colours a side, blended


@dataclass(frozen=True)
class Variations:
    """Everything random about ``n`` renderings, float32 arrays.

    Attributes:
        angle: [n] in radians, counter-clockwise.
        size: [n] of the drawing, 1 for the whole picture.
        shift: [n, 2] of its centre, right and down, in half pictures.
        background: [n, 3, cells, cells] colours from 0 to 1, of which the picture behind is blended.
        light: [n, 2] gain of brightness across the picture, rightwards and downwards.
        gain: [n, 3] of the colour channels, brightness and tint in one.
        noise: [n] standard deviation of the noise, of a range of 1.
        seed: [n] of the noise, uint32.
    """

    angle: np.ndarray
    size: np.ndarray
    shift: np.ndarray
    background: np.ndarray
    light: np.ndarray
    gain: np.ndarray
    noise: np.ndarray
    seed: np.ndarray

    @classmethod
    def draw(cls, generator: np.random.Generator, count: int = 1, *, turn: float = 20.0) -> Variations:
        """``count`` variations from ``generator``, turned by at most ``turn`` degrees."""

        def uniform(low: float, high: float, *shape: int) -> np.ndarray:
            return generator.uniform(low, high, (count, *shape)).astype(np.float32)

        # Room to move is what the drawing leaves free, and a tenth that may be cut off.
        size = uniform(0.6, 1.0)
        # A shade with a little colour, and a deviation in each cell: from nearly plain to patchy.
        base = uniform(0.1, 1, 1, 1, 1) + uniform(-0.2, 0.2, 3, 1, 1)
        spread = uniform(0.02, 0.2, 1, 1, 1)
        cells = generator.standard_normal((count, 3, BACKGROUND_CELLS, BACKGROUND_CELLS)).astype(np.float32)
        return cls(
            angle=uniform(-turn, turn) * np.float32(np.pi / 180),
            size=size,
            shift=uniform(-1, 1, 2) * (1.1 - size)[:, None],
            background=np.clip(base + spread * cells, 0, 1),
            light=uniform(-0.35, 0.35, 2),
            gain=uniform(0.65, 1.25, 1) * uniform(0.88, 1.12, 3),
            noise=uniform(0.01, 0.08),
            seed=generator.integers(0, 2**32, count, dtype=np.uint32),
        )

    def milder(self, share: float) -> Variations:
        """The same variations with ``share`` of what they do: none at 0, a drawing upright and large on plain grey."""
        share = np.float32(share)
        return replace(
            self,
            angle=self.angle * share,
            size=0.9 + (self.size - 0.9) * share,
            shift=self.shift * share,
            background=0.5 + (self.background - 0.5) * share,
            light=self.light * share,
            gain=1 + (self.gain - 1) * share,
            noise=self.noise * share,
        )


def render(drawings: Tensor, variations: Variations) -> Tensor:
    """Pictures uint8 [n, 3, side, side] of ``drawings`` [n, 4, side, side], float from 0 to 1 with straight alpha."""
    composed = compose(drawings, variations)
    side = drawings.shape[-1]
    noise = np.stack(
        [np.random.default_rng(seed).standard_normal((3, side, side), dtype=np.float32) for seed in variations.seed]
    )
    noisy = composed + torch.from_numpy(noise * variations.noise[:, None, None, None])
    return noisy.mul(255).round_().clamp_(0, 255).to(torch.uint8)


def compose(drawings: Tensor, variations: Variations, warp: Tensor | None = None) -> Tensor:
    """``render`` before its noise, float [n, 3, side, side]; values may leave 0 .. 1.

    ``warp`` [n, side, side, 2] displaces what each place shows, right and down, in half drawings.
    """
    count, _, side, _ = drawings.shape
    angle, size, shift = map(torch.from_numpy, (variations.angle, variations.size, variations.shift))
    cosine, sine = angle.cos() / size, angle.sin() / size
    # From a place in the picture to one in the drawing: the inverse of moving, turning and sizing it.
    matrix = torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1)
    offset = -(matrix @ shift[:, :, None])
    grid = F.affine_grid(torch.cat([matrix, offset], 2), [count, 4, side, side], align_corners=False)
    if warp is not None:
        grid = grid + warp
    alpha = drawings[:, 3:]
    # Multiplied by alpha while it is interpolated, or edges would take on the colour behind full transparency.
    moved = F.grid_sample(torch.cat([drawings[:, :3] * alpha, alpha], 1), grid, align_corners=False)
    behind = F.interpolate(torch.from_numpy(variations.background), (side, side), mode="bicubic", align_corners=True)
    picture = moved[:, :3] + behind.clamp(0, 1) * (1 - moved[:, 3:])
    ramp = torch.linspace(-1, 1, side)
    light = torch.from_numpy(variations.light)
    falling = light[:, 0, None, None] * ramp[None, None, :] + light[:, 1, None, None] * ramp[None, :, None]
    return picture * (1 + falling)[:, None] * torch.from_numpy(variations.gain)[:, :, None, None]
