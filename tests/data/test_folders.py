"""Folders of images: layouts, class names, and what cannot be a data set."""

from __future__ import annotations

import pytest
from PIL import Image

from rmadapter.data import load_data
from rmadapter.errors import InputError


def fill(folder, classes, count=2):
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("RGB", (4, 4)).save(folder / name / f"{number}.png")
    return folder


def test_one_folder_a_class(tmp_path):
    data = load_data(str(fill(tmp_path / "pets", ["siamese_cat", "Boxer", ".cache"], 10)))
    assert data.name == "pets"
    assert data.class_names == ["Boxer", "siamese cat"]
    assert (len(data.train), len(data.val), len(data.test)) == (10, 4, 6)
    everything = [*data.train, *data.val, *data.test]
    assert len({item.path for item in everything}) == 20
    assert all((data.root / item.path).is_file() for item in everything)
    assert {(i.label, i.name, i.path.split("/")[0]) for i in everything} == {
        (0, "Boxer", "Boxer"),
        (1, "siamese cat", "siamese_cat"),
    }
    assert "made a split" in data.notes[0]
    again = load_data("pets", str(tmp_path))
    assert again.notes == ()
    assert again.train == data.train
    assert again.split_file == data.root / "split_rmadapter.json"


def test_train_and_test_folders(tmp_path):
    fill(tmp_path / "train", ["b", "a"], 3)
    fill(tmp_path / "test", ["a", "b"], 2)
    data = load_data(str(tmp_path))
    assert [item.path for item in data.train[:3]] == ["train/a/0.png", "train/a/1.png", "train/a/2.png"]
    assert (len(data.train), len(data.val), len(data.test)) == (6, 0, 4)
    assert data.split_file is None
    (tmp_path / "test").rename(tmp_path / "val")
    with pytest.raises(InputError, match="has train/ but no test/"):
        load_data(str(tmp_path))
    (tmp_path / "val").rename(tmp_path / "test")
    fill(tmp_path / "val", ["a", "c"])
    with pytest.raises(InputError, match="class folder 'b' is in only one of train and val"):
        load_data(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n02 tabby cat\nn01 great white shark\n", ["great white shark", "tabby cat"]),
        ("shark\ncat\n\n", ["shark", "cat"]),
        ("crane\ncrane", ["crane", "crane"]),
    ],
)
def test_class_names_from_a_file(tmp_path, text, names):
    fill(tmp_path, ["n01", "n02"])
    (tmp_path / "classnames.txt").write_text(text)
    data = load_data(str(tmp_path))
    assert data.class_names == names
    assert {item.label for item in data.train} == {0, 1}


def test_class_names_that_do_not_count_up(tmp_path):
    fill(tmp_path, ["a", "b"])
    (tmp_path / "classnames.txt").write_text("one\ntwo\nthree\n")
    with pytest.raises(InputError, match=r"classnames\.txt has 3 lines for 2 class folders"):
        load_data(str(tmp_path))


def test_images_in_deeper_folders_and_other_files(tmp_path):
    fill(tmp_path, ["a", "b"])
    (tmp_path / "a" / "deep").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "a" / "deep" / "x.JPEG", format="JPEG")
    (tmp_path / "a" / "notes.txt").write_text("")
    data = load_data(str(tmp_path))
    paths = {item.path for item in [*data.train, *data.val, *data.test] if item.label == 0}
    assert paths == {"a/0.png", "a/1.png", "a/deep/x.JPEG"}


def test_hidden_files_are_no_images(tmp_path):
    fill(tmp_path, ["a", "b"])
    load_data(str(tmp_path))
    (tmp_path / "a" / "._0.png").write_bytes(b"what a Mac leaves")
    (tmp_path / "a" / ".thumbnails").mkdir()
    (tmp_path / "a" / ".thumbnails" / "0.png").write_bytes(b"")
    kept = load_data(str(tmp_path))  # no image has come since the split was made
    (tmp_path / "split_rmadapter.json").unlink()
    assert load_data(str(tmp_path)).train == kept.train
    paths = {item.path for item in [*kept.train, *kept.val, *kept.test] if item.label == 0}
    assert paths == {"a/0.png", "a/1.png"}


def test_an_unwritable_folder_gets_the_same_split_from_memory(tmp_path, monkeypatch):
    fill(tmp_path / "one", ["a", "b"], 5)
    fill(tmp_path / "two", ["a", "b"], 5)
    kept = load_data(str(tmp_path / "one"))
    from rmadapter import files

    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.os, "replace", refuse)
    data = load_data(str(tmp_path / "two"))
    assert data.train == kept.train
    assert data.split_file is None
    assert "was not kept" in data.notes[0]
    assert not list((tmp_path / "two").glob("*.json"))


def test_refusals(tmp_path):
    fill(tmp_path / "flowers", ["a", "b"])
    with pytest.raises(InputError, match=r"data is .*flowerz.*did you mean 'flowers'"):
        load_data(str(tmp_path / "flowerz"))
    with pytest.raises(InputError, match=r"data is 'flower'.*did you mean 'flowers'"):
        load_data("flower", str(tmp_path))
    with pytest.raises(InputError, match=r"data_root is .*nowhere"):
        load_data("flowers", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="caltech101 lies in caltech-101/101_ObjectCategories of data_root"):
        load_data("caltech101", str(tmp_path))
    fill(tmp_path / "single", ["a"])
    with pytest.raises(InputError, match="has 1 class folders; valid: two or more"):
        load_data(str(tmp_path / "single"))
    fill(tmp_path / "hole", ["a", "b"])
    (tmp_path / "hole" / "c").mkdir()
    with pytest.raises(InputError, match=r"hole/c has no images; valid endings: \.jpg"):
        load_data(str(tmp_path / "hole"))
