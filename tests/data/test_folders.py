"""Folders of images: layouts, class names, and what cannot be a data set."""

from __future__ import annotations

import os
import sys

import pytest
from PIL import Image

from rmadapter.data import FewShotSample, Item, image_files, load_data
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
    with pytest.raises(InputError, match="has train/ and val/ but no test/"):
        load_data(str(tmp_path))
    (tmp_path / "val").rename(tmp_path / "test")
    fill(tmp_path / "val", ["a", "c"])
    with pytest.raises(InputError, match="class folder 'b' is in train and not in val"):
        load_data(str(tmp_path))


def test_images_of_all_kinds_in_sub_folders_and_what_is_left_out(tmp_path):
    fill(tmp_path, ["a", "b"])
    (tmp_path / "a" / "deep").mkdir()
    names = ["x.JPEG", "y.jfif", "z.gif", "w.jpe", "v.avif"]
    for name in names:
        (tmp_path / "a" / "deep" / name).write_bytes(b"")
    for name in ("notes.txt", "1.heic", "2.HEIC", "deep/Thumbs.db"):
        (tmp_path / "a" / name).write_text("")
    (tmp_path / "b" / "x.png").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "b" / "x.png" / "0.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "loose.png")
    data = load_data(str(tmp_path))
    images = {item.path for item in [*data.train, *data.val, *data.test]}
    assert images == {"a/0.png", "a/1.png", "b/0.png", "b/1.png", *(f"a/deep/{name}" for name in names)}
    assert "left out what is no image by its name: 2 .heic, 1 .txt, 1 folders, such as a/1.heic" in data.notes[1]
    assert "left out 1 images that lie in no class folder, such as loose.png" in data.notes[2]
    assert load_data(str(tmp_path)).notes == data.notes[1:]


def test_what_systems_and_commands_leave_beside_classes_is_none(tmp_path):
    """Least of all what a run has written, where the data folder is also where it runs."""
    fill(tmp_path, ["a", "b"])
    before = load_data(str(tmp_path))
    fill(tmp_path, ["__MACOSX", "@eaDir", "a/@eaDir", "x.png"])
    outputs = {
        "runs/one": ("config.yaml", "environment.json"),
        "runs/one/adapter": ("adapter_config.json",),
        "report": ("report.md", "report.csv", "curves.png"),
        "sweep": ("sweep.json",),
        "sweep/report": ("report.md", "report.csv", "cost.png"),
    }
    for folder, names in outputs.items():
        (tmp_path / folder).mkdir(parents=True)
        for name in names:
            (tmp_path / folder / name).write_text("")
    data = load_data(str(tmp_path))
    assert (data.train, data.test, data.class_names) == (before.train, before.test, ["a", "b"])
    assert any("left out 'report', 'runs', 'sweep', which rmadapter has written" in note for note in data.notes)
    (tmp_path / "split_rmadapter.json").unlink()
    assert load_data(str(tmp_path)).train == before.train


def test_a_link_in_a_circle_is_followed_once(tmp_path):
    fill(tmp_path, ["a", "b", "elsewhere/more"])
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "more").symlink_to(tmp_path / "elsewhere" / "more")
    (tmp_path / "elsewhere" / "more" / "back").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").rename(tmp_path / ".elsewhere")
    (tmp_path / "a" / "more").unlink()
    (tmp_path / "a" / "more").symlink_to(tmp_path / ".elsewhere" / "more")
    (tmp_path / "b" / "self").symlink_to(tmp_path / "b" / "self")
    data = load_data(str(tmp_path))
    images = {item.path for item in [*data.train, *data.val, *data.test]}
    assert images == {"a/0.png", "a/1.png", "a/more/0.png", "a/more/1.png", "b/0.png", "b/1.png"}


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Training", None, "Testing"),
        ("seg_train/seg_train", None, "seg_test/seg_test"),
        ("Train", "valid", "TEST"),
        ("train_images", "Validation Set", "test-images"),
        ("training_set", "dev", "test_set"),
    ],
)
def test_parts_by_their_usual_names(tmp_path, train, val, test):
    for folder, count in ((train, 3), (val, 1), (test, 2)):
        if folder:
            fill(tmp_path / folder, ["b", "a"], count)
    fill(tmp_path, ["seg_pred"])
    data = load_data(str(tmp_path))
    assert data.class_names == ["a", "b"]
    assert (len(data.train), len(data.val), len(data.test)) == (6, 2 if val else 0, 4)
    assert data.train[0].path == f"{train}/a/0.png"
    assert all((data.root / item.path).is_file() for item in [*data.train, *data.val, *data.test])
    assert "left out 'seg_pred', in none of the parts" in data.notes[0]
    assert not (tmp_path / "split_rmadapter.json").exists()


