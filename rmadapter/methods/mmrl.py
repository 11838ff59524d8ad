"""MMRL (Guo and Gu, CVPR 2025): tokens of a space that both towers share, in their upper blocks.

4,992,256 trained parameters on ViT-B/16, as published.
"""

from rmadapter.methods.method import IMAGENET, NO_ADAPTERS, TRANSFER, FewShotOptions, Method


def _regularised(weight: float) -> tuple[str, str]:
    return f"--loss.lambda3={weight}", f"--loss.lambda4={weight}"


MMRL = Method(
    "mmrl",
    "tokens of a space that both towers share, in their upper blocks; two inferences",
    (*NO_ADAPTERS, "--loss.distance=cosine"),
    groups=("space",),
    recipe=(
        "--template=published",
        "--space.tokens=5",
        "--optimizer=adamw",
        "--weight_decay=5e-4",
        "--warmup_epochs=1",
        "--drop_last",
        "--lr=0.001",
        "--epochs=10",
        "--batch_size=4",
        "--min_crop=0.5",
        *_regularised(1),
    ),
    overrides={
        IMAGENET: ("--batch_size=32", "--epochs=5", *_regularised(0.5)),
        TRANSFER: ("--epochs=1", "--warmup_epochs=0", *_regularised(0.2)),
        "caltech101": _regularised(0.5),
        "oxford_pets": _regularised(0.2),
        "stanford_cars": _regularised(7),
        "oxford_flowers": _regularised(4),
        "food101": _regularised(5),
        "fgvc_aircraft": _regularised(6),
        "sun397": _regularised(6),
        "dtd": _regularised(6),
        "eurosat": ("--space.width=2048", *_regularised(0.01)),
        "ucf101": _regularised(3),
    },
    few_shot=(
        FewShotOptions(("--batch_size=32", "--epochs=50")),
        FewShotOptions(("--epochs=5",), data=(IMAGENET,)),
    ),
    testbed=("--lr=0.009", "--epochs=5", "--batch_size=16", "--space.layers=last:3", *_regularised(1)),
)
