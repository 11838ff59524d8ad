"""What may be trained in a model beside adapters, as configurations of small models."""

from __future__ import annotations

from dataclasses import replace

import torch
from conftest import small_clip
from step_cases import NAMES

from rmadapter import LossConfig, RMAdapterCLIP, RMAdapterConfig
from rmadapter.config import HeadConfig, LoraConfig, PromptConfig, SpaceConfig, TowerOverrides, TunerConfig
from rmadapter.tuners.injection import inject

CROSS_ENTROPY = LossConfig(0, 0, 0, 0)
KEPT = LossConfig(0, 0, 10, 25)
ADAPTERS = RMAdapterConfig(layers="2-3", bottleneck=8, scale=0.5)
# As others might have written them: three for each class, of unlike lengths.
SENTENCES = {
    name: [f"{name} that sleeps.", f"an animal called {name}, seen from {'afar' * len(name)}", f"{name}"]
    for name in NAMES
}

CASES: dict[str, tuple[dict, LossConfig]] = {
    "random context": ({"prompt": PromptConfig(4, "random")}, CROSS_ENTROPY),
    "words": ({"prompt": PromptConfig(4)}, CROSS_ENTROPY),
    "first two words": ({"prompt": PromptConfig(2)}, KEPT),
    "class specific": ({"prompt": PromptConfig(4, "random", class_specific=True)}, CROSS_ENTROPY),
    "class specific words": ({"prompt": PromptConfig(4, class_specific=True)}, KEPT),
    "middle": ({"prompt": PromptConfig(4, "random", place="middle")}, CROSS_ENTROPY),
    "odd middle": ({"prompt": PromptConfig(3, "random", place="middle")}, CROSS_ENTROPY),
    "front": ({"prompt": PromptConfig(4, "random", place="front")}, CROSS_ENTROPY),
    "class specific front": (
        {"prompt": PromptConfig(4, "random", place="front", class_specific=True)},
        CROSS_ENTROPY,
    ),
    "cosine": ({"prompt": PromptConfig(4)}, LossConfig(0, 0, 0, 8, distance="cosine")),
    "per image": ({"prompt": PromptConfig(4, per_image=True, reduction=4)}, CROSS_ENTROPY),
    "image tokens": ({"prompt": PromptConfig(vision_tokens=3)}, CROSS_ENTROPY),
    "deep image tokens": ({"prompt": PromptConfig(vision_tokens=3, vision_depth=3)}, LossConfig(0, 0, 1, 0)),
    "both towers": (
        {"prompt": PromptConfig(4, text_depth=3, vision_tokens=2, vision_depth=2)},
        LossConfig(0, 0, 10, 25, distillation=1),
    ),
    "coupled": ({"prompt": PromptConfig(2, text_depth=2, vision_tokens=2, vision_depth=2, coupled=True)}, KEPT),
    "padded words": ({"prompt": PromptConfig(7, "padded")}, KEPT),
    "low rank": ({"lora": LoraConfig(2)}, CROSS_ENTROPY),
    "low rank, some": (
        {"lora": LoraConfig(3, "q,out", vision_layers="2-3", text_layers="3")},
        LossConfig(0, 0, 1, 1),
    ),
    "space": ({"space": SpaceConfig(2, 16, "2-3")}, LossConfig(0, 0, 3, 3, distance="cosine")),
    "space from the first block": ({"space": SpaceConfig(3, 16, "1,3", class_share=0.4)}, KEPT),
    "space in the last block": ({"space": SpaceConfig(2, 16, "3")}, CROSS_ENTROPY),
    "space and adapters": (
        {"space": SpaceConfig(2, 16, "2-3"), "adapter": replace(ADAPTERS, layers="1-3", reconstruct=False)},
        LossConfig(0, 0, 1, 1),
    ),
    "image adapter": ({"head": HeadConfig(image_ratio=0.2)}, CROSS_ENTROPY),
    "feature adapters": (
        {"head": HeadConfig(image_ratio=0.4, text_ratio=0.6)},
        LossConfig(0, 0, 2, 3, distance="cosine"),
    ),
    "offsets": ({"head": HeadConfig(offset=0.5)}, CROSS_ENTROPY),
    "cache": ({"head": HeadConfig(cache="trained", cache_weight=2.0)}, CROSS_ENTROPY),
    "cache and class features": (
        {"head": HeadConfig(class_prompts="seven", cache="trained", text_ratio=0.3)},
        CROSS_ENTROPY,
    ),
    "tokens and feature adapters": (
        {
            "prompt": PromptConfig(2, text_depth=3, vision_tokens=2, vision_depth=3, coupled=True),
            "head": HeadConfig(image_ratio=0.1, text_ratio=0.2),
        },
        LossConfig(0, 0, 1, 1, distance="cosine"),
    ),
    "another view and sentences": (
        {
            "prompt": PromptConfig(2, text_depth=3, vision_tokens=2, vision_depth=3, coupled=True),
            "head": HeadConfig(image_ratio=0.1, text_ratio=0.2),
        },
        LossConfig(0, 0, 2, 3, distance="cosine", target="sentences", second_view=True),
    ),
    "another view of an untouched tower": (
        {"head": HeadConfig(text_ratio=0.2)},
        LossConfig(0, 0, 2, 3, distillation=1, second_view=True),
    ),
    "adapters, another view and sentences": (
        {"adapter": ADAPTERS},
        LossConfig(2, 3, 4, 5, target="sentences", second_view=True, distillation=1),
    ),
    "adapters in the frozen stream and another view": (
        {"adapter": replace(ADAPTERS, rec_stream="frozen")},
        LossConfig(2, 3, 4, 5, target="sentences", second_view=True),
    ),
    "adapters and tokens": (
        {"adapter": ADAPTERS, "prompt": PromptConfig(4, text_depth=2, vision_tokens=2)},
        LossConfig(2, 3, 4, 5),
    ),
    "adapters in the frozen stream, and tokens": (
        {"adapter": replace(ADAPTERS, rec_stream="frozen"), "prompt": PromptConfig(4, text_depth=2, vision_tokens=2)},
        LossConfig(2, 3, 4, 5),
    ),
    "adapters in the frozen stream on patches, and tokens": (
        {
            "adapter": replace(ADAPTERS, rec_stream="frozen", rec_tokens="patches"),
            "prompt": PromptConfig(vision_tokens=2, vision_depth=2),
        },
        LossConfig(2, 3, 0, 0),
    ),
    "text adapters alone in the frozen stream": (
        {
            "adapter": replace(ADAPTERS, rec_stream="frozen", vision=TowerOverrides(layers="none")),
            "lora": LoraConfig(2),
        },
        LossConfig(2, 3, 4, 5),
    ),
    "per image, beside image adapters in the frozen stream": (
        {
            "adapter": replace(ADAPTERS, rec_stream="frozen", text=TowerOverrides(layers="none")),
            "prompt": PromptConfig(4, per_image=True, reduction=4),
        },
        LossConfig(2, 0, 4, 0),
    ),
    "adapters and low rank": ({"adapter": ADAPTERS, "lora": LoraConfig(2)}, LossConfig(2, 3, 4, 5)),
    "adapters and an image adapter": (
        {"adapter": ADAPTERS, "head": HeadConfig(image_ratio=0.5)},
        LossConfig(2, 3, 4, 5),
    ),
}


