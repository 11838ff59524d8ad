"""CoCoOp (Zhou et al., CVPR 2022): learned words, and a small network that moves them by the image.

35,360 trained parameters on ViT-B/16, as published.
"""

from rmadapter.methods.method import FIELD_RECIPE, NO_ADAPTERS, NO_CONSISTENCY, Method

COCOOP = Method(
    "cocoop",
    "learned words that depend on the image",
    (*NO_ADAPTERS, *NO_CONSISTENCY, "--prompt.per_image"),
    groups=("prompt",),
    recipe=(*FIELD_RECIPE, "--prompt.text_tokens=4", "--lr=0.002", "--epochs=10", "--batch_size=1"),
    testbed=("--lr=100", "--epochs=5", "--batch_size=16"),
)
