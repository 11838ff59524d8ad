"""The data sets drawings_GROUP: whose drawings are trained on and whose are tested, and what is refused."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from rmadapter.data import few_shot_sample, load_data
from rmadapter.data.emoji import DRAWINGS, is_testbed
from rmadapter.data.emoji.atlas import STYLES, classes
from rmadapter.data.emoji.drawings_data import load_drawings, trained_styles, unseen_style
from rmadapter.data.emoji.emoji_data import COUNTS
from rmadapter.errors import InputError


def styles_of(items):
    return {item.path.partition("/")[0] for item in items}


@pytest.mark.parametrize("style", STYLES)
def test_no_test_image_shows_a_drawing_or_a_vendor_that_training_has_shown(style):
    data = load_drawings("drawings_activities", style)
    shown = styles_of(data.train)
    assert shown == styles_of(data.val) == set(trained_styles(style))
    assert len(shown) >= 2
    assert styles_of(data.test) == {data.style} == {style}
    assert styles_of(data.retention.test) == {data.retention.style} == {unseen_style(style)}
    vendors = {STYLES[name].vendor for name in shown}
    assert not vendors & {STYLES[style].vendor, STYLES[unseen_style(style)].vendor}
    assert not any(STYLES[name].pretrained for name in shown)
    assert data.retention.class_names == data.class_names


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_class_has_its_renderings_of_all_trained_drawings(name):
    data = load_data(name)
    assert (data.name, data.style, data.retention.style) == (name, "fluent", "openmoji")
    assert is_testbed(name)
    for part, count in COUNTS.items():
        labels = Counter(item.label for item in getattr(data, part))
        assert labels == dict.fromkeys(range(len(data.class_names)), count)
    group = name.removeprefix("drawings_")
    assert data.class_names == [emoji.name for emoji in classes(group, several=True)]
    assert len(data.class_names) >= len(classes(group)) - 1
    of_class = Counter(item.path.partition("/")[0] for item in data.train if item.label == 3)
    assert of_class == {"noto-v1": 16, "emojione": 16}


def test_a_few_shot_sample_has_several_drawings_of_nearly_every_class():
    data = load_drawings("drawings_food", "emojione")
    sample, _ = few_shot_sample(data.train, data.val, 16, 1)
    shown = {}
    for item in sample:
        shown.setdefault(item.label, set()).add(item.path.partition("/")[0])
    assert Counter(map(len, shown.values()))[3] > 0.95 * len(shown)


def test_the_drawings_of_a_class_are_several_pictures_of_one_thing():
    data = load_drawings("drawings_food", "openmoji")
    numbers = {path.partition("/")[0]: path for path in (item.path for item in data.train if item.label == 0)}
    pictures = [np.asarray(data.read(path)).astype(int) for path in numbers.values()]
    assert len(pictures) == 3
    assert all(np.abs(one - other).mean() > 5 for one, other in itertools.pairwise(pictures))


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'drawings_food'"):
        load_data("drawings_fod")
    with pytest.raises(InputError, match=r"style is 'noto-v2'.*did you mean 'noto-v1'"):
        load_data("drawings_food", style="noto-v2")
    with pytest.raises(InputError, match=r"style is 'noto-v1'; valid: 'noto', 'twemoji', 'fluent', 'emojione', 'open"):
        load_data("emoji_food", style="noto-v1")
