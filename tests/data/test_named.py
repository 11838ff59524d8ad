"""The field's data sets on miniature copies of their layouts: counts, order, names, few-shot picks."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil

import pytest
from miniatures import COUNT, build, folders

from rmadapter.data import Item, base_new_names, base_new_split, few_shot_sample, load_data, named
from rmadapter.data.catalog import CATALOG, FIELD, VARIANTS, record_of, zeroshot_template
from rmadapter.data.checking import check
from rmadapter.data.items import OWN_LISTS
from rmadapter.data.readers import READERS
from rmadapter.errors import InputError

NAMES = {
    "imagenet": ["tench", "crane", "crane", "toilet paper"],
    "caltech101": ["face", "airplane", "car side"],
    "oxford_pets": ["abyssinian", "american bulldog", "bengal"],
    "stanford_cars": ["2000 AM General Hummer SUV", "2012 Audi A5 Coupe", "2010 BMW M6 Convertible"],
    "oxford_flowers": ["pink primrose", "hard-leaved pocket orchid", "canterbury bells"],
    "food101": ["apple pie", "baklava", "waffles"],
    "fgvc_aircraft": ["707-320", "Boeing 717", "A300B4"],
    "sun397": ["abbey", "indoor bow window", "outdoor bow window"],
    "dtd": ["banded", "polka-dotted", "zigzagged"],
    "eurosat": ["Annual Crop Land", "Forest", "Sea or Lake"],
    "ucf101": ["Handstand Pushups", "Jumping Jack", "Jump Rope"],
    "imagenetv2": ["tench", "crane", "crane", "toilet paper"],
    "imagenet_sketch": ["tench", "crane", "crane", "toilet paper"],
    "imagenet_a": ["crane", "crane", "toilet paper"],
    "imagenet_r": ["tench", "crane", "crane"],
}
COUNTS = {
    "imagenet": (24, 0, 12),
    "caltech101": (15, 6, 9),
    "oxford_pets": (12, 3, 15),
    "stanford_cars": (12, 3, 12),
    "oxford_flowers": (15, 6, 9),
    "food101": (15, 6, 9),
    "fgvc_aircraft": (9, 9, 9),
    "sun397": (12, 3, 15),
    "dtd": (15, 6, 9),
    "eurosat": (15, 6, 9),
    "ucf101": (12, 3, 12),
    "imagenetv2": (0, 0, 12),
    "imagenet_sketch": (0, 0, 12),
    "imagenet_a": (0, 0, 9),
    "imagenet_r": (0, 0, 9),
}
# Those whose images are listed by annotation files, and those whose are found in folders.
LISTS = ("oxford_pets", "stanford_cars", "oxford_flowers", "fgvc_aircraft", "sun397", "ucf101")
LISTED = tuple(name for name in COUNTS if name not in LISTS)
# What few-shot seed 1 with two shots draws: the first two classes' images, in order.
PICKS = {
    "imagenet": [
        "train/n01440764/01.jpg",
        "train/n01440764/04.jpg",
        "train/n02012849/00.jpg",
        "train/n02012849/02.jpg",
    ],
    "oxford_pets": ["Abyssinian_4.jpg", "Abyssinian_0.jpg", "american_bulldog_2.jpg", "american_bulldog_1.jpg"],
    "fgvc_aircraft": ["0000000.jpg", "0000002.jpg", "0000011.jpg", "0000010.jpg"],
    "caltech101": ["Faces/08.jpg", "Faces/06.jpg", "airplanes/02.jpg", "airplanes/04.jpg"],
}


@pytest.mark.parametrize("name", list(CATALOG))
def test_every_layout(tmp_path, name):
    build(tmp_path, name)
    data = load_data(name, str(tmp_path))
    assert data.name == name
    assert data.class_names == NAMES[name]
    assert (len(data.train), len(data.val), len(data.test)) == COUNTS[name]
    items = [*data.train, *data.val, *data.test]
    assert len({item.path for item in items}) == len(items)
    assert all((data.root / item.path).is_file() for item in items)
    half = (len(NAMES[name]) + 1) // 2
    assert base_new_names(data.class_names, "base") == NAMES[name][:half]
    assert {i.name for i in base_new_split(data.test, "new")} == set(NAMES[name][half:])
    record = CATALOG[name]
    if record.split_file:
        assert data.split_file == data.root.parent / "split_rmadapter.json" or record.images == ""
        assert f"{record.split_file} is missing" in data.notes[0]
        assert "do not compare" in data.notes[0]
        assert data.split_id.startswith("split_rmadapter.json, SHA-256 ")
    else:
        assert data.split_id == OWN_LISTS
    again = load_data(str(tmp_path / record.folder))
    assert (again.name, again.train, again.test) == (name, data.train, data.test)
    assert again.split_id == data.split_id
    if record.split_file:  # the next time too
        assert f"{record.split_file} is missing" in again.notes[0]
        assert "do not compare" in again.notes[0]


@pytest.mark.parametrize("name", [name for name, record in CATALOG.items() if record.split_file])
def test_the_public_split_file_is_taken_before_one_made_here(tmp_path, name):
    folder = build(tmp_path, name)
    own = load_data(name, str(tmp_path))
    assert own.split_file.name == "split_rmadapter.json"
    values = {part: [[i.path, i.label, i.name.replace(" ", "_")] for i in getattr(own, part)][::-1] for part in PARTS}
    (folder / CATALOG[name].split_file).write_text(json.dumps(values))
    data = load_data(name, str(tmp_path))
    assert data.split_file.name == CATALOG[name].split_file
    assert data.train == own.train[::-1]
    assert data.class_names == NAMES[name]
    (note,) = data.notes  # by its name the public one, by its numbers not
    assert f"{name} is not as published: classes {len(NAMES[name])} (published" in note
    assert "accuracies on it do not compare with published ones" in note
    digest = hashlib.sha256(data.split_file.read_bytes()).hexdigest()
    assert data.split_id == f"{CATALOG[name].split_file}, SHA-256 {digest[:12]}"


PARTS = ("train", "val", "test")


def as_published(data):
    """A record of what ``data`` holds, with the SHA-256 of its split file."""
    record, classes = CATALOG[data.name], len(data.class_names)
    return dataclasses.replace(
        record,
        classes=classes,
        **{part: len(getattr(data, part)) for part in PARTS},
        base_new_test=tuple(len(base_new_split(data.test, half, classes)) for half in ("base", "new")),
        split_sha256=hashlib.sha256(data.split_file.read_bytes()).hexdigest(),
    )


def test_a_split_is_told_from_the_public_one_by_its_hash_where_that_is_known(tmp_path, monkeypatch):
    folder = build(tmp_path, "dtd")
    load_data("dtd", str(tmp_path))
    (folder / "split_rmadapter.json").rename(folder / CATALOG["dtd"].split_file)
    data = load_data("dtd", str(tmp_path))
    assert "(not verified: the published hash is not known here)" in check(["dtd"], tmp_path)[0].split
    monkeypatch.setitem(CATALOG, "dtd", as_published(data))
    assert load_data("dtd", str(tmp_path)).notes == ()
    assert check(["dtd"], tmp_path)[0].split == f"{data.split_id} (as published)"
    # As many images in each part, of each half, but others.
    data.split_file.write_text(data.split_file.read_text().replace("banded/00.jpg", "banded/99.jpg", 1))
    (folder / "images" / "banded" / "00.jpg").rename(folder / "images" / "banded" / "99.jpg")
    (note,) = load_data("dtd", str(tmp_path)).notes
    assert "dtd is not as published: the SHA-256 of " in note


@pytest.mark.parametrize("name", PICKS)
def test_few_shot_picks(tmp_path, name):
    build(tmp_path, name)
    data = load_data(name, str(tmp_path))
    train, _ = few_shot_sample(data.train, data.val, 2, 1)
    assert [item.path for item in train if item.label < 2] == PICKS[name]


def test_an_official_test_set_stays_the_test_set(tmp_path):
    build(tmp_path, "oxford_pets")
    data = load_data("oxford_pets", str(tmp_path))
    assert data.test[0] == Item("Abyssinian_5.jpg", 0, "abyssinian")
    assert {item.path.rpartition("_")[2] for item in data.test} == {f"{n}.jpg" for n in range(5, 10)}
    assert "the data set's own test images" in data.notes[0]


def test_without_lists_the_class_folders_are_divided(tmp_path):
    folder = build(tmp_path, "ucf101")
    shutil.rmtree(folder / "ucfTrainTestlist")
    data = load_data("ucf101", str(tmp_path))
    assert data.class_names == NAMES["ucf101"]  # Jumping Jack before Jump Rope, as in the official numbers
    assert (len(data.train), len(data.val), len(data.test)) == (12, 6, 9)
    folder = build(tmp_path, "sun397")
    (folder / "Training_01.txt").unlink()
    data = load_data("sun397", str(tmp_path))
    assert (len(data.train), len(data.val), len(data.test)) == (15, 6, 9)


def test_flowers_have_torchvision_s_names_without_cat_to_name(tmp_path):
    folder = build(tmp_path, "oxford_flowers")
    (folder / "cat_to_name.json").unlink()
    assert load_data("oxford_flowers", str(tmp_path)).class_names == NAMES["oxford_flowers"]


@pytest.mark.parametrize("place", ["dtd", "food-101", "food101"])
def test_another_folder_of_that_name_is_a_folder_of_images_and_said_to_be(tmp_path, place):
    folders(tmp_path / place, ["ant", "bee"], 4)
    for data in (load_data(place, str(tmp_path)), load_data(str(tmp_path / place))):
        assert data.class_names == ["ant", "bee"]
        assert "is read as a plain folder of images: it has not the layout of the field's" in data.notes[0]
        assert "class names and split are not the published ones" in data.notes[0]
        assert data.split_id.startswith("split_rmadapter.json")


def test_lists_of_another_layout_are_not_the_published_ones(tmp_path):
    for part in ("train", "test"):
        folders(tmp_path / "imagenet" / part, ["ant", "bee"], 2)
    data = load_data("imagenet", str(tmp_path))
    assert (data.split_file, data.split_id) == (None, None)
    assert "the layout of the field's imagenet (imagenet/images)" in data.notes[0]


def test_the_public_split_file_makes_up_for_another_layout(tmp_path):
    folder = build(tmp_path, "eurosat")
    own = load_data("eurosat", str(tmp_path))
    (folder / "split_rmadapter.json").rename(folder / "split_zhou_EuroSAT.json")
    for path in (folder / "2750").iterdir():
        path.rename(folder / path.name)
    (folder / "2750").rmdir()
    data = load_data("eurosat", str(tmp_path))
    assert data.train == own.train
    assert "eurosat is not as published: classes 3 (published 10), train 15 (published 13,500)" in data.notes[0]
    assert data.split_id.startswith("split_zhou_EuroSAT.json")


def test_a_record_by_name_folder_or_path():
    for data in ("imagenet_a", "imagenet-adversarial", "/data/imagenet-adversarial", "x/imagenet_a/"):
        assert record_of(data) is CATALOG["imagenet_a"]
    assert record_of("imagenet-a") is record_of(".") is record_of("my_dtd") is None


def test_the_variants_take_class_names_from_imagenet_beside_them(tmp_path):
    build(tmp_path, "imagenet")
    folder = build(tmp_path, "imagenet_a")
    (folder / "classnames.txt").unlink()
    data = load_data("imagenet_a", str(tmp_path))
    assert data.class_names == ["crane", "crane", "toilet paper"]
    assert any("'crane' (labels 0, 1)" in note for note in data.notes)
    with pytest.raises(InputError, match="for testing only"):
        few_shot_sample(data.train, data.val, 2, 1)
    shutil.rmtree(tmp_path / "imagenet")
    with pytest.raises(InputError, match=r"classnames\.txt is missing; it holds 'wnid name' a line"):
        load_data("imagenet_a", str(tmp_path))


def test_links_to_data_sets(tmp_path, monkeypatch):
    """What belongs beside a data set is beside its link; a link of the field's name, or to one, has its layout."""
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "data"
    build(root, "imagenet")
    folder = build(elsewhere, "imagenet_a")
    (folder / "classnames.txt").unlink()
    (root / "imagenet-adversarial").symlink_to(folder)
    assert load_data("imagenet_a", str(root)).class_names == NAMES["imagenet_a"]
    assert check(["imagenet_a"], root)[0].error is None
    build(elsewhere, "eurosat").rename(elsewhere / "EuroSAT_RGB")
    (root / "eurosat").symlink_to(elsewhere / "EuroSAT_RGB")
    assert load_data(str(root / "eurosat")).class_names == NAMES["eurosat"]
    (root / "textures").symlink_to(build(elsewhere, "dtd"))
    assert load_data("textures", str(root)).name == "dtd"
    monkeypatch.chdir(elsewhere / "dtd" / "images")
    assert load_data("..").name == "dtd"


