"""ProGrad (Zhu et al., ICCV 2023): CoOp without the part of the gradient that leads away from zero-shot CLIP."""

from rmadapter.methods.coop import EPOCHS_BY_SHOTS
from rmadapter.methods.method import FIELD_RECIPE, IMAGENET, NO_ADAPTERS, NO_CONSISTENCY, FewShotOptions, Method

# Of zero-shot CLIP and of the words that it begins as; for other data sets they are CLIP's own.
_PROMPTS = {
    "oxford_pets": "a type of pet, a photo of a {}.",
    "oxford_flowers": "a type of flower, a photo of a {}.",
    "fgvc_aircraft": "a type of aircraft, a photo of a {}.",
    "dtd": "a texture of {}.",
    "food101": "a type of food, a photo of {}.",
}

PROGRAD = Method(
    "prograd",
    "learned words, their gradient projected",
    (*NO_ADAPTERS, *NO_CONSISTENCY, "--loss.target=published"),
    groups=("prompt",),
    recipe=(
        *FIELD_RECIPE,
        "--template=published",
        "--prompt.text_tokens=16",
        "--prompt.init=padded",
        "--lr=0.002",
        "--epochs=100",
        "--batch_size=32",
        "--loss.projected=1",
    ),
    overrides={
        **{data: (f"--template={prompt}", f"--loss.published={prompt}") for data, prompt in _PROMPTS.items()},
        IMAGENET: ("--epochs=50",),
    },
    few_shot=(
        *EPOCHS_BY_SHOTS,  # its command's, which is CoOp's
        FewShotOptions(("--loss.projected=0.8",), shots=8, data=("oxford_flowers", "dtd", "eurosat")),
    ),
    testbed=("--lr=50", "--epochs=20"),
)