def make_tuned(
    tokenizer,
    case: str,
    *,
    trim: bool = True,
    towers: dict | None = None,
    names: list[str] = NAMES,
    **changes,
) -> RMAdapterCLIP:
    """The model of a case in training mode, its weights moved away from where they vanish."""
    parts, loss = CASES[case]
    config = TunerConfig(**{"adapter": RMAdapterConfig(layers="none"), **parts})
    settings = {"tokenizer": tokenizer, "template": "a photo of a {}.", "class_names": names}
    adapted = inject(small_clip(**(towers or {})), config, seed=1, cached_images=7, **settings)
    move(adapted)
    if loss.target == "sentences":
        changes["sentences"] = SENTENCES
    model = RMAdapterCLIP(adapted, tokenizer, names, loss=loss, trim=trim, keep_targets=trim, **changes)
    return model.train()


def move(adapted) -> None:
    """What begins at zero, or as the frozen model has it, is moved, so that everything has an effect and a gradient."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in adapted.adapter_tensors().items():
            if name == "cache.labels":
                tensor.copy_(torch.arange(len(tensor)) % len(NAMES))
            elif name.rpartition(".")[2] in ("b", "offsets", "keys") or name == "head.text":
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
            elif name == "space.tokens":
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
            elif name.endswith("tokens"):
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.02)
