"""What is wrong with the field's data sets, in miniature copies of their layouts, and how it is said."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from miniatures import WNIDS, build, write
from scipy.io import savemat

from rmadapter.data import load_data
from rmadapter.data.catalog import CATALOG
from rmadapter.data.named import load_named
from rmadapter.errors import InputError


def replace(path, old, new):
    path.write_text(path.read_text().replace(old, new, 1))


def wrong_order(folder):
    write(folder / "classnames.txt", [f"{w} {n}" for w, n in reversed(WNIDS.items())])


def unlabelled(folder):
    """The test images' annotations as the devkit has them, without classes, under the other file's name."""
    rows = np.zeros((1, 1), dtype=[("fname", object)])
    rows[0, 0] = ("00001.jpg",)
    savemat(folder / "cars_test_annos_withlabels.mat", {"annotations": rows})


def split_file(folder, change):
    values = {"train": [], "val": [], "test": []}
    for label, name in enumerate(("banded", "polka-dotted", "zigzagged")):
        values["train"] += [[f"{name}/0{n}.jpg", label, name] for n in range(5)]
        values["test"] += [[f"{name}/0{n}.jpg", label, name] for n in range(5, 10)]
    change(values)
    (folder / "split_zhou_DescribableTextures.json").write_text(json.dumps(values))


def shifted(values):
    for part in values.values():
        part[:] = [[path, label + (label > 1), name] for path, label, name in part]


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("dtd", lambda f: split_file(f, lambda v: v["test"].append(["banded/99.jpg", 0, "banded"])), r"banded/99\.jpg"),
        ("dtd", lambda f: split_file(f, shifted), r"labels 0, 1, 3 and no 2"),
        (
            "dtd",
            lambda f: split_file(f, lambda v: v.update(train=[i for i in v["train"] if i[1] != 2])),
            r"no training image of 1 classes, such as 'zigzagged' \(label 2\)",
        ),
        ("oxford_pets", lambda f: (f / "annotations" / "test.txt").unlink(), r"test\.txt is missing"),
        ("oxford_pets", lambda f: replace(f / "annotations" / "test.txt", " 1 1 1", " 1 1"), r"line 1: .* 3 words"),
        ("oxford_pets", lambda f: replace(f / "annotations" / "test.txt", "5 1", "5 x"), r"class 'x'; valid"),
        ("oxford_pets", lambda f: (f / "images" / "Bengal_7.jpg").unlink(), r"1 images .*: Bengal_7\.jpg"),
        ("stanford_cars", lambda f: (f / "devkit" / "cars_meta.mat").write_bytes(b"no"), r"cars_meta\.mat cannot"),
        ("stanford_cars", lambda f: (f / "devkit" / "cars_train_annos.mat").unlink(), r"cars_train_annos\.mat is miss"),
        ("stanford_cars", unlabelled, r"withlabels\.mat is of another form .*class.*; valid: annotations with the"),
        (
            "stanford_cars",
            lambda f: savemat(f / "devkit" / "cars_meta.mat", {"class_names": np.array([[1, 2]])}),
            r"cars_meta\.mat is of another form .*; valid: class_names, each a text",
        ),
        ("oxford_flowers", lambda f: (f / "cat_to_name.json").write_text('{"1": "a"}'), r"label 2 has no name"),
        ("oxford_flowers", lambda f: (f / "cat_to_name.json").write_text('["a"]'), r"name\.json is of another form"),
        ("oxford_flowers", lambda f: (f / "cat_to_name.json").write_text('{"a": "1"}'), r'form .*; valid: \{"number'),
        ("oxford_flowers", lambda f: (f / "cat_to_name.json").write_text('{"1": 2}'), r"name\.json is of another form"),
        ("ucf101", lambda f: replace(f / "ucfTrainTestlist" / "classInd.txt", "1 ", "one "), r"line 1: class 'one'"),
        ("fgvc_aircraft", lambda f: write(f / "variants.txt", ["707-320"]), r"line 4: 'Boeing 717' is not in variants"),
        ("sun397", lambda f: (f / "ClassName.txt").unlink(), r"ClassName\.txt is missing"),
        ("sun397", lambda f: write(f / "ClassName.txt", ["/a/abbey"]), r"is of no class in ClassName\.txt"),
        ("ucf101", lambda f: replace(f / "ucfTrainTestlist" / "classInd.txt", "JumpRope", "Hop"), r"'JumpRope' is not"),
        (
            "imagenet",
            lambda f: shutil.rmtree(f / "images" / "val" / "n15075141"),
            r"'n15075141' is in train and not in val",
        ),
        ("imagenet", wrong_order, r"not in the order of the wnids: 'n15075141' stands where 'n01440764'"),
        ("imagenet", lambda f: write(f / "classnames.txt", ["n01440764 tench"] * 2), r"line 2: 'n01440764' is there"),
        ("imagenet", lambda f: write(f / "classnames.txt", ["n01440764 tench"]), r"has no line in classnames\.txt"),
        (
            "imagenetv2",
            lambda f: shutil.rmtree(f / "imagenetv2-matched-frequency-format-val" / "2"),
            r"folder '2' is missing; valid: 0 to 3",
        ),
        ("imagenet_r", lambda f: [p.unlink() for p in (f / "imagenet-r" / "n01440764").iterdir()], "has no images"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, name, spoil, message):
    spoil(build(tmp_path, name))
    with pytest.raises(InputError, match=message):
        load_data(name, str(tmp_path))


@pytest.mark.parametrize(
    ("name", "places", "message"),
    [
        (
            "imagenet",
            ["train/a", "val/a"],
            r"has train/ and val/ but no test/.*; the field's imagenet lies in imagenet/images of",
        ),
        (
            "oxford_pets",
            ["annotations", "xmls"],
            r"annotations has no images.*; .* oxford_pets lies in oxford_pets/images",
        ),
        ("food-101", ["a"], r"has 1 class folders.*; .* food101 lies in food-101/images of data_root"),
    ],
)
def test_errors_of_another_layout_say_where_the_field_has_it(tmp_path, name, places, message):
    for place in places:
        (tmp_path / name / place).mkdir(parents=True)
    with pytest.raises(InputError, match=message + ".*datasets download"):
        load_data(name, str(tmp_path))


def test_a_missing_data_set_says_where_it_belongs(tmp_path):
    with pytest.raises(InputError, match=r"food101 lies in food-101/images of data_root.*datasets download food101"):
        load_data("food101", str(tmp_path))
    with pytest.raises(InputError, match="did you mean 'food101'"):
        load_data("food_101", str(tmp_path))
    with pytest.raises(InputError, match="cannot be read"):
        load_named(tmp_path / "food-101", CATALOG["food101"])
