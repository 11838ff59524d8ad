"""Split files: the field's form, our own, and files that are wrong."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from PIL import Image

from rmadapter.data import Item, load_data
from rmadapter.data.splits import make_split
from rmadapter.errors import InputError


@pytest.fixture
def folder(tmp_path):
    for path in ("ant/1.png", "ant/2.png", "bee/1.png", "bee/2.png"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / path)
    return tmp_path


GOOD = {
    "train": [["bee/1.png", 1, "bee"], ["ant/2.png", 0, "ant"]],
    "val": [],
    "test": [["ant/1.png", 0, "ant"], ["bee/2.png", 1, "bee"]],
}


def write(folder, values, name="split_zhou_Insects.json"):
    (folder / name).write_text(values if isinstance(values, str) else json.dumps(values))


def test_a_public_split_file_is_taken_as_it_is(folder):
    write(folder, GOOD)
    data = load_data(str(folder))
    assert data.train == [Item("bee/1.png", 1, "bee"), Item("ant/2.png", 0, "ant")]
    assert data.val == []
    assert data.class_names == ["ant", "bee"]
    assert data.notes == ()


def test_validation_images_that_are_tested_are_none(folder):
    """Nothing may be chosen by them: CoOp has val for test where a data set has but one of them."""
    write(folder, {**GOOD, "val": [*GOOD["test"][:1], GOOD["train"][0]]})
    data = load_data(str(folder))
    assert data.val == [Item("bee/1.png", 1, "bee")]
    assert data.notes == ("1 validation images are test images too, and nothing is chosen or calibrated by them",)


def test_images_that_stand_twice_are_said(folder):
    write(folder, {**GOOD, "test": [*GOOD["test"], GOOD["test"][0]]})
    data = load_data(str(folder))
    assert len(data.test) == 3
    assert data.notes == ("1 images stand in test more than once and count as often, such as ant/1.png",)


def test_images_below_a_folder_are_found_for_the_message(folder):
    """As CoOp has its data sets: the split file beside the folder of images."""
    (folder / "images").mkdir()
    for name in ("ant", "bee"):
        shutil.move(folder / name, folder / "images" / name)
    write(folder, GOOD)
    with pytest.raises(
        InputError, match=r"names 4 images that are not in .*; bee/1.png is in .*images: move the split"
    ):
        load_data(str(folder))


def test_one_of_the_field_s_data_sets_stays_where_its_name_is(folder):
    """With the split file in 2750 or JPGs it would be a data set of that name, without its prompt."""
    named = folder / "eurosat"
    (named / "JPGs").mkdir(parents=True)
    for name in ("ant", "bee"):
        shutil.move(folder / name, named / "JPGs" / name)
    write(named, GOOD, "split_zhou_EuroSAT.json")
    where = f"bee/1.png is in {named / 'JPGs'}: what is in that folder belongs into {named};"
    with pytest.raises(InputError, match=re.escape(where)):
        load_data(str(named))


def changed(part="train", index=0, **values):
    copy = json.loads(json.dumps(GOOD))
    for position, value in zip((0, 1, 2), (values.get(k) for k in ("path", "label", "name")), strict=True):
        if value is not None:
            copy[part][index][position] = value
    return copy


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "has no list train and no list val and no list test; valid: "),
        ({"train": [], "val": []}, r"has no list test; valid: \{\"train\": .*\}, of which val may be empty"),
        ({**GOOD, "val": [["ant/1.png", 0]]}, r"entry \['ant/1.png', 0\]; valid: \[relative path, label, class name\]"),
        (changed(label="0"), "entry"),
        (changed(path="../bee/1.png"), r"path '\.\./bee/1\.png' leaves the image folder"),
        (changed(path="bee/../../x.png"), "leaves the image folder"),
        (changed(path="/etc/passwd"), "leaves the image folder"),
        (changed(path="C:/x.png"), "leaves the image folder"),
        (changed(path="..\\x.png"), "leaves the image folder"),
        (changed(path="ant\\1.png"), r"path 'ant.*1\.png' has a backslash; valid: '/' between folders and files"),
        (changed(name="wasp"), "label 1 is 'wasp' and 'bee'"),
        (changed(label=5), "has labels"),
        (changed(path="bee/9.png"), r"names 1 images that are not in .*: bee/9\.png"),
        ({"train": [["ant/1.png", 0, "ant"]], "val": [], "test": []}, r"labels 0; valid: .*two or more"),
    ],
)
def test_wrong_files(folder, values, message):
    write(folder, values)
    with pytest.raises(InputError, match=message):
        load_data(str(folder))


def test_the_first_ten_missing_images_are_named(folder):
    missing = [[f"ant/x{number:02}.png", 0, "ant"] for number in range(15)]
    write(folder, {**GOOD, "val": missing})
    with pytest.raises(InputError, match=r"names 15 images .*x09\.png$"):
        load_data(str(folder))


def test_names_that_tokenizers_read_alike_are_named(folder, tmp_path):
    capitals = [[path, label, "Bee" if label else "bee"] for path, label, _ in GOOD["train"]]
    write(folder, {"train": capitals, "val": [], "test": []})
    said = (
        "1 class names stand for several classes, such as 'bee' and 'Bee' (labels 0, 1), which CLIP's tokenizers read"
    )
    assert any(note.startswith(f"{said} alike; they are kept") for note in load_data(str(folder)).notes)
    for name in ("honey_Bee", "Honey  bee", "wasp"):
        (tmp_path / "other" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "other" / name / "1.png")
    notes = load_data(str(tmp_path / "other")).notes
    assert any("such as 'Honey  bee' and 'honey Bee' (labels 0, 1)" in note for note in notes)


def test_two_split_files(folder):
    write(folder, GOOD)
    write(folder, GOOD, "split_other.json")
    with pytest.raises(InputError, match=r"several split files: split_other\.json, split_zhou_Insects\.json"):
        load_data(str(folder))


@pytest.mark.parametrize("change", ["new image", "deep image", "new class", "gone"])
def test_our_own_split_notices_that_the_folder_has_changed(folder, change):
    load_data(str(folder))
    if change == "new image":
        Image.new("RGB", (4, 4)).save(folder / "ant" / "3.png")
        message = r"1 new, such as ant/3\.png; delete .*split_rmadapter\.json"
    elif change == "deep image":
        (folder / "ant" / "new" / "deep").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(folder / "ant" / "new" / "deep" / "3.png")
        message = r"1 new, such as ant/new/deep/3\.png; delete"
    elif change == "new class":
        (folder / "cow").mkdir()
        Image.new("RGB", (4, 4)).save(folder / "cow" / "1.png")
        message = r"1 new, such as cow/1\.png"
    else:
        (folder / "ant" / "1.png").unlink()
        message = r"not in .*: ant/1\.png; delete it to have a new split made"
    with pytest.raises(InputError, match=message):
        load_data(str(folder))


@pytest.mark.parametrize(
    ("count", "parts"),
    [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (2, 0, 1)), (4, (2, 1, 1)), (10, (5, 2, 3)), (11, (6, 2, 3))],
)
def test_shares_of_a_class(count, parts):
    items = [Item(f"a/{n}", 0, "a") for n in range(count)]
    split = make_split([items])
    assert tuple(map(len, split)) == parts
    assert sorted(i for part in split for i in part) == sorted(items)
    assert make_split([items]) == split


def test_a_data_set_is_told_by_what_it_holds(folder, tmp_path_factory):
    write(folder, GOOD)
    first = load_data(str(folder)).content_hash
    copied = tmp_path_factory.mktemp("copy") / folder.name
    shutil.copytree(folder, copied)
    assert load_data(str(copied)).content_hash == first
    write(copied, {**GOOD, "test": GOOD["test"][::-1], "val": GOOD["test"][:1]})
    assert load_data(str(copied)).content_hash != first


def test_other_images_under_the_same_names_are_another_data_set(folder, tmp_path_factory):
    write(folder, GOOD)
    first = load_data(str(folder)).content_hash
    other = tmp_path_factory.mktemp("other") / folder.name
    shutil.copytree(folder, other)
    Image.new("RGB", (40, 30), "red").save(other / "ant" / "1.png")
    assert load_data(str(other)).content_hash != first
