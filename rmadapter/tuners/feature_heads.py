"""What stands behind the towers: adapters of their features, an offset a class, a cache of training images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rmadapter.clip.types import ClipModel
from rmadapter.config.head import HeadConfig
from rmadapter.errors import InputError, check_range
from rmadapter.tuners.prompt_tokens import draw_linear, towers_embed
from rmadapter.tuners.tuner import Features, Tuner


class ClassFeatures(Tuner):
    """Features ``text`` [classes, embed] in the place of what the text tower makes of one prompt a class.

    They are those of the frozen model for several prompts, put in by ``fill``, and are not trained. A strength other
    than 1 lies on the line between them and the features of the one prompt.

    Attributes:
        prompts: "seven" normalises features before and after their mean, as zero-shot CLIP does; "eight" does not, so
            that they keep the length that an offset is added to (TaskRes).
    """

    text: Tensor

    def __init__(self, clip: ClipModel, config: HeadConfig, class_names: list[str]):
        super().__init__()
        self.prompts = config.class_prompts
        self.classes = list(class_names)
        self.register_buffer("text", torch.zeros(len(class_names), towers_embed(clip)))
        self.rows: list[int] | None = None

    def fill(self, features: Tensor) -> None:
        """Keep the mean of ``features`` [prompts, classes, embed], which are not normalised."""
        self.text.copy_(self._scaled(self._scaled(features.float()).mean(0)))

    def _scaled(self, features: Tensor) -> Tensor:
        return features if self.prompts == "eight" else F.normalize(features, dim=-1)

    def set_rows(self, rows: list[int]) -> None:
        """Which classes' features are meant from now on."""
        self.rows = rows

    def head(self, features: Features) -> Features:
        """The kept text features."""
        text = self.text if self.rows is None else self.text[self.rows]
        if self.strength != 1:
            text = torch.lerp(self._scaled(features.text.to(text.dtype)), text, self.strength)
        return features._replace(text=text)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """``head.text`` [classes, embed]."""
        yield "head.text", self.text


class FeatureAdapters(Tuner):
    """CLIP-Adapter (Gao et al., IJCV 2024), after one tower or both: f -> ratio A(f) + (1 - ratio) f.

    ``A`` is two linear maps without bias, each with a ReLU behind it, through ``embed / reduction`` values.
    """

    def __init__(self, clip: ClipModel, config: HeadConfig):
        super().__init__()
        embed = towers_embed(clip)
        check_range("head.reduction", config.reduction, 1, embed)
        self.ratios = {"image": config.image_ratio, "text": config.text_ratio}
        self.adapters = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Linear(embed, embed // config.reduction, bias=False),
                    nn.ReLU(),
                    nn.Linear(embed // config.reduction, embed, bias=False),
                    nn.ReLU(),
                )
                for name, ratio in self.ratios.items()
                if ratio
            }
        )

    def head(self, features: Features) -> Features:
        """Both features, each with its adapter where there is one, in the dtype of the weights."""
        found = features._asdict()
        for name, adapter in self.adapters.items():
            x = found[name].to(next(adapter.parameters()).dtype)
            ratio = self.strength * self.ratios[name]
            found[name] = ratio * adapter(x) + (1 - ratio) * x
        return Features(**found)

    @property
    def changed(self) -> frozenset[str]:
        """Those that have an adapter."""
        return frozenset(self.adapters)

    def operations(self, images: int, classes: int, trained: Set[str]) -> float:
        """Of both layers; the first one's input has a gradient where a tower is trained."""
        found, rows = 0, {"image": images, "text": classes}
        for name, adapter in self.adapters.items():
            first, second = adapter.parameters()
            found += rows[name] * ((6 if name in trained else 4) * first.numel() + 6 * second.numel())
        return found

    def weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """``head.image.0.weight`` [hidden, embed], ``head.image.2.weight`` [embed, hidden], and of ``text``."""
        for name, adapter in self.adapters.items():
            for key, parameter in adapter.named_parameters():
                yield f"head.{name}.{key}", parameter

    def reset(self, generator_of: Callable[..., torch.Generator]) -> None:
        """As ``nn.Linear`` begins."""
        for name, adapter in self.adapters.items():
            for place, linear in enumerate(adapter.children()):
                if isinstance(linear, nn.Linear):
                    draw_linear(linear, partial(generator_of, "head", name, place))


