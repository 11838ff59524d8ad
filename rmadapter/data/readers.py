"""What makes a split of each of the field's data sets from its own folders and annotation files.

Every reader takes the data set's folder and its record. Where the data set names its test images, the split keeps
them, so that test accuracy compares with published figures, and divides the rest 80 / 20 for training and
validation; otherwise each class is divided 50 / 20 / 30. Both are shuffled with seed 1.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rmadapter.data.catalog import DataSet
from rmadapter.data.class_names import CLASS_NAMES_FILE, read_lines
from rmadapter.data.image_files import folders_in, is_folder, is_image_name, no_images, scan
from rmadapter.data.items import Item
from rmadapter.data.splits import divide_training, make_split
from rmadapter.errors import InputError
from rmadapter.files import read_json

EUROSAT_NAMES = {
    "AnnualCrop": "Annual Crop Land",
    "Forest": "Forest",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "River": "River",
    "SeaLake": "Sea or Lake",
}
CALTECH_NAMES = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}
CALTECH_IGNORED = ("BACKGROUND_Google", "Faces_easy")


class Split(NamedTuple):
    """Three parts, what they were made from where they are worth keeping (for the user), and whether all images were
    found in folders, so that they are there.
    """

    train: list[Item]
    val: list[Item]
    test: list[Item]
    made: str | None
    listed: bool = False


def caltech101(folder: Path, record: DataSet) -> Split:
    """Class folders without the two that the field leaves out, four of them renamed."""
    return _halves(class_items(folder / record.images, CALTECH_NAMES, ignored=CALTECH_IGNORED))


def class_folders(folder: Path, record: DataSet) -> Split:
    """One folder a class, named as the class."""
    return _halves(class_items(folder / record.images, {}))


def eurosat(folder: Path, record: DataSet) -> Split:
    """One folder a class, with the names that CLIP's prompts use."""
    return _halves(class_items(folder / record.images, EUROSAT_NAMES))


def oxford_pets(folder: Path, record: DataSet) -> Split:
    """``annotations/trainval.txt`` and ``test.txt``: image, class from 1, species, breed's number, one a line."""

    def read(name: str) -> list[Item]:
        items = []
        for number, words in _lines(folder / "annotations" / name, 4):
            breed = words[0].rpartition("_")[0].lower()
            label = _number(folder / "annotations" / name, number, words[1])
            items.append(Item(f"{words[0]}.jpg", label - 1, _spaced(breed)))
        return items

    return _official(read("trainval.txt"), read("test.txt"))


def stanford_cars(folder: Path, record: DataSet) -> Split:
    """The devkit's annotations; the class "Audi A5 Coupe 2012" is called "2012 Audi A5 Coupe", as CoOp does."""
    names_file, names = folder / "devkit" / "cars_meta.mat", []
    for row in _matlab(names_file, "class_names"):
        with _of_form(names_file, "class_names, each a text"):
            words = str(row[0]).split(" ")
        names.append(" ".join([words[-1], *words[:-1]]))

    def read(images: str, file: Path) -> list[Item]:
        items = []
        for row in _matlab(file, "annotations"):
            with _of_form(file, "annotations with the fields 'class' and 'fname'"):
                label, image = int(row["class"][0, 0]) - 1, str(row["fname"][0])
            if not 0 <= label < len(names):
                raise InputError(f"{file}: class {label + 1}; valid: 1 to {len(names)}, the classes of cars_meta.mat")
            items.append(Item(f"{images}/{image}", label, names[label]))
        return items

    return _official(
        read("cars_train", folder / "devkit" / "cars_train_annos.mat"),
        read("cars_test", folder / "cars_test_annos_withlabels.mat"),
    )


