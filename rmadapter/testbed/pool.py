"""What pretraining shows: names, the drawings of each, and captions of them.

The bundled emoji, each drawn by the vendors of the pretraining styles, come first; a broad corpus adds drawings to
their names and names of its own.
"""

from __future__ import annotations

import re

import numpy as np
import torch
from torch import Tensor

from rmadapter.clip import emoji_clip
from rmadapter.data.emoji import GROUPS
from rmadapter.data.emoji.atlas import STYLES, catalogue, drawings
from rmadapter.testbed.corpus_files import Corpus
from rmadapter.testbed.pictures import alter
from rmadapter.testbed.vendors import slug

TEMPLATES = (
    "a photo of a {}.",
    "a photo of a {}.",
    "a photo of the {}.",
    "a picture of a {}.",
    "a drawing of a {}.",
    "an emoji of a {}.",
    "an image of the {}.",
    "a small photo of a {}.",
    "a blurry picture of a {}.",
    "a {}.",
    "{}",
)
# Of the corpus; others are too long for what they show, or written in signs whose tokens a full stop may change.
NAME = re.compile(r"[a-z0-9]+( [a-z0-9]+){0,4}")
# How often a drawing with colours is asked for, where a name has one: in a corpus most have none.
COLOURED_SHARE = 0.65
BLENDED_SHARE = 0.3


class Captions:
    """Captions as tokens of a small vocabulary: the tokens that occur, numbered in their order.

    Args:
        names: what there are captions of; all templates of the first ``emoji``, as of a name with signs in it the
            template may change the tokens.
    """

    def __init__(self, names: tuple[str, ...], emoji: int):
        self.names, self._tokenize = names, emoji_clip.tokenizer()
        tokens = [
            self._tokenize([template.format(name) for name in names[:emoji]]) for template in dict.fromkeys(TEMPLATES)
        ]
        if len(names) > emoji:
            tokens.append(self._tokenize(list(names[emoji:])))
        self.used = torch.cat(tokens).unique()  # [n]; zero, the padding, is one of them
        self._number = torch.zeros(int(self.used.max()) + 1, dtype=torch.int64)
        self._number[self.used] = torch.arange(len(self.used))

    def of(self, texts: list[str]) -> Tensor:
        """Tokens [n, longest] of ``texts`` in the small vocabulary."""
        tokens = self._tokenize(texts)
        return self._number[tokens[:, : int((tokens != 0).sum(-1).max())]]

    def draw(self, chosen: np.ndarray, generator: np.random.Generator) -> Tensor:
        """Tokens [n, longest] of the ``chosen`` names, each in a random template."""
        templates = generator.integers(len(TEMPLATES), size=len(chosen))
        return self.of([TEMPLATES[t].format(self.names[name]) for t, name in zip(templates, chosen, strict=True)])


