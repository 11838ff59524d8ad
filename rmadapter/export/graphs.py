"""What exported files compute, as modules: images to probabilities, and the two towers by themselves.

Each takes one tensor and gives tensors by name. What a file cannot have is refused here, before anything is traced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.clip.prompts import Prompts, encode_prompts, make_prompts
from rmadapter.errors import InputError
from rmadapter.export.pixels import PixelPreprocessing
from rmadapter.tuners.adapted_classifier import AdaptedClassifier
from rmadapter.tuners.encoders import Encoders
from rmadapter.tuners.probe import LinearProbe

PROBABILITIES, IMAGE_EMB, TEXT_EMB, LOGIT_SCALE = "probabilities", "image_emb", "text_emb", "logit_scale"
LOGIT_BIAS = "logit_bias"


class Graph(nn.Module):
    """One file's computation.

    Attributes:
        part: what it is called in file names and messages.
        input, outputs: names of what goes in and comes out.
        dynamic: the input's dimensions that a file leaves open, by number: their names.
        metadata: texts by name that go into the file.
    """

    part: str
    input: str
    outputs: tuple[str, ...]
    dynamic: dict[int, str]
    metadata: Mapping[str, str] = MappingProxyType({})

    def example(self, count: int) -> Tensor:
        """An input of ``count`` rows."""
        raise NotImplementedError


class ImageGraph(Graph):
    """``images`` [n, 3, size, size] to ``image_emb`` [n, embed] of length 1, with all that is trained for images.

    With ``pixels`` it takes uint8 [n, 3, height, width] and preprocesses them.
    """

    part = "image"
    input = "images"
    outputs: tuple[str, ...] = (IMAGE_EMB,)
    text: Tensor  # the class embeddings, not normalised

    def __init__(
        self,
        classifier: CLIPClassifier,
        size: int,
        pixels: PixelPreprocessing | None = None,
        temperature: float = 1.0,
    ):
        super().__init__()
        self.classifier, self.size, self.pixels, self.temperature = classifier, size, pixels, temperature
        self.dynamic = {0: "batch"} if pixels is None else {0: "batch", 2: "height", 3: "width"}
        with torch.no_grad():
            self.register_buffer("text", classifier.text_features())

    def example(self, count: int) -> Tensor:
        """Random images, the same ones at every call."""
        draw = torch.Generator().manual_seed(count)
        if self.pixels is None:
            return torch.randn(count, 3, self.size, self.size, generator=draw)
        shape = (count, 3, self.size + 6, self.size + 9)
        return torch.randint(256, shape, generator=draw, dtype=torch.uint8)

    def features(self, images: Tensor) -> Tensor:
        """The image tower's features [n, embed], not normalised."""
        return self.classifier.image_features(images if self.pixels is None else self.pixels(images))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The images' embeddings."""
        features = self.features(images)
        if isinstance(self.classifier, AdaptedClassifier):
            headed = self.classifier.headed(features, self.text)
            if headed.others:
                raise InputError(
                    f"towers: the image tower cannot be exported by itself: among these classes "
                    f"{1 + len(headed.others)} kinds of its features answer together; valid: no --towers"
                )
            features = headed.image
        return {IMAGE_EMB: F.normalize(features.float(), dim=-1)}


class ClassifierGraph(ImageGraph):
    """The same images to ``probabilities`` [n, classes]: image tower, class embeddings, scale and softmax.

    The logits are divided by ``temperature``.
    """

    part = "classifier"
    outputs = (PROBABILITIES,)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The images' probabilities of the classes."""
        logits = self.classifier.logits(self.features(images), self.text)
        return {PROBABILITIES: (logits if self.temperature == 1 else logits / self.temperature).softmax(-1)}


