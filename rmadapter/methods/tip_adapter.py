"""Tip-Adapter and Tip-Adapter-F (Zhang et al., ECCV 2022): a cache of the training images beside zero-shot CLIP.

Tip-Adapter trains nothing; Tip-Adapter-F trains the cache's keys, 512 numbers a training image on ViT-B/16.
"""

from rmadapter.methods.method import IMAGENET, NO_ADAPTERS, NO_CONSISTENCY, Method

# By data set: upper ends of the search for beta and alpha, and what alpha begins with; beta begins with 1 everywhere.
_PUBLISHED = {
    IMAGENET: (7, 3, 1.17),
    "oxford_pets": (7, 3, 1.17),
    "caltech101": (12, 5, 3),
    "dtd": (13, 13, 2),
    "eurosat": (12, 10, 2),
    "fgvc_aircraft": (30, 30, 5),
    "food101": (10, 10, 1.17),
    "oxford_flowers": (50, 50, 10),
    "stanford_cars": (20, 10, 3),
    "sun397": (12, 10, 1.17),
    "ucf101": (7, 3, 3),
}


def _strength(sharpness: float, weight: float, start: float) -> tuple[str, ...]:
    return f"--head.max_sharpness={sharpness}", f"--head.max_weight={weight}", f"--head.cache_weight={start}"


# Data sets of one's own have what SUN397 has.
_CACHE = ("--template=published", "--min_crop=0.5", "--batch_size=256", *_strength(*_PUBLISHED["sun397"]))
_OVERRIDES = {data: _strength(*values) for data, values in _PUBLISHED.items()}
_OVERRIDES[IMAGENET] = (*_OVERRIDES[IMAGENET], "--head.class_prompts=seven")

TIP_ADAPTER = Method(
    "tip-adapter",
    "a cache of the training images' features, not trained",
    (*NO_ADAPTERS, *NO_CONSISTENCY, "--head.cache=fixed"),
    groups=("head",),
    recipe=_CACHE,
    overrides=_OVERRIDES,
    testbed=("--head.cache_views=1",),
    open_vocabulary=False,
)

TIP_ADAPTER_F = Method(
    "tip-adapter-f",
    "the same cache, its keys trained",
    (*NO_ADAPTERS, *NO_CONSISTENCY, "--head.cache=trained"),
    groups=("head",),
    recipe=(
        *_CACHE,
        "--optimizer=adamw",
        "--adam_eps=1e-4",
        "--lr=0.001",
        "--weight_decay=0.01",
        "--decay=step",
        "--epochs=20",
        "--select=validation",
    ),
    overrides={**_OVERRIDES, "eurosat": (*_OVERRIDES["eurosat"], "--epochs=100")},
    testbed=("--head.cache_views=1", "--lr=0.003", "--epochs=20", "--batch_size=32"),
    open_vocabulary=False,
)