class Pool:
    """The drawings of all names, and random batches of them.

    Args:
        corpus: drawings beside the emoji; None: the emoji alone.

    Attributes:
        names: the emoji's in the catalogue's order, then the corpus's others.
        emoji: number of the emoji.
        tiles: uint8 [styles, emoji, 4, 48, 48] of the pretraining styles.
    """

    def __init__(self, corpus: Corpus | None = None) -> None:
        styles = [drawings(style.name) for style in STYLES.values() if style.pretrained]
        tiles = np.stack([np.stack([style[emoji.code] for emoji in catalogue()]) for style in styles])
        self.tiles = torch.from_numpy(tiles).permute(0, 1, 4, 2, 3).contiguous()
        self.emoji = len(catalogue())
        groups = np.array([GROUPS.index(emoji.group) for emoji in catalogue()])
        self.members = [np.flatnonzero(groups == group) for group in range(len(GROUPS))]
        self._corpus = corpus
        self.names, drawn = self._collect(corpus)
        # Of each name its drawings, those with colours first: emoji by style, then the corpus's in its own order.
        self._drawings = np.array([one for some in drawn for one in some])
        self._count = np.array([len(some) for some in drawn])
        self._first = np.cumsum(self._count) - self._count
        coloured = self._vendors + (0 if corpus is None else len(corpus.coloured))
        self._coloured = np.array([sum(one < coloured for one in some) for some in drawn])
        weight = np.sqrt(self._count[self.emoji :])  # a name with more drawings is shown more often, its drawings less
        self._share = weight / weight.sum() if len(weight) else weight

    @property
    def _vendors(self) -> int:
        return len(self.tiles) * self.emoji

    def _collect(self, corpus: Corpus | None) -> tuple[tuple[str, ...], list[list[int]]]:
        names = [emoji.name for emoji in catalogue()]
        drawn = [[style * self.emoji + place for style in range(len(self.tiles))] for place in range(self.emoji)]
        # Letters, digits and spaces, as the corpus writes names.
        place_of = {slug(name).replace("-", " "): place for place, name in enumerate(names)}
        for number, icon in enumerate(corpus.icons if corpus is not None else ()):
            if NAME.fullmatch(icon.name):
                if icon.name not in place_of:
                    place_of[icon.name] = len(names)
                    names.append(icon.name)
                    drawn.append([])
                drawn[place_of[icon.name]].append(self._vendors + number)
        return tuple(names), drawn

    def choose(self, count: int, generator: np.random.Generator, share: float = 1.0) -> np.ndarray:
        """``count`` different names, a ``share`` of them emoji: half of those of one group, hard to tell apart."""
        own = len(self.names) - self.emoji  # the corpus's; without one all are emoji
        emoji = max(count - own, round(share * count))
        members = self.members[generator.integers(len(self.members))]
        near = generator.choice(members, min(emoji // 2, len(members)), replace=False)
        rest = np.setdiff1d(np.arange(self.emoji), near)
        chosen = [near, generator.choice(rest, emoji - len(near), replace=False)]
        if count > emoji:
            others = generator.choice(len(self._share), count - emoji, replace=False, p=self._share)
            chosen.append(self.emoji + others)
        return np.concatenate(chosen)

    def draw(
        self, chosen: np.ndarray, generator: np.random.Generator, strength: float = 1.0, *, corpus: bool = True
    ) -> Tensor:
        """Float [n, 3, 48, 48] from 0 to 1: the ``chosen`` names, altered, and rendered at ``strength`` of a view.

        Without ``corpus`` emoji are shown in the vendors' drawings alone.
        """
        tiles, shapes = self._tiles(self._pick(chosen, generator, corpus), generator)
        return alter(tiles, shapes, generator, strength)

    def _pick(self, chosen: np.ndarray, generator: np.random.Generator, corpus: bool) -> np.ndarray:
        """A drawing of each name."""
        coloured = (generator.random(len(chosen)) < COLOURED_SHARE) & (self._coloured[chosen] > 0)
        number = np.where(coloured, self._coloured[chosen], self._count[chosen])
        if not corpus:
            number = np.minimum(number, len(self.tiles))
        return self._drawings[self._first[chosen] + (generator.random(len(chosen)) * number).astype(int)]

    def _tiles(self, picked: np.ndarray, generator: np.random.Generator) -> tuple[Tensor, np.ndarray]:
        """float [n, 4, 48, 48] from 0 to 1, some emoji between two styles, and which drawings have no colour."""
        tiles = torch.zeros(len(picked), *self.tiles.shape[2:])
        vendors = picked < self._vendors
        style, emoji = np.divmod(picked[vendors], self.emoji)
        count = len(style)
        # Both styles at once, one shining through: shapes and colours between the two.
        blended = generator.random(count) < BLENDED_SHARE
        share = np.where(blended, generator.uniform(0, 0.5, count), 0).astype(np.float32)
        own, other = (self.tiles[which, emoji].float() / 255 for which in (style, (style + 1) % len(self.tiles)))
        tiles[torch.from_numpy(vendors)] = torch.lerp(own, other, torch.from_numpy(share)[:, None, None, None])
        shapes = np.zeros(len(picked), bool)
        if self._corpus is not None:
            coloured = len(self._corpus.coloured)
            for row in np.flatnonzero(~vendors):
                number = picked[row] - self._vendors
                shapes[row] = number >= coloured
                if shapes[row]:
                    tiles[row, 3] = torch.from_numpy(self._corpus.shapes[number - coloured] / np.float32(255))
                else:
                    tiles[row] = torch.from_numpy(self._corpus.coloured[number].transpose(2, 0, 1) / np.float32(255))
        return tiles, shapes