class TextGraph(Graph):
    """``tokens`` int64 [classes, context] of prompts to ``text_emb`` [classes, embed] of length 1 and ``logit_scale``.

    A model with a bias of its logits, as SigLIP, has ``logit_bias`` too. Where learned tokens stand in a prompt, the
    input has any others: the words that they were, or placeholders. Scale and bias are divided by ``temperature``.
    """

    part = "text"
    input = "tokens"
    image: Tensor  # features of an image: heads take both towers' and give both

    def __init__(self, classifier: CLIPClassifier, size: int, temperature: float = 1.0):
        super().__init__()
        self.classifier, self.temperature = classifier, temperature
        with torch.no_grad():
            self.register_buffer("image", classifier.image_features(torch.zeros(1, 3, size, size)))
        self.dynamic = {0: "classes"}
        biased = classifier.clip.logit_bias is not None
        self.outputs = (TEXT_EMB, LOGIT_SCALE, *([LOGIT_BIAS] if biased else []))

    def tokens(self, class_names: Sequence[str]) -> Tensor:
        """The input for these classes' prompts."""
        model = self.classifier
        learned = model.adapted.tuned.prompt if isinstance(model, AdaptedClassifier) else None
        return make_prompts(
            model.clip, model.tokenizer, class_names, model.template, trim=False, learned=learned
        ).tokens

    def example(self, count: int) -> Tensor:
        """The prompts of the first classes, over again where there are fewer."""
        names = self.classifier.class_names
        return self.tokens([names[number % len(names)] for number in range(count)])

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """The prompts' embeddings and the factor of their cosines."""
        model, clip = self.classifier, self.classifier.clip
        if isinstance(model, AdaptedClassifier):
            features = _adapted_text(model, tokens)
            features = model.headed(self.image, features).text
        else:
            features = encode_prompts(clip, tokens)
        scale = clip.logit_scale.exp().float() / self.temperature
        found = {TEXT_EMB: F.normalize(features.float(), dim=-1), LOGIT_SCALE: scale}
        return found if clip.logit_bias is None else {**found, LOGIT_BIAS: clip.logit_bias.float() / self.temperature}


def _adapted_text(model: AdaptedClassifier, tokens: Tensor) -> Tensor:
    """Features [classes, embed] of ``tokens`` by the adapted text tower."""
    if model.encoders is None:
        return encode_prompts(model.clip, tokens)
    count = model.adapted.tuned.prompt.text_tokens
    slots = torch.arange(1, 1 + count).expand(tokens.shape[0], -1) if count else None
    prompts = Prompts(tokens, tokens != 0, slots)
    return model.encoders.text.features(prompts, model.adapted.values(None).get("text"))


def probabilities_of(found: dict[str, Tensor]) -> Tensor:
    """Probabilities [n, classes] from all that the towers' files give."""
    logits = found[LOGIT_SCALE] * found[IMAGE_EMB] @ found[TEXT_EMB].T
    return (logits + found[LOGIT_BIAS] if LOGIT_BIAS in found else logits).softmax(-1)


def make_graphs(
    classifier: CLIPClassifier,
    size: int,
    pixels: PixelPreprocessing | None,
    *,
    towers: bool,
    temperature: float = 1.0,
) -> list[Graph]:
    """The classifier as one graph, or with ``towers`` as two; the model is left in eval mode, for tracing.

    ``temperature`` is what logits are divided by.

    Raises:
        InputError: something in it depends on what one such graph does not see; the message names the part.
    """
    _check(classifier, towers)
    classifier.eval().requires_grad_(False)
    if isinstance(classifier, AdaptedClassifier):
        # Not those that keep matrices in oneDNN's layout, which no other program reads.
        classifier.encoders = Encoders.of(classifier.adapted, packed=False)
    if not towers:
        return [ClassifierGraph(classifier, size, pixels, temperature)]
    return [ImageGraph(classifier, size, pixels), TextGraph(classifier, size, temperature)]


def _check(classifier: CLIPClassifier, towers: bool) -> None:
    """Raise InputError where ``classifier`` has no class embeddings, or with ``towers`` no text tower, of its own."""
    adapted = classifier.adapted if isinstance(classifier, AdaptedClassifier) else None
    if isinstance(classifier, AdaptedClassifier) and classifier.per_image:
        raise InputError(
            "the text tower cannot be exported: its learned tokens depend on the image (prompt.per_image, as in "
            "CoCoOp), so that there are no class embeddings; valid: an adapter without prompt.per_image"
        )
    if not towers:
        return
    if isinstance(classifier, LinearProbe):
        raise InputError("towers: a linear probe has no text tower, but a row of weights a class; valid: no --towers")
    if adapted is None:
        return
    bound = next((tuner for tuner in adapted.tuners if tuner.classes is not None), None)
    if bound is not None:
        raise InputError(
            f"towers: the text tower cannot be exported by itself: {type(bound).__name__} has something of each of its "
            "classes, and knows no other prompts; valid: no --towers"
        )
    prompt = adapted.tuned.prompt
    if prompt.text_tokens and prompt.place != "end":
        raise InputError(
            f"towers: the text tower cannot be exported by itself: with prompt.place {prompt.place!r} the places of "
            "its learned tokens depend on the class name; valid: no --towers"
        )
