"""Learned tokens: CoOp's context, deep prompts in both towers, MaPLe's coupling, CoCoOp's network of the image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rmadapter.clip.tower_kind import Tower
from rmadapter.clip.towers import find_towers, pooled_token, towers_embed
from rmadapter.clip.types import ClipModel
from rmadapter.config import TOWERS
from rmadapter.config.prompt import PromptConfig
from rmadapter.errors import InputError, check_range
from rmadapter.tuners.sites import ALL, APPEND, CLASS, IMAGE, REPLACE, Sites, TokenEdit
from rmadapter.tuners.tuner import Tuner, Values

DEVIATION = 0.02  # of random tokens, as CoOp draws them


class PromptTokens(Tuner):
    """The learned tokens that ``config`` asks for.

    Before the first block the text tower's stand in the place of words, behind start-of-text; each deeper block's take
    the place of those before them, whose outputs are dropped. The image tower's stand behind the last patch.

    Args:
        clip: the model whose towers they enter.
        config: how many, where, and how they hang together.
        words: embeddings [text_tokens, D] of the words that they begin as; None: they are random, or read from a file.
        class_names: of tokens that each class has of its own.

    Raises:
        InputError: more blocks than a tower has; image tokens in a tower that is not pooled at its first token; text
            tokens in a tower that lets words see later ones, or whose features are not those of a token; a network
            without a hidden layer.
    """

    # Between a token and none, or another word, there is no scale.
    without_strength = "learned tokens (prompt.*)"

    def __init__(
        self,
        clip: ClipModel,
        config: PromptConfig,
        *,
        words: Tensor | None = None,
        class_names: list[str] | None = None,
    ):
        super().__init__()
        self.config = config
        self.depth = {"text": config.text_depth, "vision": config.vision_depth}
        self.count = {"text": config.text_tokens, "vision": config.vision_tokens}
        towers = find_towers(clip)
        for name in TOWERS:
            if self.count[name] and self.depth[name] > towers[name].depth:
                raise InputError(
                    f"prompt.{name}_depth is {self.depth[name]}, but the {name} tower has {towers[name].depth} blocks; "
                    f"valid: 1 to {towers[name].depth}"
                )
        if self.count["vision"]:
            check_image_tokens("prompt.vision_tokens", clip)
        if self.count["text"]:
            check_text_tokens("prompt.text_tokens", towers["text"])
        width = {name: tower.width for name, tower in towers.items()}
        if config.class_specific:
            self.classes = list(class_names or ())
            self.rows: list[int] | None = None
        if words is not None:
            self.register_buffer("words", words.float().cpu(), persistent=False)
        else:
            self.words: Tensor | None = None
        self.tokens = nn.ModuleDict()
        for name in TOWERS:
            own = self.depth[name] if self.count[name] and not (name == "vision" and config.coupled) else 0
            shape = (self.count[name], width[name])
            tokens = [nn.Parameter(torch.empty(shape)) for _ in range(own)]
            if name == "text" and self.classes is not None:
                tokens[0] = nn.Parameter(torch.empty(len(self.classes), *shape))
            self.tokens[name] = nn.ParameterList(tokens)
        self.coupling = nn.ModuleList(
            nn.Linear(width["text"], width["vision"]) for _ in range(config.text_depth if config.coupled else 0)
        )
        self.network: nn.Sequential | None = None
        if config.per_image:
            embed = towers_embed(clip)
            check_range("prompt.reduction", config.reduction, 1, embed)
            hidden = embed // config.reduction
            self.network = nn.Sequential(nn.Linear(embed, hidden), nn.ReLU(), nn.Linear(hidden, width["text"]))

    def _of(self, tower: str) -> list[nn.Parameter]:
        """The tokens of a tower, by block."""
        return list(self.tokens[tower].parameters())

    def sites(self, tower: str) -> Sites:
        """In the first blocks of each tower that has learned tokens."""
        count = self.count[tower]
        if not count:
            return Sites()
        per = CLASS if self.config.class_specific else IMAGE if self.config.per_image else ALL
        vision = tower == "vision"
        first = TokenEdit(0, count, APPEND) if vision else TokenEdit(0, count, REPLACE, per=per)
        deeper = [TokenEdit(block, count, REPLACE, last=vision) for block in range(1, self.depth[tower])]
        return Sites((first, *deeper))

    def values(self, image_features: Tensor | None) -> dict[str, Values]:
        """The tokens themselves; those that hang on images or on the other tower are made here."""
        text: dict[int, Tensor] = dict(enumerate(self._of("text")))
        if self.classes is not None and self.rows is not None:
            text[0] = text[0][self.rows]
        if self.network is not None:
            if image_features is None:  # asked for the other tower
                return {}
            dtype = next(self.network.parameters()).dtype
            shift = self.network(F.normalize(image_features.to(dtype), dim=-1))
            text[0] = text[0] + shift[:, None]
        if self.config.coupled:
            vision = {block: linear(text[block]) for block, linear in enumerate(self.coupling)}
        else:
            vision = dict(enumerate(self._of("vision")))
        return {"text": text, "vision": vision}

    def operations(self, images: int, classes: int, trained: Set[str]) -> float:
        """Of the couplings and of the network of the image, whose own input has no gradient."""
        coupled = 6 * self.config.text_tokens * sum(p.numel() for p in self.coupling.parameters() if p.dim() == 2)
        if self.network is None:
            return coupled
        first, second = (p.numel() for p in self.network.parameters() if p.dim() == 2)
        return coupled + images * (4 * first + 6 * second)

    def set_rows(self, rows: list[int]) -> None:
        """Which of the classes' own tokens are meant from now on."""
        self.rows = rows

    def weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """``text.1.tokens``, ``vision.2.tokens``, ``coupling.1.weight``, ``network.0.weight``."""
        for name in TOWERS:
            for number, tokens in enumerate(self._of(name), start=1):
                yield f"{name}.{number}.tokens", tokens
        for number, linear in enumerate(self.coupling, start=1):
            for key, parameter in linear.named_parameters():
                yield f"coupling.{number}.{key}", parameter
        if self.network is not None:
            for key, parameter in self.network.named_parameters():
                yield f"network.{key}", parameter

    def reset(self, generator_of: Callable[..., torch.Generator]) -> None:
        """Words where they were given, else N(0, 0.02); the deep couplings are copies of one."""
        with torch.no_grad():
            for name in TOWERS:
                for number, tokens in enumerate(self._of(name), start=1):
                    if name == "text" and number == 1 and self.words is not None:
                        tokens.copy_(self.words.expand_as(tokens))
                    else:
                        drawn = torch.empty(tokens.shape).normal_(
                            0, DEVIATION, generator=generator_of(name, number, "tokens")
                        )
                        tokens.copy_(drawn)
            for number, linear in enumerate(self.coupling):
                # MaPLe clones one layer for the blocks after the first, so that they begin as the same map.
                draw_linear(linear, partial(generator_of, "coupling", min(number, 1) + 1))
            if self.network is not None:
                for place in (0, 2):
                    draw_linear(self.network[place], partial(generator_of, "network", place))


