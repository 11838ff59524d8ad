"""RMAdapter together with what its paper leaves open: learned tokens, and low-rank updates."""

from rmadapter.methods.method import Method
from rmadapter.methods.rmadapter import ON_IMAGENET

COMPOSITIONS = (
    Method(
        "rmadapter+prompts",
        "RMAdapter and four learned words",
        groups=("adapter", "prompt"),
        recipe=("--prompt.text_tokens=4",),
        overrides=ON_IMAGENET,
    ),
    Method(
        "rmadapter+lora",
        "RMAdapter and low-rank updates",
        groups=("adapter", "lora"),
        recipe=("--lora.rank=2",),
        overrides=ON_IMAGENET,
    ),
)
