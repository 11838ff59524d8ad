"""Images from folders, public data sets and the bundled drawings: their splits, the few-shot sample, their transforms.

Nothing here knows a model, beyond what an image goes through on its way to one.
"""

from rmadapter.data.decoded import DecodedImages
from rmadapter.data.findings import SampleFindings, examine
from rmadapter.data.folders import load_data
from rmadapter.data.items import ImageData, Item
from rmadapter.data.loading import (
    EpochBatches,
    EvalImages,
    Read,
    TrainImages,
    check_images,
    collate_readable,
    readable_sample,
    steps_an_epoch,
)
from rmadapter.data.reading import read_image
from rmadapter.data.sampling import (
    FewShotSample,
    base_new_labels,
    base_new_names,
    base_new_split,
    few_shot_sample,
    part_names,
)
from rmadapter.data.transforms import Preprocessing, eval_transform, train_transform

__all__ = [
    "DecodedImages",
    "EpochBatches",
    "EvalImages",
    "FewShotSample",
    "ImageData",
    "Item",
    "Preprocessing",
    "Read",
    "SampleFindings",
    "TrainImages",
    "base_new_labels",
    "base_new_names",
    "base_new_split",
    "check_images",
    "collate_readable",
    "eval_transform",
    "examine",
    "few_shot_sample",
    "load_data",
    "part_names",
    "read_image",
    "readable_sample",
    "steps_an_epoch",
    "train_transform",
]
