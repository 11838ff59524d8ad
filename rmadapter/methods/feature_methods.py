"""What is trained after frozen towers: CLIP-Adapter (Gao et al., IJCV 2024) and TaskRes (Yu et al., CVPR 2023).

CLIP-Adapter has 131,072 trained parameters on ViT-B/16; TaskRes 512 a class.
"""

from rmadapter.methods.coop import EPOCHS_BY_SHOTS
from rmadapter.methods.method import FIELD_RECIPE, IMAGENET, NO_ADAPTERS, NO_CONSISTENCY, FewShotOptions, Method

CLIP_ADAPTER = Method(
    "clip-adapter",
    "a two-layer adapter after the image tower",
    (*NO_ADAPTERS, *NO_CONSISTENCY),
    groups=("head",),
    recipe=(
        *FIELD_RECIPE,
        "--template=published",
        "--head.image_ratio=0.2",
        "--lr=0.002",
        "--epochs=200",
        "--batch_size=32",
    ),
    overrides={IMAGENET: ("--epochs=50",)},
    few_shot=EPOCHS_BY_SHOTS,  # it is trained by CoOp's command
    testbed=("--lr=0.02", "--epochs=20"),
)

TASKRES = Method(
    "taskres",
    "a vector for each class, added to its text features",
    (*NO_ADAPTERS, *NO_CONSISTENCY),
    groups=("head",),
    recipe=(
        "--template=published",
        "--head.offset=0.5",
        "--optimizer=adam",
        "--weight_decay=5e-4",
        "--warmup_epochs=1",
        "--drop_last",
        "--lr=0.002",
        "--epochs=200",
        "--batch_size=256",
    ),
    overrides={IMAGENET: ("--lr=0.0002", "--head.class_prompts=eight"), "oxford_flowers": ("--head.offset=1",)},
    few_shot=(FewShotOptions(("--epochs=100",)), FewShotOptions(("--epochs=200",), shots=8)),
    testbed=("--lr=0.02", "--epochs=20", "--batch_size=32"),
    open_vocabulary=False,
)