def draw_linear(linear: nn.Module, generator_of: Callable[[str], torch.Generator]) -> None:
    """``nn.Linear``'s own rule of initialisation, uniform within 1/sqrt(in), each tensor from its own generator."""
    assert isinstance(linear, nn.Linear)
    bound = linear.in_features**-0.5
    with torch.no_grad():
        for key, parameter in linear.named_parameters():
            parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator_of(key)))


def check_image_tokens(field: str, clip: ClipModel) -> None:
    """Raise InputError where learned tokens cannot stand behind an image's; ``field`` is the option that asks."""
    tower = find_towers(clip)["vision"]
    if pooled_token(clip, "vision") != 0:
        raise InputError(f"{field} needs an image tower that is pooled at its class token; valid: 0")
    if not tower.kind.enter:
        raise InputError(f"{field} needs an open_clip ViT, and this is a {tower.kind.name}; valid: 0")


def check_text_tokens(field: str, tower: Tower) -> None:
    """Raise InputError where learned tokens cannot stand in prompts; ``field`` is the option that asks."""
    if (why := _text_tokens_obstacle(tower)) is not None:
        raise InputError(f"{field} needs a text tower that is pooled at its end, and {why}; valid: 0")


def _text_tokens_obstacle(tower: Tower) -> str | None:
    if not tower.kind.words:
        return f"a {tower.kind.name} has no embedding that they can enter by"
    if tower.kind.added(tower.root) or tower.kind.keys(tower.root, torch.zeros(1, 1, dtype=torch.int64)) is not None:
        return "this one keeps padding apart"
    place = tower.place()
    if isinstance(place, str):
        return place
    return None if place in (None, -1) else f"this one is pooled at token {place}"
