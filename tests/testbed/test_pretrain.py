"""Pretraining of the small CLIP: seeded, resumable, and learning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rmadapter.clip import emoji_clip
from rmadapter.data.emoji import atlas
from rmadapter.errors import InputError
from rmadapter.testbed import pretrain
from rmadapter.testbed.pretrain import Captions, Pool, Pretraining, Trainer

SMALL = Pretraining(steps=4, batch_size=4, lr=1e-3, seed=3)


@pytest.fixture(scope="module")
def pool() -> Pool:
    return Pool()


def test_a_stopped_pretraining_ends_with_the_same_weights(tmp_path, monkeypatch):
    whole = load_file(pretrain.pretrain(SMALL, tmp_path / "whole"))

    class Stop(Exception):
        pass

    step = Trainer.train_step

    def stopping(self):
        if self.step == 2:
            raise Stop
        return step(self)

    monkeypatch.setattr(Trainer, "train_step", stopping)
    with pytest.raises(Stop):
        pretrain.pretrain(SMALL, tmp_path / "stopped", save_every=2)
    monkeypatch.setattr(Trainer, "train_step", step)
    resumed = load_file(pretrain.pretrain(SMALL, tmp_path / "stopped", save_every=2))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_another_setting_in_the_same_folder_is_refused(tmp_path):
    pretrain.write_json(tmp_path / "pretraining.json", {"steps": 3})
    with pytest.raises(InputError, match="holds a pretraining with other settings"):
        pretrain.pretrain(SMALL, tmp_path)


def test_captions_are_the_tokenizers_in_a_smaller_vocabulary():
    captions = Captions()
    names = [emoji.name for emoji in atlas.catalogue()]
    text = pretrain.TEMPLATES[3].format(names[10])
    assert torch.equal(captions.used[captions.tokens[3, 10]], emoji_clip.tokenizer()([text])[0])
    drawn = captions.draw(np.array([10, 700]), np.random.default_rng(0))
    assert drawn.shape[0] == 2
    assert (drawn == len(captions.used) - 1).any(1).all()
    assert drawn.shape[1] < 30


def test_half_of_a_batch_is_of_one_group_and_no_emoji_comes_twice(pool):
    chosen = pool.choose(64, np.random.default_rng(0))
    assert len(set(chosen.tolist())) == 64
    assert max(np.isin(chosen, members).sum() for members in pool.members) >= 32


def test_only_the_two_pretraining_styles_are_shown(pool):
    assert [style.name for style in atlas.STYLES.values() if style.pretrained] == ["noto", "twemoji"]
    assert pool.tiles.shape == (2, len(atlas.catalogue()), 4, 48, 48)
    code = atlas.catalogue()[5].code
    assert np.array_equal(pool.tiles[1, 5].permute(1, 2, 0).numpy(), atlas.drawings("twemoji")[code])


def test_pictures_are_in_range_differ_and_depend_on_the_generator_alone(pool):
    chosen = np.arange(8)
    first, again, other = (pool.draw(chosen, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (8, 3, 48, 48)
    assert first.min() >= 0
    assert first.max() <= 1


def test_it_learns(monkeypatch):
    """Eight emoji shown plainly again and again: told apart after a few dozen steps."""
    monkeypatch.setattr(Pool, "choose", lambda self, count, generator: np.arange(0, 8 * 150, 150))
    monkeypatch.setattr(pretrain, "MILD_STEPS", 10**9)
    monkeypatch.setattr(pretrain, "WARMUP_STEPS", 5)
    trainer = Trainer(Pretraining(steps=60, batch_size=8, lr=1e-3))
    matched = [trainer.train_step()[1] for _ in range(60)]
    assert np.mean(matched[-5:]) > 60 > 25 > np.mean(matched[:5])  # by chance 12.5