def oxford_flowers(folder: Path, record: DataSet) -> Split:
    """``imagelabels.mat``, the n-th label (from 1) for image_0000n.jpg; names from ``cat_to_name.json``.

    Without ``cat_to_name.json`` the names are torchvision's. The official split has more test images than training
    images; the field divides the whole anew.
    """
    names_file = folder / "cat_to_name.json"
    if names_file.is_file():
        by_number = read_json(names_file, "class names file")
        with _of_form(names_file, '{"number of the class": "its name", ...}'):
            names = {int(number): _spaced(name) for number, name in by_number.items()}
    else:
        from torchvision.datasets import Flowers102

        names = dict(enumerate(Flowers102.classes, start=1))
    classes: dict[int, list[Item]] = {}
    for number, label in enumerate(_matlab(folder / "imagelabels.mat", "labels"), start=1):
        label = int(label)
        if label not in names:
            raise InputError(f"{folder / 'imagelabels.mat'}: label {label} has no name in {names_file.name}")
        classes.setdefault(label, []).append(Item(f"image_{number:05}.jpg", label - 1, names[label]))
    return _halves([classes[label] for label in sorted(classes)], listed=False)


def fgvc_aircraft(folder: Path, record: DataSet) -> Split:
    """``variants.txt`` names the classes in order; ``images_variant_{train,val,test}.txt`` are an official split."""
    labels = {name: label for label, (_, name) in enumerate(_texts(folder / "variants.txt"))}

    def read(part: str) -> list[Item]:
        file = folder / f"images_variant_{part}.txt"
        items = []
        for number, words in _lines(file, 2, maxsplit=1):
            if words[1] not in labels:
                raise InputError(f"{file}, line {number}: {words[1]!r} is not in variants.txt")
            items.append(Item(f"{words[0]}.jpg", labels[words[1]], words[1]))
        return items

    return Split(read("train"), read("val"), read("test"), None)


def sun397(folder: Path, record: DataSet) -> Split:
    """``ClassName.txt`` ("/a/abbey" a line), ``Training_01.txt`` and ``Testing_01.txt``; class "b/bow_window/indoor"
    is called "indoor bow window". Without the two lists each class folder is divided.
    """
    names_file = next((p for p in (folder / "ClassName.txt", folder / "SUN397" / "ClassName.txt") if p.is_file()), None)
    if names_file is None:
        raise InputError(f"{folder / 'ClassName.txt'} is missing; it comes with SUN397.tar.gz")
    paths = [line.lstrip("/") for _, line in _texts(names_file)]
    labels = {path: label for label, path in enumerate(paths)}

    def item(path: str) -> Item:
        class_path = str(Path(path).parent.as_posix())
        if class_path not in labels:
            raise InputError(f"{folder}: image {path} is of no class in {names_file.name}")
        words = class_path.split("/")[1:]
        return Item(path, labels[class_path], _spaced(" ".join(reversed(words))))

    def read(file: Path) -> list[Item]:
        return [item(line.lstrip("/")) for _, line in _texts(file)]

    training, testing = folder / "Training_01.txt", folder / "Testing_01.txt"
    if training.is_file() and testing.is_file():
        return _official(read(training), read(testing))
    images = folder / record.images
    return _halves([[item(f"{path}/{name}") for name in _images(images / path)] for path in paths])


def ucf101(folder: Path, record: DataSet) -> Split:
    """``ucfTrainTestlist``: classInd.txt, trainlist01.txt, testlist01.txt ("ApplyLipstick/v_..._c01.avi 2").

    The frame of a video lies in ``Apply_Lipstick/v_..._c01.jpg``. Without the lists each class folder is divided;
    several frames are then of one video's scene, in training and test alike.
    """
    images = folder / record.images
    found = {name.replace("_", "").lower(): name for name in _folders(images)}
    lists = folder / "ucfTrainTestlist"
    if not lists.is_dir():
        # The order of the official numbers: of the names without underscores, small and large letters alike.
        return _halves(
            [
                [Item(f"{found[key]}/{image}", label, _spaced(found[key])) for image in _images(images / found[key])]
                for label, key in enumerate(sorted(found))
            ]
        )
    classes = lists / "classInd.txt"
    labels = {words[1]: _number(classes, number, words[0]) - 1 for number, words in _lines(classes, 2)}

    def read(file: Path) -> list[Item]:
        items = []
        for number, words in _lines(file, None):
            action, _, video = words[0].partition("/")
            if action not in labels:
                raise InputError(f"{file}, line {number}: {action!r} is not in classInd.txt")
            class_folder = found.get(action.lower(), "_".join(re.findall("[A-Z][^A-Z]*", action)))
            items.append(Item(f"{class_folder}/{Path(video).stem}.jpg", labels[action], _spaced(class_folder)))
        return items

    return _official(read(lists / "trainlist01.txt"), read(lists / "testlist01.txt"))


