"""Class prompts: written, tokenised, trimmed, encoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rmadapter.clip.towers import find_towers
from rmadapter.clip.types import ClipModel
from rmadapter.config import check_template
from rmadapter.config.prompt import PromptConfig
from rmadapter.errors import InputError

PLACEHOLDER = "X"  # a word of one token, which a learned token stands in the place of


@dataclass(frozen=True)
class Prompts:
    """Tokenised class prompts.

    Attributes:
        tokens: int64 [classes, length], end-of-text at the same place as untrimmed.
        valid: bool [classes, length], the tokens that features are made of: up to and with end-of-text, padding too
            where the tower attends to it, and behind them what the tower adds (``TowerKind.added``).
        slots: int64 [classes, learned], at which tokens learned ones stand; None where there are none.
    """

    tokens: Tensor
    valid: Tensor
    slots: Tensor | None = None

    def to(self, device: torch.device | str) -> Prompts:
        """The same on another device."""
        slots = None if self.slots is None else self.slots.to(device)
        return Prompts(self.tokens.to(device), self.valid.to(device), slots)

    def rows(self, rows: Tensor, length: int | None = None) -> Prompts:
        """Those of some classes, cut to ``length`` tokens."""
        slots = None if self.slots is None else self.slots[rows]
        return Prompts(self.tokens[rows, :length], self.valid[rows, :length], slots)

    @property
    def fixed(self) -> Tensor:
        """``tokens`` with -1 where learned ones stand."""
        return self.tokens if self.slots is None else self.tokens.scatter(1, self.slots, -1)


class PromptBuffers(nn.Module):
    """Prompts that go where a model goes: buffers of it, which are not saved."""

    tokens: Tensor
    valid: Tensor

    def __init__(self, prompts: Prompts):
        super().__init__()
        self.register_buffer("tokens", prompts.tokens, persistent=False)
        self.register_buffer("valid", prompts.valid, persistent=False)

    @property
    def prompts(self) -> Prompts:
        """The prompts where they are now."""
        return Prompts(self.tokens, self.valid)


def make_prompts(
    clip: ClipModel,
    tokenizer: Callable[..., Tensor],
    class_names: Sequence[str],
    template: str,
    *,
    trim: bool = True,
    learned: PromptConfig | None = None,
) -> Prompts:
    """Prompts of all classes, trimmed to the longest one where that leaves every feature as it is.

    Args:
        tokenizer: open_clip's, called as ``tokenizer(texts, context_length=n)``.
        template: text with one ``{}`` for the class name.
        trim: False keeps the model's full context.
        learned: the learned tokens that stand in them, if any. They count as the tokens that they replace: random
            ones as words of one token each in front of the name and a full stop, padded ones as such words in front
            of the template.

    Raises:
        InputError: a prompt longer than the model's context (open_clip would cut it off silently), fewer words in front
            of the name than learned tokens that stand in their place.
    """
    count = learned.text_tokens if learned is not None else 0
    begins = learned.init if learned is not None and count else None
    if begins == "random":
        template = " ".join([PLACEHOLDER] * count) + " {}."
    check_template(template)
    if begins == "padded":
        padding = count - len(words_of(clip, tokenizer, template, count))
        template = " ".join([*[PLACEHOLDER] * padding, template])
    elif begins == "words":
        _check_room(clip, tokenizer, template, count)
    texts = [template.format(name) for name in class_names]
    tower = find_towers(clip)["text"]
    context = context_of(clip, tokenizer)
    tokens = tokenizer(texts, context_length=context)
    # With room for one more the same tokens come out, unless one was cut off.
    fits = (tokenizer(texts, context_length=context + 1)[:, :context] == tokens).all(1)
    too_long = [text for text, whole in zip(texts, fits.tolist(), strict=True) if not whole]
    if too_long:
        more = f", and {len(too_long) - 1} more are" if len(too_long) > 1 else ""
        if count:
            more += f", with prompt.text_tokens {count} in it; valid: fewer of them, or shorter names"
        raise InputError(f"prompt {too_long[0]!r} is longer than the model's context of {context} tokens{more}")
    valid = tower.kind.counted(tower.root, tokens)
    if trim and tower.kind.trims(tower.root):
        tokens = tokens[:, : int(valid.any(0).nonzero().max()) + 1]
        valid = valid[:, : tokens.shape[1]]
    slots = None
    if learned is not None and count:
        check_start(tokenizer)
        slots = torch.arange(1, 1 + count).repeat(len(tokens), 1)  # as a buffer it is written to between processes
        if learned.place != "end":
            order, slots = _placed(learned, tokens, _name_lengths(clip, tokenizer, class_names))
            tokens = tokens.gather(1, order)
    return Prompts(tokens.contiguous(), valid.contiguous(), slots)


def context_of(clip: ClipModel, tokenizer: Callable[..., Tensor]) -> int:
    """Tokens of a prompt: what the text tower has positions for, and no more than the tokenizer is set to."""
    tower = find_towers(clip)["text"]
    known = (tower.kind.size(tower.root), getattr(tokenizer, "context_length", None))
    return min(size for size in known if size)


def check_start(tokenizer: Callable[..., Tensor]) -> None:
    """Raise InputError unless every prompt begins with the same token, which learned tokens stand behind."""
    first = tokenizer(["a", "b"], context_length=8)[:, 0]
    if first[0] != first[1]:
        raise InputError(
            "prompt.text_tokens stand behind a start-of-text token, which this model's prompts do not have; valid: 0"
        )


def _name_lengths(clip: ClipModel, tokenizer: Callable[..., Tensor], class_names: Sequence[str]) -> Tensor:
    """Tokens of each class name: int64 [classes]."""
    tokens = tokenizer(list(class_names), context_length=context_of(clip, tokenizer))
    return end_of_text(clip, tokens) - 1  # without start-of-text


def _placed(learned: PromptConfig, tokens: Tensor, names: Tensor) -> tuple[Tensor, Tensor]:
    """Order of the tokens of each row, and places of the learned ones, where the name is in the middle or in front.

    As tokenised, the learned tokens come first, then the ``names`` [classes] tokens of the name, then the rest.
    """
    count = learned.text_tokens
    before = count // 2 if learned.place == "middle" else 0
    order = torch.arange(tokens.shape[1]).repeat(len(tokens), 1)
    slots = torch.empty(len(tokens), count, dtype=torch.int64)
    for row, name in enumerate(names.tolist()):
        first = 1 + count
        moved = [*range(1, 1 + before), *range(first, first + name), *range(1 + before, first)]
        order[row, 1 : 1 + len(moved)] = torch.tensor(moved)
        slots[row] = torch.tensor([*range(1, 1 + before), *range(1 + before + name, first + name)])
    return order, slots


def first_words(clip: ClipModel, tokenizer: Callable[..., Tensor], template: str, count: int) -> Tensor:
    """The first ``count`` tokens of ``template``, whole words in front of the class name: int64 [count].

    Raises:
        InputError: fewer tokens there, or the last one would be a part of a word.
    """
    words = template.partition("{}")[0].split()
    starts = [" ".join(words[: number + 1]) for number in range(len(words))]
    context = context_of(clip, tokenizer)
    tokens = tokenizer(starts, context_length=context) if starts else torch.empty(0, 1)
    ends = (end_of_text(clip, tokens) - 1).tolist()  # without start-of-text
    whole = not ends or ends[-1] == len(words)
    if count not in ends or (count == len(words) and not whole):
        listed = ", ".join(f"{end} ({start!r})" for start, end in zip(starts, ends, strict=True))
        raise InputError(
            f"prompt.text_tokens is {count}, but the words in front of the class name in template {template!r} end at "
            f"token {listed or '(none)'}; valid: one of these"
            + ("" if whole else f" but {len(words)}, since these {len(words)} words are {ends[-1]} tokens")
            + ", or prompt.init random"
        )
    return tokens[-1, 1 : 1 + count]


def words_of(clip: ClipModel, tokenizer: Callable[..., Tensor], template: str, count: int) -> Tensor:
    """The tokens of all words in front of the class name of ``template``, at most ``count``: int64 [tokens].

    Raises:
        InputError: there are more.
    """
    found = _in_front(clip, tokenizer, template)
    if len(found) > count:
        raise InputError(
            f"prompt.text_tokens is {count}, but the words in front of the class name in template {template!r} are "
            f"{len(found)} tokens; valid with prompt.init padded: {len(found)} or more"
        )
    return found


def _in_front(clip: ClipModel, tokenizer: Callable[..., Tensor], template: str) -> Tensor:
    """The tokens of all words in front of the class name of ``template``: int64 [tokens]."""
    words = template.partition("{}")[0].split()
    tokens = tokenizer([" ".join(words)], context_length=context_of(clip, tokenizer))
    return tokens[0, 1 : int(end_of_text(clip, tokens))]


def _check_room(clip: ClipModel, tokenizer: Callable[..., Tensor], template: str, count: int) -> None:
    """Raise InputError where ``count`` learned tokens would take the place of the class name too, and so hide it."""
    found = len(_in_front(clip, tokenizer, template))
    if found < count:
        raise InputError(
            f"template is {template!r}, whose words in front of the class name are {found} tokens, but "
            f"prompt.text_tokens {count} stand in their place; valid: {count} tokens or more there"
        )


def end_of_text(clip: ClipModel, tokens: Tensor) -> Tensor:
    """Place of the end-of-text token in each row of ``tokens`` [classes, length]; int64 [classes].

    Where features are not those of end-of-text it is the largest id, as CLIP's own tokenizer has it.
    """
    tower = find_towers(clip)["text"]
    place = tower.place(tokens)
    return place if isinstance(place, Tensor) else tokens.argmax(-1)


def encode_prompts(clip: ClipModel, tokens: Tensor) -> Tensor:
    """Text features [classes, embed], not normalised, of trimmed tokens [classes, length], by the model's own pass."""
    return find_towers(clip)["text"].kind.encode(clip, tokens)
