"""ProGrad (Zhu et al., ICCV 2023): CoOp without the part of the gradient that leads away from zero-shot CLIP."""

from rmadapter.methods.method import FIELD_RECIPE, NO_ADAPTERS, NO_CONSISTENCY, FewShotOptions, Method

PROGRAD = Method(
    "prograd",
    "learned words, their gradient projected",
    (*NO_ADAPTERS, *NO_CONSISTENCY, "--loss.target=published"),
    groups=("prompt",),
    recipe=(
        *FIELD_RECIPE,
        "--prompt.text_tokens=4",
        "--lr=0.002",
        "--epochs=100",
        "--batch_size=32",
        "--loss.projected=1",
    ),
    few_shot=(FewShotOptions(("--loss.projected=0.8",), shots=8, data=("oxford_flowers", "dtd", "eurosat")),),
    testbed=("--lr=0.05", "--epochs=20"),
)
