"""What pretraining shows: which names and drawings, in what share, and captions of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rmadapter.clip import emoji_clip
from rmadapter.data.emoji import atlas
from rmadapter.testbed import pool as module
from rmadapter.testbed.corpus_files import Corpus, Icon
from rmadapter.testbed.pictures import alter, show
from rmadapter.testbed.pool import TEMPLATES, Captions, Pool

APPLE = next(place for place, emoji in enumerate(atlas.catalogue()) if emoji.name == "red apple")


def filled(value, *shape):
    return np.full(shape, value, np.uint8)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """Two drawings of a red apple beside the vendors', one of them without colour, and two names of its own."""
    names = ["red apple", "windmill blade", "red apple", "quartz", "x" * 3 + " a b c d e f g", "naïve"]
    icons = tuple(Icon(f"set{number}", name, name, number < 2) for number, name in enumerate(names))
    coloured = np.stack([filled(200, 48, 48, 4), filled(100, 48, 48, 4)])
    shapes = np.stack([filled(10 * (number + 1), 48, 48) for number in range(4)])
    held_out = filled(255, 1, 48, 48, 4)
    return Corpus(coloured, shapes, icons, held_out, (Icon("held", "sun", "sun", True),), {})


@pytest.fixture(scope="module")
def pool() -> Pool:
    return Pool()


@pytest.fixture(scope="module")
def broad(corpus) -> Pool:
    return Pool(corpus)


def test_captions_are_the_tokenizers_in_a_smaller_vocabulary():
    names = tuple(emoji.name for emoji in atlas.catalogue())
    captions = Captions((*names, "windmill blade"), len(names))
    text = TEMPLATES[3].format(names[10])
    own = captions.of([text, text + " " + text])
    expected = emoji_clip.tokenizer()([text])[0]
    assert torch.equal(captions.used[own[0]], expected[: own.shape[1]])
    drawn = captions.draw(np.array([10, 700, len(names)]), np.random.default_rng(0))
    assert drawn.shape[0] == 3
    assert (drawn == len(captions.used) - 1).any(1).all()  # each has its end
    assert drawn.shape[1] < 30
    ids = emoji_clip.tokenizer().encode("windmill blade")
    assert set(ids) <= set(captions.used.tolist())


def test_half_of_a_batch_is_of_one_group_and_no_emoji_comes_twice(pool):
    chosen = pool.choose(64, np.random.default_rng(0), 0.5)  # without a corpus all are emoji
    assert len(set(chosen.tolist())) == 64
    assert chosen.max() < pool.emoji
    assert max(np.isin(chosen, members).sum() for members in pool.members) >= 32


def test_only_the_two_pretraining_styles_are_shown(pool):
    assert [style.name for style in atlas.STYLES.values() if style.pretrained] == ["noto", "twemoji"]
    assert pool.tiles.shape == (2, len(atlas.catalogue()), 4, 48, 48)
    code = atlas.catalogue()[5].code
    assert np.array_equal(pool.tiles[1, 5].permute(1, 2, 0).numpy(), atlas.drawings("twemoji")[code])


def test_a_corpus_adds_drawings_to_emoji_and_names_of_its_own(broad):
    assert broad.names[broad.emoji :] == ("windmill blade", "quartz")
    chosen = broad.choose(4, np.random.default_rng(1), 0.5)
    assert sorted(chosen[2:]) == [broad.emoji, broad.emoji + 1]
    assert chosen[:2].max() < broad.emoji


def test_of_a_name_all_drawings_are_shown_the_coloured_more_often(broad, monkeypatch):
    monkeypatch.setattr(module, "BLENDED_SHARE", 0.0)
    generator = np.random.default_rng(0)
    tiles, shapes = broad._tiles(broad._pick(np.full(4000, APPLE), generator, corpus=True), generator)
    alpha = (tiles[:, 3, 0, 0] * 255).round().int().numpy()
    seen = {"coloured": (alpha == 200).mean(), "shape": (alpha == 10).mean()}
    # A third of those that ask for colour, and a quarter of the others; of the shape that quarter alone.
    assert seen["coloured"] == pytest.approx(0.65 / 3 + 0.35 / 4, abs=0.03)
    assert seen["shape"] == pytest.approx(0.35 / 4, abs=0.02)
    assert np.array_equal(shapes, alpha == 10)
    vendors = {tuple(pool_tile.flatten()[:2000].tolist()) for pool_tile in broad.tiles[:, APPLE]}
    others = tiles[(alpha != 200) & (alpha != 10)]
    assert {tuple((tile * 255).round().byte().flatten()[:2000].tolist()) for tile in others[:20]} <= vendors


def test_small_batches_show_the_vendors_drawings_alone(broad):
    generator = np.random.default_rng(0)
    assert (broad._pick(np.full(500, APPLE), generator, corpus=False) < 2 * broad.emoji).all()


def test_pictures_are_in_range_differ_and_depend_on_the_generator_alone(broad):
    chosen = np.array([0, 1, APPLE, APPLE, broad.emoji, broad.emoji + 1])
    first, again, other = (broad.draw(chosen, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (6, 3, 48, 48)
    assert first.min() >= 0
    assert first.max() <= 1


@pytest.mark.parametrize("shown", ["alter", "show"])
def test_a_shape_stands_out_from_what_is_behind_it(shown):
    count = 200
    tiles = torch.zeros(count, 4, 48, 48)
    tiles[:, 3, 12:36, 12:36] = 1
    generator = np.random.default_rng(0)
    if shown == "alter":
        pictures = alter(tiles, np.ones(count, bool), generator)
    else:
        pictures = show(tiles, np.ones(count, bool), generator).float() / 255
    inside, outside = pictures[:, :, 22:26, 22:26].mean((1, 2, 3)), pictures[:, :, :4].mean((1, 2, 3))
    assert ((inside - outside).abs() > 0.1).float().mean() > 0.85
    black = show(tiles, np.zeros(count, bool), generator).float() / 255
    assert black[:, :, 22:26, 22:26].mean() < 0.1 < pictures[:, :, 22:26, 22:26].mean()
