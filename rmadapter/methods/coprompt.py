"""CoPrompt (Roy and Etemad, ICLR 2024): MaPLe's tokens and two feature adapters, kept near another view's features.

Trained parameters on ViT-B/16, as published: 5,014,528 with 4 tokens in 12 blocks, 5,002,240 with 2 in 12, 3,826,432
with 4 in 9. Blocks, tokens and the weight of the consistency are those of the original's table of data sets; for others
they are those of its configuration file.
"""

from rmadapter.methods.method import FIELD_RECIPE, NO_ADAPTERS, Method


def _sizes(blocks: int, tokens: int, weight: float, *others: str) -> tuple[str, ...]:
    return (
        f"--prompt.text_depth={blocks}",
        f"--prompt.vision_depth={blocks}",
        f"--prompt.text_tokens={tokens}",
        f"--prompt.vision_tokens={tokens}",
        f"--loss.lambda3={weight}",
        f"--loss.lambda4={weight}",
        *others,
    )


COPROMPT = Method(
    "coprompt",
    "MaPLe with feature adapters, kept near a second view's features and other sentences'",
    (*NO_ADAPTERS, "--prompt.coupled", "--loss.distance=cosine", "--loss.target=sentences", "--loss.second_view"),
    groups=("prompt", "head"),
    recipe=(
        *FIELD_RECIPE,
        *_sizes(9, 2, 1),
        "--head.image_ratio=0.1",
        "--head.text_ratio=0.2",
        "--augmentation=randaugment",
        "--batch_size=4",
        "--lr=0.0035",
        "--epochs=8",
    ),
    overrides={
        "imagenet": _sizes(12, 4, 8),
        "caltech101": _sizes(12, 4, 4),
        "oxford_pets": _sizes(12, 2, 0.1),
        "stanford_cars": _sizes(12, 4, 4),
        "oxford_flowers": _sizes(9, 4, 8),
        "food101": _sizes(9, 4, 0.5, "--epochs=5"),
        "fgvc_aircraft": _sizes(9, 4, 2),
        "sun397": _sizes(12, 4, 8),
        "dtd": _sizes(12, 2, 8),
        "eurosat": _sizes(12, 2, 0.1),
        "ucf101": _sizes(12, 4, 2),
    },
    testbed=(*_sizes(3, 2, 1), "--augmentation=randaugment", "--lr=0.0001", "--epochs=5", "--batch_size=16"),
)
