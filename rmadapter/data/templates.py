"""Prompts whose features of the frozen model are compared with, and sets of them that are averaged over."""

from __future__ import annotations

from functools import cache

from rmadapter.config import PUBLISHED, LossConfig
from rmadapter.config.loss import SENTENCES
from rmadapter.data.catalog import PHOTO, template_for

# Those that OpenAI's notebook chooses for ImageNet.
SEVEN_TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
# And with the plain one: TaskRes's for ImageNet.
EIGHT_TEMPLATES = (*SEVEN_TEMPLATES, PHOTO)
# Of the 80 prompts of OpenAI's notebook, which open_clip brings, these 20 are not among PromptSRC's 60.
_NOT_AMONG_THE_60 = (
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "the plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "a photo of the large {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a black and white photo of a {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "itap of my {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "a tattoo of the {}.",
)


@cache
def sixty_templates() -> tuple[str, ...]:
    """The 60 prompts whose mean features PromptSRC keeps near, each with ``{}`` for the class name."""
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    every = (template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
    return tuple(text for text in every if text not in _NOT_AMONG_THE_60)


def target_templates(loss: LossConfig, data: str) -> tuple[str, ...]:
    """The prompts that ``loss.target`` names for the data set called ``data``; none for those of a run itself.

    Of sentences they are the published one, for where there are no sentences.
    """
    if loss.target in (PUBLISHED, SENTENCES):
        return (loss.published or template_for(PUBLISHED, data),)
    return sixty_templates() if loss.target == "templates" else ()