def imagenet(folder: Path, record: DataSet) -> Split:
    """``images/train`` and ``images/val``, a folder a wnid in each; labels by sorted wnid; ``val`` is the test set."""
    names = read_class_names(folder)
    parts = {part: _folders(folder / record.images / part) for part in ("train", "val")}
    odd = sorted(set(parts["train"]) ^ set(parts["val"]))
    if odd:
        here, there = ("train", "val") if odd[0] in parts["train"] else ("val", "train")
        raise InputError(f"{folder / record.images}: class folder {odd[0]!r} is in {here} and not in {there}")
    items = {part: _by_wnid(folder / record.images / part, found, names, f"{part}/") for part, found in parts.items()}
    return Split(items["train"], [], items["val"], None, listed=True)


def imagenetv2(folder: Path, record: DataSet) -> Split:
    """Folders "0", "1", ...: the numbers of the classes in the order of ``classnames.txt``."""
    names = list(read_class_names(folder).values())
    images = folder / record.images
    numbers = set(_folders(images))
    expected = {str(number) for number in range(len(names))}
    if numbers != expected:
        odd = sorted(numbers ^ expected, key=lambda text: (len(text), text))
        raise InputError(
            f"{images}: folder {odd[0]!r} is {'too many' if odd[0] in numbers else 'missing'}; valid: 0 to "
            f"{len(names) - 1}, one for each line of {CLASS_NAMES_FILE}"
        )
    test = [
        Item(f"{number}/{image}", number, name)
        for number, name in enumerate(names)
        for image in _images(images / str(number))
    ]
    return Split([], [], test, None, listed=True)


def imagenet_variant(folder: Path, record: DataSet) -> Split:
    """A folder a wnid; labels count the folders that are there, in sorted order (files beside them are no class)."""
    images = folder / record.images
    return Split([], [], _by_wnid(images, _folders(images), read_class_names(folder), ""), None, listed=True)


def read_class_names(folder: Path) -> dict[str, str]:
    """wnid -> name, from ``classnames.txt`` of the folder or of ``imagenet/`` beside it ("wnid name" a line).

    Names may repeat ("missile" is two classes); wnids may not, and they are in sorted order, which is the order of
    ImageNet's labels and of ImageNetV2's folder numbers.
    """
    candidates = [folder / CLASS_NAMES_FILE, folder.parent / "imagenet" / CLASS_NAMES_FILE]
    file = next((path for path in candidates if path.is_file()), None)
    if file is None:
        raise InputError(
            f"{candidates[0]} is missing; it holds 'wnid name' a line for ImageNet's 1000 classes, and comes with CoOp "
            "(rmadapter datasets download imagenet says from where)"
        )
    names: dict[str, str] = {}
    for number, words in _lines(file, 2, maxsplit=1):
        if words[0] in names:
            raise InputError(f"{file}, line {number}: {words[0]!r} is there twice")
        names[words[0]] = words[1]
    wrong = next((pair for pair in zip(names, sorted(names), strict=True) if pair[0] != pair[1]), None)
    if wrong:
        raise InputError(
            f"{file} is not in the order of the wnids: {wrong[0]!r} stands where {wrong[1]!r} belongs; labels count "
            "the sorted wnids, and ImageNetV2's folders this file's lines"
        )
    return names


