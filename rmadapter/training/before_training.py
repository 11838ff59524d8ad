"""What the test after training needs, looked at before training."""

from __future__ import annotations

from collections.abc import Sequence

from rmadapter.clip.backbone import Backbone
from rmadapter.clip.prompts import make_prompts
from rmadapter.data import ImageData, base_new_split, part_names
from rmadapter.errors import InputError


def check_test_images(data: ImageData, parts: Sequence[str]) -> None:
    """Raise InputError where one of ``parts`` has no test image, or fewer than two classes."""
    classes = len(data.class_names)
    for part in parts:
        part_names(data.class_names, part)
        tests = [data.test] if data.retention is None else [data.test, data.retention.test]
        if not all(base_new_split(items, part, classes) for items in tests):
            which = "" if part == "all" else f" of the {part} classes"
            raise InputError(
                f"data {data.name} has no test images{which}, so that what is trained could not be tested; valid: "
                "more images a class, or --no-evaluate"
            )


def check_test_prompts(backbone: Backbone, data: ImageData, parts: Sequence[str], template: str) -> None:
    """Raise InputError where a class of one of ``parts`` has a name that is too long for the model's context."""
    for part in parts:
        make_prompts(backbone.clip, backbone.tokenizer, part_names(data.class_names, part), template, trim=False)
