"""Pretraining of the small CLIP: seeded, resumable, and learning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rmadapter.clip import emoji_clip
from rmadapter.data.emoji.atlas import catalogue
from rmadapter.errors import InputError
from rmadapter.locks import ProcessLock
from rmadapter.testbed import pretrain, zero_shot
from rmadapter.testbed.corpus_files import Corpus, Icon
from rmadapter.testbed.pretrain import Pool, Pretraining, Trainer

SMALL = Pretraining(steps=4, small_steps=2, small_batch=4, batch_size=6, lr=1e-3, seed=3)


@pytest.mark.slow
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
        pretrain.pretrain(SMALL, tmp_path / "stopped", save_seconds=0)
    monkeypatch.setattr(Trainer, "train_step", step)
    resumed = load_file(pretrain.pretrain(SMALL, tmp_path / "stopped", save_seconds=0))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_another_setting_in_the_same_folder_is_refused(tmp_path):
    pretrain.write_json(tmp_path / "pretraining.json", {**pretrain.describe(SMALL, None), "steps": 3})
    with pytest.raises(InputError, match="holds a pretraining with steps 3, not 4; valid: the same settings, or"):
        pretrain.pretrain(SMALL, tmp_path)


def test_two_processes_do_not_write_to_one_folder(tmp_path):
    with ProcessLock(tmp_path / pretrain.LOCK).attempt() as mine:
        assert mine
        with pytest.raises(InputError, match="where another pretraining is going on"):
            pretrain.pretrain(SMALL, tmp_path)


def test_weights_of_nobody_knows_what_are_refused(tmp_path):
    (tmp_path / emoji_clip.WEIGHTS).write_bytes(b"")
    with pytest.raises(InputError, match=r"holds weights without pretraining\.json; valid: another folder"):
        pretrain.pretrain(SMALL, tmp_path)


def test_with_the_weights_the_folder_is_done(tmp_path, monkeypatch):
    """They are written last, so that a kill at any time leaves a folder that is gone on with."""
    monkeypatch.setattr(pretrain.emoji_clip, "pack", lambda state, used: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pretrain.pretrain(SMALL, tmp_path)
    assert (tmp_path / emoji_clip.CONFIG).is_file()
    assert not (tmp_path / emoji_clip.WEIGHTS).exists()


def test_the_bundled_weights_are_known_by_their_settings(tmp_path, capsys, monkeypatch):
    assert pretrain.is_bundled(Pretraining(), None)
    assert not pretrain.is_bundled(Pretraining(seed=1), None)
    monkeypatch.chdir(tmp_path)
    assert pretrain.main(["--resume"]) == 0
    assert "done: the bundled weights come from this pretraining" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def corpus_of(*names: str) -> Corpus:
    """A name to a drawing, one held out, all white."""
    icons = tuple(Icon("a set", name, name, True) for name in names)
    white = np.full((len(names), 48, 48, 4), 255, np.uint8)
    held_out = Icon("held", "sun", "sun", False)
    return Corpus(white, np.zeros((0, 48, 48), np.uint8), icons, white[:1], (held_out,), {"sha256": {"a": "b"}})


@pytest.mark.slow
def test_with_a_corpus_half_of_a_large_batch_is_its_names_and_held_out_sets_are_tested(tmp_path, monkeypatch):
    shown = []
    choose = Pool.choose

    def choosing(self, *arguments):
        shown.append(choose(self, *arguments))
        return shown[-1]

    monkeypatch.setattr(Pool, "choose", choosing)
    corpus = corpus_of("windmill blade", "quartz", "lathe", "spire")
    pretrain.pretrain(SMALL, tmp_path, corpus)
    emoji = len(catalogue())
    assert [(len(names), int((names >= emoji).sum())) for names in shown] == [(4, 0), (4, 0), (6, 3), (6, 3)]
    assert pretrain.read_json(tmp_path / "pretraining.json", "")["corpus"] == corpus.identity
    assert zero_shot.held_out(tmp_path, corpus) == {"held": (1, 1, 100.0)}


@pytest.mark.slow
def test_it_learns(monkeypatch):
    """Eight emoji shown plainly again and again: told apart after a few dozen steps."""
    monkeypatch.setattr(Pool, "choose", lambda self, count, generator, share: np.arange(0, 8 * 150, 150))
    monkeypatch.setattr(pretrain, "MILD_SHARE", 1e9)
    monkeypatch.setattr(pretrain, "WARMUP_STEPS", 5)
    # In fp32, since some processors have no fast bf16: 24 s there for 3.
    trainer = Trainer(Pretraining(steps=150, small_steps=0, batch_size=8, lr=1e-3, precision="fp32"))
    matched = [trainer.train_step()[1] for _ in range(60)]
    assert np.mean(matched[-5:]) > 60 > 40 > np.mean(matched[:5])  # by chance 12.5
