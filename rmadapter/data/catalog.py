"""The field's data sets as records: where their images lie, what reads them, and what was published about them.

Folders, split files and counts are those of CoOp (Zhou et al. 2022, "Learning to Prompt for Vision-Language Models",
and the repository's DATASETS.md); templates are those it uses for zero-shot CLIP.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PHOTO = "a photo of a {}."


@dataclass(frozen=True)
class DataSet:
    """One data set.

    Attributes:
        name: how commands and results call it.
        folder: its folder in the data root.
        images: the folder of the images in it, that split files' paths are relative to; "" for ``folder`` itself.
        reader: name of the function in ``readers`` that makes a split where there is no split file.
        classes: published number of classes.
        train, val, test: published number of images; 0 for a part that it has not.
        base_new_test: published test images of the base and the new classes; None where not known.
        split_file: CoOp's split file, or None where the data set has lists or folders of its own.
        split_sha256: SHA-256 of that file as it is published, in hexadecimal; None where it is not known.
        template: zero-shot CLIP's prompt.
        marker: a folder or file below ``folder`` that tells the layout; default: ``images``.
    """

    name: str
    folder: str
    images: str
    reader: str
    classes: int
    train: int
    val: int
    test: int
    base_new_test: tuple[int, int] | None = None
    split_file: str | None = None
    template: str = PHOTO
    marker: str | None = None
    split_sha256: str | None = None

    @property
    def layout_marker(self) -> str:
        """What below ``folder`` tells that the data set is there in this layout."""
        return self.marker or self.images

    @property
    def test_only(self) -> bool:
        """Whether it has no training images."""
        return self.train == 0


_RECORDS = (
    DataSet("imagenet", "imagenet", "images", "imagenet", 1000, 1_281_167, 0, 50_000),
    DataSet(
        "caltech101",
        "caltech-101",
        "101_ObjectCategories",
        "caltech101",
        100,
        4_128,
        1_649,
        2_465,
        (1_549, 916),
        "split_zhou_Caltech101.json",
    ),
    DataSet(
        "oxford_pets",
        "oxford_pets",
        "images",
        "oxford_pets",
        37,
        2_944,
        736,
        3_669,
        (1_881, 1_788),
        "split_zhou_OxfordPets.json",
        "a photo of a {}, a type of pet.",
    ),
    DataSet(
        "stanford_cars",
        "stanford_cars",
        "",
        "stanford_cars",
        196,
        6_509,
        1_635,
        8_041,
        (4_002, 4_039),
        "split_zhou_StanfordCars.json",
        marker="cars_train",
    ),
    DataSet(
        "oxford_flowers",
        "oxford_flowers",
        "jpg",
        "oxford_flowers",
        102,
        4_093,
        1_633,
        2_463,
        (1_053, 1_410),
        "split_zhou_OxfordFlowers.json",
        "a photo of a {}, a type of flower.",
    ),
    DataSet(
        "food101",
        "food-101",
        "images",
        "class_folders",
        101,
        50_500,
        20_200,
        30_300,
        None,
        "split_zhou_Food101.json",
        "a photo of {}, a type of food.",
    ),
    DataSet(
        "fgvc_aircraft",
        "fgvc_aircraft",
        "images",
        "fgvc_aircraft",
        100,
        3_334,
        3_333,
        3_333,
        template="a photo of a {}, a type of aircraft.",
    ),
    DataSet("sun397", "sun397", "SUN397", "sun397", 397, 15_880, 3_970, 19_850, split_file="split_zhou_SUN397.json"),
    DataSet(
        "dtd",
        "dtd",
        "images",
        "class_folders",
        47,
        2_820,
        1_128,
        1_692,
        (864, 828),
        "split_zhou_DescribableTextures.json",
        "{} texture.",
    ),
    DataSet(
        "eurosat",
        "eurosat",
        "2750",
        "eurosat",
        10,
        13_500,
        5_400,
        8_100,
        (4_200, 3_900),
        "split_zhou_EuroSAT.json",
        "a centered satellite photo of {}.",
    ),
    DataSet(
        "ucf101",
        "ucf101",
        "UCF-101-midframes",
        "ucf101",
        101,
        7_639,
        1_898,
        3_783,
        (1_934, 1_849),
        "split_zhou_UCF101.json",
        "a photo of a person doing {}.",
    ),
    DataSet("imagenetv2", "imagenetv2", "imagenetv2-matched-frequency-format-val", "imagenetv2", 1000, 0, 0, 10_000),
    DataSet("imagenet_sketch", "imagenet-sketch", "images", "imagenet_variant", 1000, 0, 0, 50_889),
    DataSet("imagenet_a", "imagenet-adversarial", "imagenet-a", "imagenet_variant", 200, 0, 0, 7_500),
    DataSet("imagenet_r", "imagenet-rendition", "imagenet-r", "imagenet_variant", 200, 0, 0, 30_000),
)

CATALOG: dict[str, DataSet] = {record.name: record for record in _RECORDS}
# Eleven to train on, in the order of the published tables, and four that ImageNet's adapters are tested on.
FIELD = tuple(record.name for record in _RECORDS if not record.test_only)
VARIANTS = tuple(record.name for record in _RECORDS if record.test_only)


def record_of(data: str) -> DataSet | None:
    """The record that ``data`` or the last part of its path is the name or the folder of; None for any other data."""
    name = Path(data).name
    return CATALOG.get(name) or next((record for record in _RECORDS if record.folder == name), None)


def zeroshot_template(data: str) -> str:
    """Zero-shot CLIP's prompt for the data set called ``data``, by its name or its folder; the plain one for others."""
    record = record_of(data)
    return PHOTO if record is None else record.template
