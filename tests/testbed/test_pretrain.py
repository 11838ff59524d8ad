"""Pretraining of the small CLIP: seeded, resumable, and learning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rmadapter.errors import InputError
from rmadapter.testbed import pretrain
from rmadapter.testbed.pretrain import Pool, Pretraining, Trainer

SMALL = Pretraining(steps=4, small_steps=2, small_batch=4, batch_size=6, lr=1e-3, seed=3)


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


def test_it_learns(monkeypatch):
    """Eight emoji shown plainly again and again: told apart after a few dozen steps."""
    monkeypatch.setattr(Pool, "choose", lambda self, count, generator, share: np.arange(0, 8 * 150, 150))
    monkeypatch.setattr(pretrain, "MILD_SHARE", 1e9)
    monkeypatch.setattr(pretrain, "WARMUP_STEPS", 5)
    trainer = Trainer(Pretraining(steps=150, small_steps=0, batch_size=8, lr=1e-3))
    matched = [trainer.train_step()[1] for _ in range(60)]
    assert np.mean(matched[-5:]) > 60 > 40 > np.mean(matched[:5])  # by chance 12.5