class ClassOffsets(Tuner):
    """TaskRes (Yu et al., CVPR 2023): t_c -> t_c + factor * x_c, with one vector ``x_c`` [embed] a class, from zero."""

    def __init__(self, clip: ClipModel, config: HeadConfig, class_names: list[str]):
        super().__init__()
        self.factor = config.offset
        self.classes = list(class_names)
        self.offsets = nn.Parameter(torch.empty(len(class_names), towers_embed(clip)))
        self.rows: list[int] | None = None

    def set_rows(self, rows: list[int]) -> None:
        """Which classes' offsets are meant from now on."""
        self.rows = rows

    def head(self, features: Features) -> Features:
        """The text features with their offsets."""
        offsets = self.offsets if self.rows is None else self.offsets[self.rows]
        return features._replace(text=features.text.float() + self.strength * self.factor * offsets)

    @property
    def changed(self) -> frozenset[str]:
        """The text features."""
        return frozenset({"text"})

    def weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """``head.offsets`` [classes, embed]."""
        yield "head.offsets", self.offsets

    def reset(self, generator_of: Callable[..., torch.Generator]) -> None:
        """Zero."""
        nn.init.zeros_(self.offsets)


class ImageCache(Tuner):
    """Tip-Adapter (Zhang et al., ECCV 2022): logits + alpha exp(-beta (1 - z K^T)) V, without training or with.

    The keys ``K`` [images, embed] are features of the training images, put in by ``fill``; training changes them and
    does not bring them to length 1 again. The values ``V`` [images, classes] are ones at the images' labels.

    Attributes:
        weight, sharpness: alpha and beta.
    """

    labels: Tensor

    def __init__(self, clip: ClipModel, config: HeadConfig, class_names: list[str], images: int):
        super().__init__()
        if images < 1:
            raise InputError("head.cache has no images to keep; valid: shots of 1 or more")
        self.classes = list(class_names)
        self.weight, self.sharpness = config.cache_weight, config.cache_sharpness
        self.keys = nn.Parameter(torch.zeros(images, towers_embed(clip)), requires_grad=config.cache == "trained")
        self.register_buffer("labels", torch.zeros(images, dtype=torch.int64))
        self.rows: list[int] | None = None

    def fill(self, features: Tensor, labels: Tensor) -> None:
        """Keep ``features`` [images, embed] (not normalised, averaged over views) and ``labels`` (int64 [images])."""
        with torch.no_grad():
            self.keys.copy_(F.normalize(features.float(), dim=-1))
            self.labels.copy_(labels)

    def set_rows(self, rows: list[int]) -> None:
        """Among which of its classes it is asked from now on."""
        self.rows = rows

    def nearness(self, image_features: Tensor) -> Tensor:
        """``z K^T`` [n, images] of ``image_features`` [n, embed], which need not be normalised."""
        return F.normalize(image_features.to(self.keys.dtype), dim=-1) @ self.keys.T

    def votes(self, nearness: Tensor, sharpness: float) -> Tensor:
        """``exp(-beta (1 - nearness)) V`` [n, classes], for the classes that it is asked among."""
        numbers = torch.arange(len(self.classes or ()), device=nearness.device)
        # Not F.one_hot, which waits for the device to look at the labels.
        values = (self.labels[:, None] == numbers).to(nearness.dtype)
        if self.rows is not None:
            values = values[:, self.rows]
        return torch.exp(-sharpness * (1 - nearness)) @ values

    def add_to_logits(self, logits: Tensor, image_features: Tensor) -> Tensor:
        """The cache's votes added."""
        return logits + self.strength * self.weight * self.votes(self.nearness(image_features), self.sharpness)

    def operations(self, images: int, classes: int, trained: Set[str]) -> float:
        """Of nearness and votes: each product, and where keys or images have a gradient those that make it."""
        kept, embed = self.keys.shape
        nearness = 2 + 2 * self.keys.requires_grad + 2 * ("image" in trained)
        votes = 4 if nearness > 2 else 2
        return images * kept * (nearness * embed + votes * classes)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """``cache.keys`` [images, embed] and ``cache.labels`` [images]."""
        yield "cache.keys", self.keys
        yield "cache.labels", self.labels