def test_the_folder_in_data_root_comes_before_one_of_the_working_folder(tmp_path, monkeypatch):
    """A run, or another copy, may lie there under the data set's name."""
    root, here = tmp_path / "data", tmp_path / "here"
    for place in (root, here):
        build(place, "dtd")
        folders(place / "birds", ["crane", "stork"])
    (root / "dtd" / "images").rename(root / "dtd" / "textures")  # without the layout it is the one meant all the same
    (root / "food").symlink_to(build(root, "food101"))
    (here / "food").mkdir()
    (here / "food" / "run.json").write_text("{}")
    monkeypatch.chdir(here)
    assert load_data("birds", str(root)).root == root / "birds"
    assert load_data("./birds", str(root)).root == here / "birds"
    assert load_data("food", str(root)).name == "food101"
    with pytest.raises(InputError, match=f"^{root / 'dtd'} has no class folders"):
        load_data("dtd", str(root))
    assert load_data("dtd", "no-folder").root == here / "dtd" / "images"


@pytest.mark.parametrize("name", CATALOG)
def test_hidden_files_are_no_images(tmp_path, name):
    """What a Mac leaves beside each file on a disk of another kind, and notebooks in folders of images."""
    folder = build(tmp_path, name)
    for path in [*folder.rglob("*.jpg")]:
        (path.parent / f"._{path.name}").write_bytes(b"no image")
        (path.parent / ".ipynb_checkpoints").mkdir(exist_ok=True)
    data = load_data(name, str(tmp_path))
    assert (len(data.train), len(data.val), len(data.test)) == COUNTS[name]
    assert load_data(name, str(tmp_path)).train == data.train


