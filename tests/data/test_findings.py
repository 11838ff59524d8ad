"""What is odd about a few-shot sample: counted, said, and refused where a test image has been trained on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rmadapter.data import ImageData, Item, SampleFindings, examine, load_data
from rmadapter.data.emoji.emoji_data import load_emoji
from rmadapter.errors import InputError
from rmadapter.training.adapter_run import train
from rmadapter.training.few_shot import few_shot


@pytest.fixture
def data(tmp_path):
    """Three classes of two training and two test images, all different, of two sizes."""
    parts = {"train": [], "test": []}
    for label, name in enumerate("abc"):
        for part, items in parts.items():
            for number in range(2):
                item = Item(f"{part}/{name}/{number}.png", label, name)
                file = tmp_path / item.path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(f"{part} {name} {number}".ljust(30 + number))
                items.append(item)
    return ImageData("letters", tmp_path, parts["train"], [], parts["test"], None)


def copy(data, source, target):
    shutil.copyfile(data.root / source, data.root / target)


def test_nothing_odd(data):
    assert examine(data, data.train, 2) == (SampleFindings(), [])


def test_a_test_image_that_is_trained_on_is_refused_or_counted(data):
    copy(data, "train/a/0.png", "test/a/1.png")
    copy(data, "train/a/0.png", "test/b/0.png")
    message = r"2 test images of letters are among the training images, such as test/a/1\.png, which is train/a/0\.png"
    with pytest.raises(InputError, match=message + r"; valid: .*--allow-test-overlap"):
        examine(data, data.train, 2)
    found, sentences = examine(data, data.train, 2, allow_test_overlap=True)
    assert found == SampleFindings(images_of_two_classes=1, test_images_seen=2)
    assert "1 images stand for more than one class, such as train/a/0.png (a) and test/b/0.png (b)" in sentences[0]
    assert examine(data, data.train[1:], 2)[0].test_images_seen == 0  # what is not in the sample harms nothing


def test_one_path_in_two_parts_is_one_image(data):
    data.test.append(data.train[0])
    with pytest.raises(InputError, match="1 test images of letters"):
        examine(data, data.train, 2)


def test_images_that_are_there_twice_or_with_two_labels(data):
    copy(data, "train/a/0.png", "train/a/1.png")
    copy(data, "train/b/0.png", "train/c/0.png")
    found, sentences = examine(data, data.train, 2)
    assert found == SampleFindings(repeated_images=2, images_of_two_classes=1)
    assert sentences == [
        "2 training images are there more than once, such as train/a/1.png, which is train/a/0.png",
        "1 images stand for more than one class, such as train/b/0.png (b) and train/c/0.png (c)",
    ]


def test_classes_with_fewer_images_than_shots(data):
    found, sentences = examine(data, data.train[1:], 3)
    assert found == SampleFindings(small_classes=3)
    assert sentences == ["3 classes have fewer than 3 training images, such as 'a' with 1"]
    emoji = load_emoji("emoji_food")
    assert examine(emoji, emoji.train, 32) == (SampleFindings(), [])  # drawings are no files


def test_a_class_without_an_image_has_fewer_too(data):
    names = {0: "a", 1: "b", 2: "c", 3: "d"}
    found, sentences = examine(data, data.train, 2, class_names=names, unreadable=["train/d/1.png", "train/d/0.png"])
    assert found == SampleFindings(small_classes=1, unreadable_images=2)
    assert sentences == [
        "2 training images cannot be read, such as train/d/0.png: others were drawn in their place, so that the sample "
        "is not the one of this seed",
        "1 classes have fewer than 2 training images, such as 'd' with 0",
    ]


def test_only_test_images_of_a_size_that_was_trained_on_are_read(data, monkeypatch):
    for item in data.test:
        (data.root / item.path).write_text("x" * (500 + item.label))
    copy(data, "train/b/0.png", "test/c/0.png")
    read, real = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or real(path))
    with pytest.raises(InputError, match="1 test images"):
        examine(data, data.train, 2)
    tested = [path for path in read if "test" in path.relative_to(data.root).parts]
    assert tested == [data.root / "test/c/0.png"]


def test_a_run_says_and_counts_what_it_finds(config, images, capsys):
    data = load_data(str(images))
    shown = few_shot(config(), data, data.read).items
    tested = next(item for item in data.test if item.label == 0)
    shutil.copyfile(images / shown[0].path, images / tested.path)
    with pytest.raises(InputError, match="1 test images of animals are among the training images"):
        train(config())
    assert not (images.parent / "run").exists()
    results = train(config(allow_test_overlap=True, epochs=1, shots=6))
    assert results["data_findings"] == {
        "small_classes": 2,
        "repeated_images": 0,
        "images_of_two_classes": 0,
        "test_images_seen": 1,
        "unreadable_images": 0,
    }
    for file in (images / "ant").iterdir():
        file.write_bytes(b"no image")
    results = train(config(skip_bad_images=True, allow_test_overlap=True, epochs=1, evaluate=False, overwrite=True))
    assert results["data_findings"]["small_classes"] == 1
    assert results["data_findings"]["unreadable_images"] == 5
    said = capsys.readouterr().out
    assert "such as 'ant' with 0" in said
    assert "2 classes have fewer than 6 training images, such as 'ant' with 5" in said
    assert "1 test images of animals are among the training images" in said
