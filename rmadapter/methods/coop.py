"""CoOp (Zhou et al., IJCV 2022) and KgCoOp (Yao et al., CVPR 2023): learned words in front of the class name.

2,048 trained parameters on ViT-B/16 with the four words of the base-to-new protocol; the 16 random ones of the few-shot
protocol are 8,192, or as many for each class. KgCoOp's other schedule is ``--decay_power 2``.
"""

from rmadapter.methods.method import FIELD_RECIPE, IMAGENET, NO_ADAPTERS, NO_CONSISTENCY, FewShotOptions, Method

_WORDS = (*FIELD_RECIPE, "--prompt.text_tokens=4", "--lr=0.002")
# On all classes longer the more images there are, on ImageNet 50 whatever their number.
EPOCHS_BY_SHOTS = (
    FewShotOptions(("--epochs=50",)),
    FewShotOptions(("--epochs=100",), shots=2),
    FewShotOptions(("--epochs=200",), shots=8),
    FewShotOptions(("--epochs=50",), data=(IMAGENET,)),
)

COOP = Method(
    "coop",
    "learned words in every class prompt",
    (*NO_ADAPTERS, *NO_CONSISTENCY),
    groups=("prompt",),
    recipe=(*_WORDS, "--epochs=200", "--batch_size=32"),
    overrides={IMAGENET: ("--epochs=50",)},
    few_shot=(FewShotOptions(("--prompt.text_tokens=16", "--prompt.init=random")), *EPOCHS_BY_SHOTS),
    testbed=("--lr=200", "--epochs=20"),
)

KGCOOP = Method(
    "kgcoop",
    "learned words whose features stay near the published prompt's",
    (*NO_ADAPTERS, "--loss.lambda3=0", "--loss.distance=cosine", "--loss.target=published"),
    groups=("prompt",),
    recipe=(*_WORDS, "--epochs=100", "--batch_size=128", "--loss.lambda4=8"),
    overrides={"dtd": ("--loss.published=a photo of a {}, a type of texture.",)},
    testbed=("--lr=2", "--epochs=20", "--batch_size=32", "--loss.lambda4=8"),
)
