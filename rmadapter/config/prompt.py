"""Learned tokens as options: the group ``prompt`` of ``TrainConfig``."""

from __future__ import annotations

from dataclasses import dataclass

from rmadapter.errors import InputError, check_choice, check_range

PLACES = ("end", "middle", "front")
INITS = ("words", "random", "padded")


@dataclass
class PromptConfig:
    """Learned tokens in the towers: in the place of a prompt's first words, and beside the patches of an image.

    Args:
        text_tokens: learned tokens of every class prompt, after start-of-text; 0: none
        init: what they begin as: words (those of the template, whose other words stay), random (N(0, 0.02), in the
            place of the template's words) or padded (zeros, and the template's words behind them, as ProGrad has it)
        class_specific: each class has learned tokens of its own, and no other classes can be told
        place: where the class name stands: at the end, in the middle of the learned tokens, or in front of them
        per_image: a small network adds to the learned tokens what it makes of the image (CoCoOp)
        reduction: the embedding's width over that of this network's hidden layer
        text_depth: blocks of the text tower that begin with learned tokens of their own, the first one counted
        vision_tokens: learned tokens beside the patches; 0: none
        vision_depth: the same of the image tower
        coupled: the image tower's learned tokens are linear maps of the text tower's (MaPLe)
    """

    text_tokens: int = 0
    init: str = "words"
    class_specific: bool = False
    place: str = "end"
    per_image: bool = False
    reduction: int = 16
    text_depth: int = 1
    vision_tokens: int = 0
    vision_depth: int = 1
    coupled: bool = False

    def __post_init__(self) -> None:
        check_choice("prompt.init", self.init, INITS)
        check_choice("prompt.place", self.place, PLACES)
        for name in ("text_tokens", "vision_tokens"):
            check_range(f"prompt.{name}", getattr(self, name), 0)
        for name in ("text_depth", "vision_depth", "reduction"):
            check_range(f"prompt.{name}", getattr(self, name), 1)
        needs_text = [name for name in ("class_specific", "per_image", "coupled") if getattr(self, name)]
        if not self.text_tokens and (needs_text or self.text_depth > 1):
            what = needs_text[0] if needs_text else "text_depth"
            raise InputError(
                f"prompt.{what} is {getattr(self, what)}, but prompt.text_tokens is 0; valid: 1 or more tokens"
            )
        if not self.vision_tokens and self.vision_depth > 1:
            raise InputError(
                f"prompt.vision_depth is {self.vision_depth}, but prompt.vision_tokens is 0; valid: 1 or more tokens"
            )
        if self.class_specific and (self.per_image or self.text_depth > 1):
            raise InputError("prompt.class_specific goes with tokens before the first block alone; valid: False")
        if self.class_specific and self.coupled:
            raise InputError(
                "prompt.class_specific and prompt.coupled are both True: an image has no class whose tokens could be "
                "mapped into its tower; valid: one of them"
            )
        if self.per_image and (self.text_depth > 1 or self.vision_tokens or self.place != "end"):
            raise InputError(
                "prompt.per_image reads the untouched image tower and changes the first learned tokens alone; valid: "
                "with text_depth 1, vision_tokens 0 and place end"
            )
        if self.place != "end" and self.text_depth > 1:
            raise InputError(f"prompt.place is {self.place!r} and text_depth {self.text_depth}; valid: end, or depth 1")
        if self.place != "end" and self.init != "random":
            raise InputError(
                f"prompt.place is {self.place!r}, which the words of prompt.init {self.init!r} are not; valid: end"
            )
        if self.coupled and (self.vision_tokens, self.vision_depth) != (self.text_tokens, self.text_depth):
            raise InputError(
                "prompt.coupled maps each token of the text tower into the image tower; valid: vision_tokens and "
                "vision_depth as text_tokens and text_depth"
            )

    @property
    def any(self) -> bool:
        """Whether there are learned tokens."""
        return self.text_tokens + self.vision_tokens > 0