@pytest.mark.parametrize("name", LISTED)
def test_what_was_listed_is_not_looked_for_again(tmp_path, monkeypatch, name):
    build(tmp_path, name)
    monkeypatch.setattr(named, "missing_images", lambda *_: pytest.fail("looked for again"))
    data = load_data(name, str(tmp_path))
    assert (len(data.train), len(data.val), len(data.test)) == COUNTS[name]


def test_equal_names_are_kept_apart_and_said(tmp_path):
    build(tmp_path, "imagenet")
    data = load_data("imagenet", str(tmp_path))
    assert data.notes[1:] == (
        "1 class names stand for several classes, such as 'crane' (labels 1, 2); they are kept apart by label, but no "
        "prompt can tell them apart",
    )
    assert {(i.label, i.path.split("/")[1]) for i in data.test if i.name == "crane"} == {
        (1, "n02012849"),
        (2, "n03126707"),
    }


def test_records_are_consistent():
    assert len(FIELD) == 11
    assert len(VARIANTS) == 4
    for record in CATALOG.values():
        assert record.reader in READERS
        assert record.template.count("{}") == 1
        assert record.base_new_test is None or sum(record.base_new_test) == record.test
    assert zeroshot_template("dtd") == "{} texture."
    assert zeroshot_template("food-101") == zeroshot_template("food101") == "a photo of {}, a type of food."
    assert zeroshot_template("my_birds") == "a photo of a {}."
    assert COUNT == 10