def test_classes_that_are_called_like_parts_are_classes(tmp_path):
    fill(tmp_path, ["train", "test", "car"])
    assert load_data(str(tmp_path)).class_names == ["car", "test", "train"]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["one/a", "one/b", "two/a"], r"of its 2 folders none has images directly in it.* \('one/a', 'two/a'\); valid"),
        (["flowers/a", "flowers/b"], r"of its 1 folders none has.*--data .*/flowers"),
        (["train/one/a", "train/two/b", "test/one/a", "test/two/b"], r"train has no class folders: of its 2 folders"),
        (["Train/a", "train/a", "test/a"], "two folders for train: Train and train"),
        (["Train/a", "Train/b", "Test"], "has Train/ but no test/; Test/ has no class folders"),
        (["train/a", "train/b", "valid/a", "valid/b"], "has train/ and valid/ but no test/; valid: train/ and test/"),
        (["Train/aa", "Train/bb", "test/aa", "test/b"], "'b' is in test and not in Train; valid: the same in each"),
    ],
)
def test_folders_of_which_the_classes_are_not_known(tmp_path, folders, message):
    fill(tmp_path, folders)
    with pytest.raises(InputError, match=message):
        load_data(str(tmp_path))
    assert not list(tmp_path.glob("*.json"))


def test_a_split_that_was_made_before_the_folder_had_parts(tmp_path):
    fill(tmp_path, ["train", "test"])
    load_data(str(tmp_path))
    for part in ("train", "test"):
        fill(tmp_path / part, ["a", "b"])
    with pytest.raises(InputError, match=r"parts in folders \(train, test\) and .*split_rmadapter\.json; valid: one"):
        load_data(str(tmp_path))


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    fill(tmp_path, ["a", "b"])
    real = image_files.os.scandir

    def scandir(folder):
        if str(folder).endswith("/b"):
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(image_files.os, "scandir", scandir)
    with pytest.raises(InputError, match=r"folder .*/b cannot be read: Permission denied"):
        load_data(str(tmp_path))


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="file names are always text here")
def test_names_that_are_no_text(tmp_path):
    """Of images they work, up to the file of the few-shot sample; of classes they are refused."""
    fill(tmp_path, ["a", "b"])
    odd = os.fsdecode(b"a/gr\xfcn.png")
    Image.new("RGB", (4, 4)).save(tmp_path / odd)
    for _ in range(2):
        data = load_data(str(tmp_path))
        assert odd in {item.path for item in [*data.train, *data.val, *data.test]}
        assert data.read(odd).size == (4, 4)
    assert len(data.content_hash) == 64
    sample = FewShotSample([Item(odd, 0, "a")], [], 1, 1, "data")
    sample.save(tmp_path / "few_shot.json")
    assert FewShotSample.load(tmp_path / "few_shot.json") == sample
    folder = fill(tmp_path / os.fsdecode(b"gr\xfcn"), ["a", "b"])
    with pytest.raises(InputError, match=r"the name of data folder .*gr\\+udcfcn' is not UTF-8; valid: another"):
        load_data(str(folder))
    with pytest.raises(InputError, match=r"the name of class folder .*gr\\+udcfcn' is not UTF-8; valid: another"):
        load_data(str(tmp_path))


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
