"""Classify images among any class names with a trained adapter; ``rmadapter predict``."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rmadapter.clip.backbone import Backbone
from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.clip.emoji_clip import untrained_words
from rmadapter.clip.names import MODEL
from rmadapter.config import PRECISIONS, check_template
from rmadapter.config.chosen_model import check_class_choice
from rmadapter.config.paths import ModelText, PathText
from rmadapter.data.catalog import PHOTO
from rmadapter.data.class_names import read_lines
from rmadapter.data.sentences import read_sentences
from rmadapter.errors import InputError, check_choice, check_range
from rmadapter.evaluation.accuracy import REFUSE, UNKNOWN, answered_by, answering
from rmadapter.evaluation.calibration import Calibration, calibration_for
from rmadapter.evaluation.class_texts import ClassTexts, read_templates
from rmadapter.evaluation.image_paths import IMAGE_FORMS, named_images
from rmadapter.evaluation.loaded_model import load_chosen
from rmadapter.evaluation.prediction_formats import Shape, check_set_names
from rmadapter.evaluation.prediction_results import Destinations
from rmadapter.evaluation.ranking import Ranker, progress, ranked
from rmadapter.runtime import resolve_device
from rmadapter.tuners.adapter_file import read_info

# Unreadable images that are named on standard error; all of them are in what is written.
MOST_NAMED = 10


@dataclass
class PredictConfig:
    """Ranked class probabilities for images, among any class names.

    Args:
        images: image files, folders with all that is in them, and patterns such as 'photos/**/*.jpg' in quotes
        images_from: text file with one path a line, or - for standard input
        adapter: folder of an adapter; without one the base model alone classifies
        classes: class names, separated by commas, one that stands twice counts once; default: those of descriptions,
            else those the adapter was trained on
        classes_file: text file with one class name a line, in place of classes; a line that begins with "# " is none
        unknown: of classes that the adapter is bound away from: refuse, or zeroshot, the frozen model's answer for all
        strength: how strongly the adapter counts: 0 is zero-shot CLIP, 1 as trained, above 1 beyond
        sets: also the classes among which the true one is with this probability, such as 0.9; after calibrate
        template: prompt with {}; several of them are averaged; default: the adapter's, else 'a photo of a {}.'
        templates: text file with one prompt a line, in place of template
        descriptions: JSON file {class: [sentence, ...]}, whose sentences are averaged in the place of prompts
        top: number of classes an image
        threshold: probability below which the first class is no answer ("none of these")
        csv: file for a row an image, or - for standard output
        jsonl: file for a JSON object an image, one a line, or - for standard output
        json: print one JSON list
        embeddings: file for the images' normalised features, .npz or .safetensors
        overwrite: replace what an earlier run has written
        model: open_clip model name; default: the adapter's
        pretrained: open_clip tag, weights file, or none for random weights; default: the adapter's
        trust_base: load the folder, hub repository or weights file that the adapter alone names as its base model
        precision: auto (the adapter's), bf16, fp16 or fp32
        device: auto, cpu, cuda or cuda:N
        fused: use the fastest adapter backend there is
        backend: one adapter backend by name
        batch_size: images a step
        workers: processes that decode images; default: one a processor
    """

    images: list[PathText] = field(default_factory=list)
    images_from: PathText | None = None
    adapter: PathText | None = None
    classes: str | None = None
    classes_file: PathText | None = None
    unknown: str = REFUSE
    strength: float = 1.0
    sets: float | None = None
    template: list[str] = field(default_factory=list)
    templates: PathText | None = None
    descriptions: PathText | None = None
    top: int = 5
    threshold: float | None = None
    csv: PathText | None = None
    jsonl: PathText | None = None
    json: bool = False
    embeddings: PathText | None = None
    overwrite: bool = False
    model: ModelText | None = None
    pretrained: PathText | None = None
    trust_base: bool = False
    precision: str = "auto"
    device: str = "auto"
    fused: bool = True
    backend: str | None = None
    batch_size: int = 32
    workers: int | None = None

    def __post_init__(self) -> None:
        if not self.images and self.images_from is None:
            raise InputError(f"no image is given; {IMAGE_FORMS}")
        check_class_choice(self.classes, self.classes_file)
        for template in self.template:
            check_template(template)
        check_choice("unknown", self.unknown, UNKNOWN)
        check_choice("precision", self.precision, PRECISIONS)
        check_range("top", self.top, 1)
        if self.threshold is not None:
            check_range("threshold", self.threshold, 0, 1)
        if self.sets is not None:
            check_range("sets", self.sets, 0, 1)
        check_range("batch_size", self.batch_size, 1)
        if self.workers is not None:
            check_range("workers", self.workers, 0)

    @property
    def destinations(self) -> Destinations:
        """Where the predictions go; InputError where two go to one place, or a file is called what it cannot be."""
        return Destinations(self.csv, self.jsonl, self.embeddings, self.json)


@dataclass(frozen=True)
class Predicted:
    """What a run has done: ``images`` in ``seconds``, of which ``unreadable`` could not be read.

    An earlier run has found ``before`` more. The seconds are those of the images alone, without loading the model.
    """

    images: int
    unreadable: int
    before: int
    seconds: float

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds

    def __str__(self) -> str:
        text = f"{self.images} images in {self.seconds:.1f} s, {self.rate:.1f} images/s"
        text += f"; {self.before} were done before" if self.before else ""
        return text + (f"; {self.unreadable} could not be read" if self.unreadable else "")


@dataclass(frozen=True)
class Answers:
    """Who answers: ``model``, or where it does not know all classes ``zeroshot``, if there is one.

    Attributes:
        backbone: their base model.
        precision: what they compute in.
        weights: hash of the adapter's weights, or None.
        calibration: how the model's probabilities are to be read, or None.
    """

    model: CLIPClassifier
    zeroshot: CLIPClassifier | None
    backbone: Backbone
    precision: str
    weights: str | None = None
    calibration: Calibration | None = None


def run_predict(config: PredictConfig) -> Predicted:
    """``rmadapter predict``: classify and write what ``config`` asks for.

    Raises:
        InputError: what is given cannot be used, or no image can be read.
    """
    device = resolve_device(config.device)
    info = read_info(Path(config.adapter)) if config.adapter else None
    template = (info.template if info else None) or PHOTO
    texts = wanted_texts(config, info.class_names if info else None, template)
    paths = wanted_images(config)
    loaded = load_chosen(config, device, info)
    if loaded.backbone.source.name == MODEL and (words := untrained_words(texts.words)):
        warnings.warn(
            f"{MODEL} was not pretrained on {', '.join(map(repr, words))}: what it says of such a class is chance",
            stacklevel=2,
        )
    bound = None if loaded.adapted is None or config.unknown == REFUSE else loaded.adapted.classes
    model = loaded.classifier(bound or texts.names, template)
    zeroshot = None if bound is None else loaded.zeroshot(bound, template)
    weights = None if info is None else info.weights_sha256
    model.set_strength(config.strength)
    calibration = calibration_for(config.adapter, weights, texts.names, texts.prompt, config.strength, config.sets)
    answers = Answers(model, zeroshot, loaded.backbone, loaded.precision, weights, calibration)
    return predict_among(config, paths, texts, answers)


def predict_among(config: PredictConfig, paths: list[str], texts: ClassTexts, answers: Answers) -> Predicted:
    """Classify the images ``paths`` among the classes of ``texts``, and write what ``config`` asks for.

    Where ``answers.zeroshot`` answers that is said, and with it in place each record has ``answered_by``.

    Raises:
        InputError: no image that can be read, a name that the model does not know without ``zeroshot``.
    """
    top = min(config.top, len(texts.names))
    sets = config.sets is not None
    shape = Shape(top, texts.names, paths, answered_by=answers.zeroshot is not None, sets=sets)
    with answering(answers.model, answers.zeroshot, texts.names) as (model, known):
        features = texts.features(model)
        if not known:
            warnings.warn("not all of these classes were trained on: the frozen model answers", stacklevel=2)
        who = None if answers.zeroshot is None else answered_by(known)
        with_embeddings = config.embeddings is not None
        ranker = Ranker(
            model, features, texts.names, top, config.threshold, who, with_embeddings, answers.calibration, config.sets
        )
        identity = _identity(config, texts, answers) if config.destinations.files else {}
        with config.destinations.opened(identity, shape, overwrite=config.overwrite) as results:
            left, before = results.left, results.done
            began = time.perf_counter()
            with progress(len(paths), before) as bar:
                for records in ranked(
                    ranker,
                    left,
                    answers.backbone.preprocessing,
                    batch_size=config.batch_size,
                    workers=config.workers,
                ):
                    results.add(records)
                    bar.update(len(records))
            seconds = time.perf_counter() - began
            results.finish()
            unreadable = [record["error"] for record in results.unreadable]
    found = Predicted(len(left), len(unreadable), before, seconds)
    _tell(found, unreadable)
    return found


def _identity(config: PredictConfig, texts: ClassTexts, answers: Answers) -> dict[str, Any]:
    """What the records of a run depend on, beside its images; another run does not go on with them."""
    found = answers.calibration
    return {
        "adapter": answers.weights,
        "model": answers.backbone.source.name,
        "base model": answers.backbone.base_hash,
        "preprocessing": str(answers.backbone.preprocessing),
        "precision": answers.precision,
        "classes or prompts": texts.identity,
        "unknown": config.unknown,
        "top": min(config.top, len(texts.names)),
        "threshold": config.threshold,
        "strength": config.strength,
        "sets": config.sets,
        "calibration": None if found is None else found.identity,
        "embeddings": config.embeddings is not None,
    }


def _tell(found: Predicted, unreadable: Sequence[str]) -> None:
    """The run in a line on standard error, and the unreadable images."""
    if unreadable:
        more = f"; and {len(unreadable) - MOST_NAMED} more" if len(unreadable) > MOST_NAMED else ""
        named = "; ".join(unreadable[:MOST_NAMED])
        warnings.warn(f"{len(unreadable)} of {found.images} images cannot be read: {named}{more}", stacklevel=3)
    print(found, file=sys.stderr)


def wanted_images(config: PredictConfig) -> list[str]:
    """The paths of the images of ``config``, before a model is loaded; InputError also where its files are there."""
    config.destinations.check(config.overwrite)
    return named_images(config.images, config.images_from)


def wanted_texts(config: PredictConfig, trained: list[str] | None, template: str) -> ClassTexts:
    """The class names that ``config`` asks for and what stands for each of them, by default ``template``.

    Raises:
        InputError: fewer than two names, a file that cannot be read, a class without descriptions; two kinds of texts;
            sets in a CSV file whose names cannot be told apart there.
    """
    given = [name for name in ("template", "templates", "descriptions") if getattr(config, name)]
    if len(given) > 1:
        raise InputError(f"{given[0]} and {given[1]} are both given; valid: one of them")
    descriptions = None if config.descriptions is None else read_sentences(config.descriptions, "descriptions")
    names = wanted_class_names(config, trained if descriptions is None else list(descriptions))
    if config.csv is not None and config.sets is not None:
        check_set_names(names)
    if descriptions is not None:
        return ClassTexts(names, descriptions=descriptions)
    several = config.template if config.templates is None else read_templates(config.templates)
    return ClassTexts(names, tuple(several or [template]))


class ClassChoice(Protocol):
    """Options that name classes."""

    classes: str | None
    classes_file: PathText | None


def wanted_class_names(config: ClassChoice, known: list[str] | None) -> list[str]:
    """The class names that ``config`` asks for, each once, else those ``known`` as they are.

    Raises:
        InputError: fewer than two names.
    """
    if config.classes_file is not None:
        names = _each_once(name for _, name in read_lines(Path(config.classes_file), "classes_file"))
    elif config.classes is not None:
        names = _each_once(name.strip() for name in config.classes.split(",") if name.strip())
    elif known is not None:
        names = known
    else:
        raise InputError("classes is missing; valid: --classes 'cat,dog', --classes-file FILE, or an adapter's own")
    if len(names) < 2:
        raise InputError(f"classes are {names!r}; valid: at least two different names")
    return names


def _each_once(names: Iterable[str]) -> list[str]:
    # Two classes of one name would share what is one's probability.
    return list(dict.fromkeys(names))