READERS: dict[str, Callable[[Path, DataSet], Split]] = {
    reader.__name__: reader
    for reader in (
        caltech101,
        class_folders,
        eurosat,
        oxford_pets,
        stanford_cars,
        oxford_flowers,
        fgvc_aircraft,
        sun397,
        ucf101,
        imagenet,
        imagenetv2,
        imagenet_variant,
    )
}


def class_items(images: Path, names: dict[str, str], ignored: Sequence[str] = ()) -> list[list[Item]]:
    """The items of each class folder, in sorted order; ``names`` renames some of the classes."""
    folders = [folder for folder in _folders(images) if folder not in ignored]
    return [
        [Item(f"{folder}/{image}", label, _spaced(names.get(folder, folder))) for image in _images(images / folder)]
        for label, folder in enumerate(folders)
    ]


def _halves(classes: Sequence[Sequence[Item]], *, listed: bool = True) -> Split:
    return Split(*make_split(classes), "50/20/30 % of each class", listed)


def _official(training: list[Item], test: list[Item]) -> Split:
    return Split(*divide_training(training), test, "the data set's own test images, the others 80/20 %")


def _by_wnid(images: Path, folders: Sequence[str], names: dict[str, str], prefix: str) -> list[Item]:
    unknown = [folder for folder in folders if folder not in names]
    if unknown:
        raise InputError(f"{images / unknown[0]} has no line in {CLASS_NAMES_FILE}; valid: a folder a wnid")
    return [
        Item(f"{prefix}{folder}/{image}", label, names[folder])
        for label, folder in enumerate(folders)
        for image in _images(images / folder)
    ]


def _spaced(name: str) -> str:
    """A name as it stands in prompts."""
    return name.replace("_", " ")


def _folders(folder: Path) -> list[str]:
    """Names of the class folders in ``folder``, sorted; InputError for fewer than two."""
    found = folders_in(folder)
    if len(found) < 2:
        raise InputError(f"{folder} has {len(found)} class folders; valid: two or more")
    return found


def _images(folder: Path) -> list[str]:
    """Names of the image files in ``folder``, sorted, without hidden ones (a Mac's ._00.jpg); InputError for none."""
    found = [entry.name for entry in scan(folder) if is_image_name(entry.name) and not is_folder(entry)]
    if not found:
        raise no_images(folder)
    return found


def _texts(file: Path) -> list[tuple[int, str]]:
    return read_lines(file, "annotation file")


def _lines(file: Path, count: int | None, maxsplit: int = -1) -> list[tuple[int, list[str]]]:
    """Number and words of each line that is not empty; ``count`` words in each, or any number."""
    found = []
    for number, line in _texts(file):
        words = line.split(maxsplit=maxsplit)
        if line.startswith("#"):
            continue
        if count is not None and len(words) != count:
            raise InputError(f"{file}, line {number}: {line!r} has {len(words)} words; valid: {count}")
        found.append((number, words))
    if not found:
        raise InputError(f"annotation file {file} is empty")
    return found


def _number(file: Path, number: int, word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise InputError(f"{file}, line {number}: class {word!r}; valid: a number from 1")
    return int(word)


@contextlib.contextmanager
def _of_form(file: Path, valid: str) -> Iterator[None]:
    """Inside, what is read from ``file`` is taken apart; InputError where it has not the form ``valid``."""
    try:
        yield
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"annotation file {file} is of another form ({error}); valid: {valid}") from error


def _matlab(file: Path, variable: str) -> Any:
    """The one-dimensional array ``variable`` of a MATLAB file."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    if not file.is_file():
        raise InputError(f"annotation file {file} is missing")
    try:
        return loadmat(file)[variable][0]
    except KeyError:
        raise InputError(f"annotation file {file} has no variable {variable!r}") from None
    except (OSError, ValueError, TypeError, IndexError, NotImplementedError, MatReadError) as error:
        raise InputError(f"annotation file {file} cannot be read: {error}") from error
