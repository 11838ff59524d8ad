"""The data sets emoji_GROUP: classes, parts, styles, and what is refused."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest

from rmadapter.config import TrainConfig
from rmadapter.data import base_new_names, few_shot_sample, load_data
from rmadapter.data.emoji import DATA, is_testbed
from rmadapter.data.emoji.emoji_data import COUNTS, RETENTION_STYLE, load_emoji
from rmadapter.errors import InputError
from rmadapter.methods.options import parse_train
from rmadapter.training.adapter_run import train


@pytest.mark.parametrize("name", DATA)
def test_every_class_has_its_renderings_in_each_part(name):
    data = load_data(name, style="twemoji")
    assert data.name == name
    assert data.style == "twemoji"
    for part, count in COUNTS.items():
        labels = Counter(item.label for item in getattr(data, part))
        assert labels == dict.fromkeys(range(len(data.class_names)), count)
    assert data.class_names == sorted(data.class_names, key=str.lower)


def test_classes_are_the_same_in_every_style_and_the_base_half_comes_first():
    names = {style: load_emoji("emoji_food", style).class_names for style in ("noto", "fluent", "openmoji")}
    assert names["noto"] == names["fluent"] == names["openmoji"]
    assert base_new_names(names["noto"], "base")[0] == "amphora"
    assert base_new_names(names["noto"], "new")[-1] == "wine glass"


def test_parts_share_no_picture_and_styles_share_the_view():
    data = load_emoji("emoji_animals", "fluent")
    pictures = {}
    for part in COUNTS:
        for item in getattr(data, part):
            if item.label == 5:
                pictures.setdefault(np.asarray(data.read(item.path)).tobytes(), set()).add(item.path)
    assert len(pictures) == sum(COUNTS.values())
    # Corners show the background, where no drawing reaches: the same in both styles.
    path = data.test[0].path
    other = path.replace("fluent", "emojione")
    one, two = np.asarray(data.read(path)), np.asarray(data.read(other))
    same = (one == two).all(-1)
    assert 0.2 < same.mean() < 0.95


def test_a_picture_is_rgb_of_48_pixels_and_the_same_each_time():
    data = load_emoji("emoji_symbols", "noto")
    first = data.read(data.val[7].path)
    assert first.mode == "RGB"
    assert first.size == (48, 48)
    again = pickle.loads(pickle.dumps(data)).read(data.val[7].path)  # as a worker process gets it
    assert first.tobytes() == again.tobytes()


def test_retention_is_a_style_that_neither_pretraining_nor_training_has_seen():
    for style, unseen in RETENTION_STYLE.items():
        assert unseen != style
        assert unseen in ("fluent", "emojione")
        data = load_emoji("emoji_food", style)
        assert data.retention.style == unseen
        assert data.retention.class_names == data.class_names
        assert data.retention.retention is None


def test_the_few_shot_sample_is_drawn_as_elsewhere():
    data = load_emoji("emoji_food", "fluent")
    samples = [few_shot_sample(data.train, data.val, 16, seed)[0] for seed in (1, 1, 2)]
    assert samples[0] == samples[1] != samples[2]
    assert len(samples[0]) == 16 * len(data.class_names)


def test_bad_names_are_answered_with_the_nearest_and_the_list():
    with pytest.raises(InputError, match=r"data is 'emoji_fod', which is no folder; did you mean 'emoji_food'"):
        load_data("emoji_fod")
    with pytest.raises(InputError, match=r"style is 'fluant'; valid: 'noto'.*did you mean 'fluent'"):
        load_data("emoji_food", style="fluant")


def test_a_style_for_a_folder_is_refused(images):
    with pytest.raises(InputError, match=r"style is 'fluent', but data is .*emoji_animals"):
        load_data(str(images), style="fluent")


def test_a_folder_of_that_name_is_a_folder(images, monkeypatch):
    monkeypatch.chdir(images.parent)
    images.rename("emoji_food")
    assert not is_testbed("emoji_food")
    assert load_data("emoji_food").class_names == ["ant", "bee", "cat", "dog"]


def test_a_name_like_those_of_the_bundled_sets_is_a_user_s_own(images):
    images.rename(images.parent / "emoji_mine")
    assert not is_testbed("emoji_mine")
    data = load_data("emoji_mine", str(images.parent))
    assert (data.name, data.style) == ("emoji_mine", None)
    words = ["--data", "emoji_mine", "--data_root", str(images.parent)]
    assert parse_train(words, prog="train").model == "ViT-B-16"  # not the test bed's


def test_more_shots_than_renderings_are_refused_before_training(tmp_path):
    config = TrainConfig(data="emoji_food", model="emoji-clip", shots=33, out=str(tmp_path / "run"))
    with pytest.raises(InputError, match=r"shots is 33; valid: a number >= 1 and <= 32"):
        train(config)
    assert not (tmp_path / "run").exists()
