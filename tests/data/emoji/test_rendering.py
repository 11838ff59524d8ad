"""Renderings: decided by their view alone, and each part of a view does what its name says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rmadapter.data.emoji.rendering import Variations, compose, render


def square() -> torch.Tensor:
    """A red square of half the side in the middle, the rest transparent and, unseen, green."""
    drawing = torch.zeros(1, 4, 48, 48)
    drawing[:, 1] = 1
    drawing[:, :, 12:36, 12:36] = torch.tensor([1.0, 0, 0, 1])[None, :, None, None]
    return drawing


@pytest.fixture
def plain() -> Variations:
    """Nothing random: upright, whole, centred, even light, on black."""
    view = Variations.draw(np.random.default_rng(0)).milder(0)
    return replace(view, size=np.ones(1, np.float32), background=np.zeros_like(view.background))


def test_a_plain_view_shows_the_drawing_and_nothing_of_what_is_transparent(plain):
    picture = compose(square(), plain)
    expected = square()[:, :3] * square()[:, 3:]
    assert torch.allclose(picture, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("shift", "rows", "columns"), [((0.25, 0), (12, 36), (18, 42)), ((0, -0.5), (0, 24), (12, 36))]
)
def test_shift_moves_right_and_down_in_half_pictures(plain, shift, rows, columns):
    picture = compose(square(), replace(plain, shift=np.array([shift], np.float32)))[0, 0]
    found = (picture > 0.5).nonzero()
    assert (found.min(0).values.tolist(), (found.max(0).values + 1).tolist()) == (
        [rows[0], columns[0]],
        [rows[1], columns[1]],
    )


def test_size_is_that_of_the_drawing(plain):
    picture = compose(square(), replace(plain, size=np.full(1, 0.5, np.float32)))[0, 0]
    assert (picture > 0.5).sum() == 12 * 12


def test_angle_turns_counter_clockwise(plain):
    drawing = torch.zeros(1, 4, 48, 48)
    drawing[:, :, 20:28, 36:44] = 1  # to the right of the middle
    picture = compose(drawing, replace(plain, angle=np.full(1, np.pi / 2, np.float32)))[0, 0]
    row, column = (picture > 0.5).nonzero().float().mean(0).tolist()
    assert row < 12
    assert 20 < column < 28


def test_light_and_gain_change_brightness_and_tint(plain):
    white = torch.ones(1, 4, 48, 48)
    lit = compose(white, replace(plain, light=np.array([[0.3, 0]], np.float32)))[0, 0]
    assert torch.allclose(lit[:, 0], torch.full((48,), 0.7), atol=1e-5)
    assert torch.allclose(lit[:, -1], torch.full((48,), 1.3), atol=1e-5)
    tinted = compose(white, replace(plain, gain=np.array([[0.5, 1, 1.2]], np.float32)))
    assert torch.allclose(tinted.mean((0, 2, 3)), torch.tensor([0.5, 1, 1.2]), atol=1e-5)


def test_noise_has_its_deviation(plain):
    grey = torch.full((1, 4, 48, 48), 0.5)
    grey[:, 3] = 1
    picture = render(grey, replace(plain, noise=np.full(1, 0.08, np.float32))).float() / 255
    assert picture.std().item() == pytest.approx(0.08, rel=0.05)


def test_a_view_alone_decides_and_a_batch_changes_nothing():
    drawings = torch.rand(3, 4, 48, 48, generator=torch.Generator().manual_seed(0))
    views = [Variations.draw(np.random.default_rng(seed)) for seed in (1, 2, 3)]
    alone = torch.cat([render(drawing[None], view) for drawing, view in zip(drawings, views, strict=True)])
    fields = vars(views[0]).keys()
    together = Variations(**{name: np.concatenate([getattr(view, name) for view in views]) for name in fields})
    assert torch.equal(render(drawings, together), alone)
    assert torch.equal(render(drawings[:1], Variations.draw(np.random.default_rng(1))), alone[:1])
    assert alone.dtype == torch.uint8
    assert not torch.equal(alone[0], alone[1])


def test_every_part_of_a_view_is_random_and_a_milder_one_is_nearer_to_plain():
    views = Variations.draw(np.random.default_rng(0), 50)
    for name, values in vars(views).items():
        assert len(np.unique(values[:, ...].reshape(50, -1)[:, 0])) > 40, name
    for name in ("angle", "shift", "light", "noise"):
        assert np.allclose(getattr(views.milder(0.5), name), getattr(views, name) / 2)
    assert np.allclose(views.milder(1).background, views.background, atol=1e-6)
    assert (views.milder(0).background == 0.5).all()
    assert (views.milder(0).size == np.float32(0.9)).all()
