"""Learned tokens in front of several blocks: VPT, IVLP, MaPLe (Khattak et al., CVPR 2023) and PromptSRC (ICCV 2023).

Trained parameters on ViT-B/16, as published: MaPLe 3,555,072, IVLP 30,720, PromptSRC 46,080.
"""

from rmadapter.methods.method import FIELD_RECIPE, NO_ADAPTERS, NO_CONSISTENCY, TRANSFER, FewShotOptions, Method

_TESTBED = ("--lr=0.003", "--epochs=5", "--batch_size=16", "--prompt.text_depth=3", "--prompt.vision_depth=3")
_BATCHES = (*FIELD_RECIPE, "--batch_size=4")
# PromptSRC's weights of image and text features.
_KEPT_NEAR = ("--loss.lambda3=10", "--loss.lambda4=25")
# Where its mean of all epochs' weights lies late in the few-shot protocol.
_LATE_MEAN = ("stanford_cars", "oxford_flowers", "fgvc_aircraft", "dtd", "eurosat")


def _depth(text: int, vision: int) -> tuple[str, str]:
    return f"--prompt.text_depth={text}", f"--prompt.vision_depth={vision}"


VPT = Method(
    "vpt",
    "learned tokens in the image tower",
    (*NO_ADAPTERS, *NO_CONSISTENCY),
    groups=("prompt",),
    recipe=(*_BATCHES, "--prompt.vision_tokens=8", "--prompt.vision_depth=12", "--lr=0.0025", "--epochs=5"),
    testbed=("--lr=0.3", *_TESTBED[1:3], "--prompt.vision_depth=3"),
)

IVLP = Method(
    "ivlp",
    "learned tokens in both towers, apart from each other",
    (*NO_ADAPTERS, *NO_CONSISTENCY),
    groups=("prompt",),
    recipe=(
        *_BATCHES,
        "--prompt.text_tokens=2",
        "--prompt.vision_tokens=2",
        *_depth(12, 12),
        "--lr=0.0035",
        "--epochs=5",
    ),
    testbed=(*_TESTBED, "--lr=0.001"),
)

MAPLE = Method(
    "maple",
    "learned tokens in both towers, the image tower's made of the text tower's",
    (*NO_ADAPTERS, *NO_CONSISTENCY, "--prompt.coupled"),
    groups=("prompt",),
    recipe=(
        *_BATCHES,
        "--prompt.text_tokens=2",
        "--prompt.vision_tokens=2",
        *_depth(9, 9),
        "--lr=0.0035",
        "--epochs=5",
    ),
    overrides={TRANSFER: (*_depth(3, 3), "--lr=0.0026", "--epochs=2")},
    # None in its code; these are what later code (SkipTuning's) has for it.
    few_shot=(FewShotOptions(("--epochs=50",)),),
    testbed=_TESTBED,
)

PROMPTSRC = Method(
    "promptsrc",
    "learned tokens in both towers, kept near the frozen model in three ways",
    (*NO_ADAPTERS, "--loss.distance=l1", "--loss.target=templates"),
    groups=("prompt",),
    recipe=(
        *_BATCHES,
        "--prompt.text_tokens=4",
        "--prompt.vision_tokens=4",
        *_depth(9, 9),
        "--lr=0.0025",
        "--epochs=20",
        "--average=15,1",
        *_KEPT_NEAR,
        "--loss.distillation=1",
    ),
    overrides={TRANSFER: (*_depth(3, 3), "--average=6,10")},
    few_shot=(
        FewShotOptions(("--epochs=50", "--average=30,30")),
        FewShotOptions(("--average=45,5",), data=_LATE_MEAN),
    ),
    testbed=(*_TESTBED, "--lr=0.01", "--average=4,1", *_KEPT_NEAR),
)
