"""The few-shot sample of a training run, of images that can be read."""

from __future__ import annotations

from typing import NamedTuple

from rmadapter.config import TrainConfig
from rmadapter.config.sizes import shown_bytes
from rmadapter.data import (
    DecodedImages,
    FewShotSample,
    ImageData,
    Item,
    Read,
    SampleFindings,
    base_new_labels,
    base_new_split,
    examine,
    part_names,
    readable_sample,
)
from rmadapter.errors import check_range


class FewShot(NamedTuple):
    """The sample over all classes; of the part that is trained on, items and class names; and what is odd about it."""

    sample: FewShotSample
    items: list[Item]
    names: list[str]
    findings: SampleFindings


def few_shot(config: TrainConfig, data: ImageData, read: Read) -> FewShot:
    """Draw the sample that ``config`` asks for; says what was left out and what is odd about it.

    Raises:
        InputError: a part of fewer than two classes, more shots than the data set may have, no training images, one
            that cannot be read (without ``skip_bad_images``) or is a test image too (without ``allow_test_overlap``).
    """
    names = part_names(data.class_names, config.classes)
    if data.max_shots is not None:
        check_range("shots", config.shots, 1, data.max_shots)
    train_items, val_items, left_out = readable_sample(
        read, data, config.shots, config.seed, skip_bad=config.skip_bad_images
    )
    if isinstance(read, DecodedImages) and read.keeps:
        print(
            f"image cache: {read.kept} of {len(train_items)} images in {read.folder}, {shown_bytes(read.bytes)}"
            + (f"; --cache-limit {config.cache_limit} has no room for the others" if read.full else "")
        )
    items = base_new_split(train_items, config.classes, len(data.class_names))
    class_names = {label: data.class_names[label] for label in base_new_labels(len(data.class_names), config.classes)}
    findings, sentences = examine(
        data,
        [item for item in train_items if item.label in class_names],
        config.shots,
        class_names=class_names,
        unreadable=left_out,
        allow_test_overlap=config.allow_test_overlap,
    )
    for sentence in sentences:
        print(sentence)
    sample = FewShotSample(train_items, val_items, config.shots, config.seed, data.name)
    return FewShot(sample, items, names, findings)
