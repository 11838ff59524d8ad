"""The few-shot sample, draw for draw, and the halves of the classes."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmadapter.data import FewShotSample, Item, base_new_names, base_new_split, few_shot_sample
from rmadapter.errors import InputError


def items(counts, prefix="t"):
    """``counts`` images a label, labels in the order given and mixed among each other."""
    left = dict(counts)
    found = []
    while any(left.values()):
        for label in left:
            if left[label]:
                left[label] -= 1
                found.append(Item(f"{prefix}{label}/{left[label]}", label, f"class {label}"))
    return found


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_draws_of_the_field(seed):
    """Written out for one list: label 2 comes first, label 0 has too few images and draws nothing."""
    train, val = items({2: 6, 0: 2, 1: 5}), items({1: 3, 2: 6, 0: 4}, "v")
    generator = random.Random(seed)
    of = {label: [i for i in train if i.label == label] for label in range(3)}
    expected = [*generator.sample(of[2], 3), *of[0], *generator.sample(of[1], 3)]
    of = {label: [i for i in val if i.label == label] for label in range(3)}
    expected_val = [*generator.sample(of[1], 3), *generator.sample(of[2], 3), *generator.sample(of[0], 3)]
    assert few_shot_sample(train, val, 3, seed) == (expected, expected_val)


def test_pinned_numbers():
    """What Python's generator of seed 1 draws: a change of its use shows even where both sides above would change."""
    train, _ = few_shot_sample(items({0: 8, 1: 8}), [], 2, 1)
    assert [item.path for item in train] == ["t0/5", "t0/3", "t1/6", "t1/5"]


def test_as_many_images_as_shots_are_drawn_too():
    """CoOp samples where there are at least as many images as shots, which shuffles them."""
    train = items({0: 4})
    assert few_shot_sample(train, [], 4, 1)[0] == random.Random(1).sample(train, 4) != train
    assert few_shot_sample(train, [], 5, 1)[0] == train


def test_validation_has_four_shots_at_most():
    train, val = few_shot_sample(items({0: 20, 1: 20}), items({0: 20, 1: 20}), 16, 1)
    assert (len(train), len(val)) == (32, 8)


@given(
    counts=st.dictionaries(st.integers(0, 6), st.integers(1, 9), min_size=1),
    shots=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_any_sample(counts, shots, seed):
    train, val = few_shot_sample(items(counts), items(counts, "v"), shots, seed)
    for label, count in counts.items():
        assert sum(i.label == label for i in train) == min(count, shots)
        assert sum(i.label == label for i in val) == min(count, shots, 4)
    assert len({i.path for i in train}) == len(train)
    assert set(train) <= set(items(counts))


def test_no_shots():
    with pytest.raises(InputError, match="shots is 0; valid: a number >= 1"):
        few_shot_sample(items({0: 2}), [], 0, 1)


def test_halves_of_the_sorted_labels():
    five = items({3: 1, 0: 2, 4: 1, 1: 1, 2: 1})
    base, new = base_new_split(five, "base"), base_new_split(five, "new")
    assert {(i.name, i.label) for i in base} == {("class 0", 0), ("class 1", 1), ("class 2", 2)}
    assert {(i.name, i.label) for i in new} == {("class 3", 0), ("class 4", 1)}
    assert [i.path for i in base] == [i.path for i in five if i.label < 3]
    assert base_new_split(five, "all") == five
    names = ["a", "b", "a", "d", "e"]
    assert base_new_names(names, "base") == ["a", "b", "a"]
    assert base_new_names(names, "new") == ["d", "e"]
    assert base_new_names(names, "all") == names
    with pytest.raises(InputError, match="classes is 'old'"):
        base_new_split(five, "old")


def test_a_sample_is_saved_with_its_hash(tmp_path):
    sample = FewShotSample(*few_shot_sample(items({0: 5, 1: 5}), items({0: 2}), 2, 1), 2, 1, "pets")
    path = tmp_path / "few_shot.json"
    sample.save(path)
    assert FewShotSample.load(path) == sample
    values = json.loads(path.read_text())
    assert values["hash"] == sample.hash
    assert values["train"][0][0] == sample.train[0].path
    other = FewShotSample(sample.train[::-1], sample.val, 2, 1, "pets")
    assert other.hash != sample.hash
    path.write_text(json.dumps({**values, "seed": 2}))
    with pytest.raises(InputError, match="has been changed"):
        FewShotSample.load(path)
    path.write_text(json.dumps({"train": []}))
    with pytest.raises(InputError, match="is damaged"):
        FewShotSample.load(path)
    with pytest.raises(InputError, match="is missing"):
        FewShotSample.load(tmp_path / "none.json")
