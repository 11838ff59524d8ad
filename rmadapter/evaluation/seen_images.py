"""Images that an adapter was trained on among those that it is tested on, as after the split was made anew."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rmadapter.data import FewShotSample, ImageData, base_new_split
from rmadapter.data.sampling import SAMPLE_FILE
from rmadapter.errors import InputError


def seen_images(
    adapter: str | None, training: Mapping[str, Any], data: ImageData, parts: Sequence[str], split: str
) -> dict[str, Any]:
    """What results.json says of images in the ``parts`` of ``split`` that were trained on, as training would have.

    A warning says it too. The adapter's run has its sample beside it; of an adapter that was taken out of its run
    nothing is known. Images are the same by their paths in a data set of the same name, since those that were trained
    on may be elsewhere now. Who tests on the training images has asked for them.

    Args:
        adapter: its folder.
        training: what its file says of the training; empty where the base model alone is tested.
    """
    known = (training.get("data"), training.get("style")) == (data.name, data.style)
    if adapter is None or not known or split == "train":
        return {}
    try:
        sample = FewShotSample.load(Path(adapter).resolve().parent / SAMPLE_FILE)
    except InputError:
        return {}

    def paths(items: Sequence[Any], part: str) -> set[str]:
        return {item.path for item in base_new_split(items, part, len(data.class_names))}

    tested = set().union(*(paths(getattr(data, split), part) for part in parts))
    seen = sorted(tested & paths(sample.train, training.get("classes") or "all"))
    if not seen:
        return {}
    warnings.warn(
        f"{len(seen)} of {len(tested)} {split} images of {data.name} are called as images that the adapter was trained "
        f"on, such as {seen[0]}: with another split than that of the training its accuracy is in part that on images "
        "it has seen",
        stacklevel=3,
    )
    return {"data_findings": {"test_images_seen": len(seen)}}
