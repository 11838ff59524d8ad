"""Miniature copies of the field's data sets: the right folders, annotation files and split files, a few tiny images."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from rmadapter.data.catalog import CATALOG

COUNT = 10
WNIDS = {"n01440764": "tench", "n02012849": "crane", "n03126707": "crane", "n15075141": "toilet paper"}


def image(path: Path) -> None:
    """A tiny image whose colour depends on its folder, so that classes can be told apart; no two files are the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = tuple(sum(map(ord, path.parent.name)) * factor % 256 for factor in (37, 71, 113))
    Image.new("RGB", (8, 8), colour).save(path, comment="/".join(path.parts[-4:]))


def folders(root: Path, classes: Sequence[str], count: int = COUNT) -> None:
    """``count`` images 00.jpg, 01.jpg, ... in a folder for each class."""
    for name in classes:
        for number in range(count):
            image(root / name / f"{number:02}.jpg")


def caltech101(root: Path) -> None:
    folders(root / "101_ObjectCategories", ["BACKGROUND_Google", "Faces", "Faces_easy", "airplanes", "car_side"])


def oxford_pets(root: Path) -> None:
    lists = {"trainval.txt": range(5), "test.txt": range(5, 10)}
    for name, numbers in lists.items():
        lines = []
        for label, breed in enumerate(["Abyssinian", "american_bulldog", "Bengal"], start=1):
            for number in numbers:
                image(root / "images" / f"{breed}_{number}.jpg")
                lines.append(f"{breed}_{number} {label} 1 {label}")
        write(root / "annotations" / name, lines)


def stanford_cars(root: Path) -> None:
    names = ["AM General Hummer SUV 2000", "Audi A5 Coupe 2012", "BMW M6 Convertible 2010"]

    def annotations(file: Path, images: str, count: int) -> None:
        rows = np.zeros((1, 3 * count), dtype=[("class", object), ("fname", object)])
        for number in range(3 * count):
            image(root / images / f"{number + 1:05}.jpg")
            rows[0, number] = (np.array([[number % 3 + 1]]), f"{number + 1:05}.jpg")
        file.parent.mkdir(parents=True, exist_ok=True)
        savemat(file, {"annotations": rows})

    annotations(root / "devkit" / "cars_train_annos.mat", "cars_train", 5)
    annotations(root / "cars_test_annos_withlabels.mat", "cars_test", 4)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": np.array([names], dtype=object)})


def oxford_flowers(root: Path) -> None:
    labels = [number % 3 + 1 for number in range(3 * COUNT)]
    for number in range(1, len(labels) + 1):
        image(root / "jpg" / f"image_{number:05}.jpg")
    savemat(root / "imagelabels.mat", {"labels": np.array([labels])})
    names = {"1": "pink primrose", "3": "canterbury bells", "2": "hard-leaved pocket orchid"}
    write(root / "cat_to_name.json", [json.dumps(names)])


def food101(root: Path) -> None:
    folders(root / "images", ["apple_pie", "baklava", "waffles"])


def fgvc_aircraft(root: Path) -> None:
    variants = ["707-320", "Boeing 717", "A300B4"]
    write(root / "variants.txt", variants)
    for number, part in enumerate(("train", "val", "test")):
        lines = []
        for label, name in enumerate(variants):
            for index in range(3):
                identifier = f"{1000 * number + 10 * label + index:07}"
                image(root / "images" / f"{identifier}.jpg")
                lines.append(f"{identifier} {name}")
        write(root / f"images_variant_{part}.txt", lines)


def sun397(root: Path) -> None:
    classes = ["a/abbey", "b/bow_window/indoor", "b/bow_window/outdoor"]
    folders(root / "SUN397", classes)
    write(root / "ClassName.txt", [f"/{name}" for name in classes])
    write(root / "Training_01.txt", [f"/{name}/{n:02}.jpg" for name in classes for n in range(5)])
    write(root / "Testing_01.txt", [f"/{name}/{n:02}.jpg" for name in classes for n in range(5, 10)])


def dtd(root: Path) -> None:
    folders(root / "images", ["banded", "polka-dotted", "zigzagged"])


def eurosat(root: Path) -> None:
    folders(root / "2750", ["AnnualCrop", "Forest", "SeaLake"])


def ucf101(root: Path) -> None:
    actions = {"HandstandPushups": "Handstand_Pushups", "JumpingJack": "Jumping_Jack", "JumpRope": "Jump_Rope"}
    lists = root / "ucfTrainTestlist"
    write(lists / "classInd.txt", [f"{number} {name}" for number, name in enumerate(actions, start=1)])
    for part, numbers in (("train", range(1, 6)), ("test", range(6, 10))):
        lines = []
        for label, (action, folder) in enumerate(actions.items(), start=1):
            for n in numbers:
                image(root / "UCF-101-midframes" / folder / f"v_{action}_g{n:02}_c01.jpg")
                lines.append(f"{action}/v_{action}_g{n:02}_c01.avi" + (f" {label}" if part == "train" else ""))
        write(lists / f"{part}list01.txt", lines)


def imagenet(root: Path) -> None:
    folders(root / "images" / "train", list(WNIDS), 6)
    folders(root / "images" / "val", list(WNIDS), 3)
    write_class_names(root)


def imagenetv2(root: Path) -> None:
    folders(root / "imagenetv2-matched-frequency-format-val", [str(n) for n in range(len(WNIDS))], 3)
    write_class_names(root)


def imagenet_sketch(root: Path) -> None:
    folders(root / "images", list(WNIDS), 3)
    write_class_names(root)


def imagenet_a(root: Path) -> None:
    folders(root / "imagenet-a", list(WNIDS)[1:], 3)
    write(root / "imagenet-a" / "README.txt", ["Natural adversarial examples"])
    write_class_names(root)


def imagenet_r(root: Path) -> None:
    folders(root / "imagenet-r", list(WNIDS)[:3], 3)
    write(root / "imagenet-r" / "README.txt", ["Renditions"])
    write_class_names(root)


def write_class_names(root: Path) -> None:
    write(root / "classnames.txt", [f"{wnid} {name}" for wnid, name in WNIDS.items()])


def write(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


BUILDERS: dict[str, Callable[[Path], None]] = {name: globals()[name] for name in CATALOG}


def build(data_root: Path, name: str) -> Path:
    """The miniature of data set ``name`` in the field's layout; returns its folder."""
    folder = data_root / CATALOG[name].folder
    BUILDERS[name](folder)
    return folder
