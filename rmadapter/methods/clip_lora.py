"""CLIP-LoRA (Zanella and Ben Ayed, CVPRW 2024): low-rank updates of queries, keys and values in both towers.

184,320 trained parameters on ViT-B/16, as published.
"""

from rmadapter.methods.method import NO_ADAPTERS, NO_CONSISTENCY, Method

CLIP_LORA = Method(
    "clip-lora",
    "low-rank updates of attention in both towers",
    (*NO_ADAPTERS, *NO_CONSISTENCY),
    groups=("lora",),
    recipe=(
        "--lora.rank=2",
        "--lora.dropout=0.25",
        "--optimizer=adamw",
        "--lr=2e-4",
        "--weight_decay=0.01",
        "--decay=step",
        "--final_lr=1e-6",
        "--steps_per_shot=500",
        "--batch_size=32",
    ),
    testbed=("--lr=3e-3", "--steps_per_shot=0", "--epochs=5"),
)
