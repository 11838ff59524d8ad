"""``rmadapter eval``: an adapter, or zero-shot CLIP, on a data set."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.clip.names import MODEL
from rmadapter.config import PRECISIONS, PUBLISHED, RUN_CONFIG_FILE, check_template
from rmadapter.config.paths import ModelText, PathText
from rmadapter.data import ImageData, load_data, part_names
from rmadapter.data.catalog import PHOTO, zeroshot_template
from rmadapter.data.emoji import is_testbed
from rmadapter.errors import InputError, check_choice, check_range
from rmadapter.evaluation.accuracy import REFUSE, UNKNOWN, ZEROSHOT, evaluate_parts, tested_parts
from rmadapter.evaluation.answers import PartAnswers, check_logits_file, write_logits
from rmadapter.evaluation.eval_images import Loading
from rmadapter.evaluation.loaded_model import LoadedModel, load_stored
from rmadapter.evaluation.results_file import describe, results_of, trained_on, write_results
from rmadapter.evaluation.seen_images import seen_images
from rmadapter.files import check_file_name, check_folder_name, check_may_write
from rmadapter.runtime import resolve_device
from rmadapter.tuners.adapter_file import AdapterInfo, read_info

DATA_FORMS = "--data FOLDER, or --data NAME --data-root DIR, or a bundled one such as --data emoji_food"


@dataclass
class EvalConfig:
    """Accuracy, calibration and more of an adapter, or of zero-shot CLIP, on a data set.

    Args:
        adapter: folder of an adapter; its base model, template and preprocessing are used
        method: adapter, or zeroshot for the base model alone
        data: folder of images, its name in data_root, or a bundled data set such as emoji_food; default: the bundled
            one that the adapter was trained on
        data_root: folder that holds the data sets
        style: whose drawings, for the bundled data sets; default: the adapter's, else fluent
        classes: all, base, new, or base_new for both halves and their harmonic mean
        split: test, val or train
        unknown: of classes that the adapter is bound away from: refuse, or zeroshot, the frozen model's answer for each
            part with such a class
        strength: how strongly an adapter counts, 0 for zero-shot CLIP, 1 as trained; several (0,0.5,1) are all tested
        retention: for a bundled data set also the accuracy on its classes drawn in the unseen style
        model: open_clip model name; default: the adapter's
        pretrained: open_clip tag, weights file, or none for random weights; default: the adapter's
        trust_base: load the folder, hub repository or weights file that the adapter alone names as its base model
        template: prompt with {}; default: the adapter's, for zeroshot the data set's published one
        precision: auto (the adapter's), bf16, fp16 or fp32
        device: auto, cpu, cuda or cuda:N
        fused: use the fastest adapter backend there is
        backend: one adapter backend by name
        batch_size: images a step
        workers: processes that decode images
        skip_bad_images: leave unreadable images out and count them
        out: folder for results.json; of several strengths for a folder each, strength.csv and strength.png
        logits: file for logits and labels, .safetensors or .npz
        details: folder for confusion matrices (CSV) and details.html, a page with the most confident mistakes
    """

    adapter: PathText | None = None
    method: str = "adapter"
    data: PathText = ""
    data_root: PathText | None = None
    style: str | None = None
    classes: str = "all"
    split: str = "test"
    unknown: str = REFUSE
    strength: str = "1"
    retention: bool = True
    model: ModelText | None = None
    pretrained: PathText | None = None
    trust_base: bool = False
    template: str | None = None
    precision: str = "auto"
    device: str = "auto"
    fused: bool = True
    backend: str | None = None
    batch_size: int = 64
    workers: int = 2
    skip_bad_images: bool = False
    out: PathText | None = None
    logits: PathText | None = None
    details: PathText | None = None

    def __post_init__(self) -> None:
        check_choice("method", self.method, ("adapter", "zeroshot"))
        check_choice("classes", self.classes, ("all", "base", "new", "base_new"))
        check_choice("split", self.split, ("test", "val", "train"))
        check_choice("unknown", self.unknown, UNKNOWN)
        check_choice("precision", self.precision, PRECISIONS)
        if not self.data and self.adapter is None:
            raise InputError(f"data is missing; valid: {DATA_FORMS}")
        if self.adapter is None and self.method == "adapter":
            raise InputError("adapter is missing; valid: --adapter DIR, or --method zeroshot")
        if self.template is not None:
            check_template(self.template)
        check_range("batch_size", self.batch_size, 1)
        check_range("workers", self.workers, 0)
        if len(self.strengths) > 1 and (self.logits or self.details):
            field = "logits" if self.logits else "details"
            raise InputError(f"{field} is given with strength {self.strength!r}; valid: with one strength")

    @property
    def strengths(self) -> tuple[float, ...]:
        """The numbers in ``strength``; InputError for another form."""
        try:
            found = tuple(float(word) for word in self.strength.split(","))
        except ValueError as error:
            raise InputError(f"strength is {self.strength!r}; valid: numbers such as 1 or 0,0.5,1") from error
        for strength in found:
            check_range("strength", strength, 0)
        if len(set(found)) < len(found):
            raise InputError(f"strength is {self.strength!r}, with a number twice; valid: each once")
        return found


def load_tested(config: EvalConfig, training: dict[str, Any], *, adapted: bool) -> ImageData:
    """The data set of ``config``, by default the bundled one that ``training`` says; prints what it has to say.

    Args:
        config: the evaluation.
        training: how the adapter was trained, as its file says it; empty without one.
        adapted: whether the adapter is what is evaluated, and not the base model alone.

    Raises:
        InputError: everything ``load_data`` raises; no data set is named; what ``check_out`` raises.
    """
    check_out(config)
    trained_data, trained_style = training.get("data") or "", training.get("style")
    # A folder of the user's own may have the name of a bundled data set, but no style.
    name = config.data or (trained_data if is_testbed(trained_data) and trained_style is not None else "")
    if not name:
        raise InputError(f"data is missing, and the adapter was trained on {trained_data!r}; valid: {DATA_FORMS}")
    style = config.style or (trained_style if is_testbed(name) else None)
    data = load_data(name, config.data_root, style)
    for note in data.notes:
        print(note)
    # A style that training has seen measures no retention.
    seen = adapted and data.retention is not None and data.retention.style == trained_style
    return data if config.retention and not seen else replace(data, retention=None)


def check_out(config: EvalConfig) -> None:
    """Raise InputError where nothing can be written as ``config`` says it.

    ``out`` is a file or the folder of a training run, ``details`` a file, ``logits`` a folder, below a file or not
    called as a file of logits; or this user may not write there.
    """
    if config.logits is not None:
        check_logits_file(config.logits)
        check_file_name("logits", config.logits)
        check_may_write("the folder of logits", Path(config.logits).parent)
    for field, folder in (("out", config.out), ("details", config.details)):
        if folder:
            check_folder_name(field, folder)
            check_may_write(field, folder)
    if config.out and (Path(config.out) / RUN_CONFIG_FILE).is_file():
        raise InputError(
            f"out is {config.out!r}, where a training run is, whose results this would write over; valid: another one"
        )


def load_model(config: EvalConfig, info: AdapterInfo | None = None) -> LoadedModel:
    """The model of ``config``; says the backend. ``info`` is what the adapter's file says, where it was read before.

    Raises:
        InputError: everything ``load_stored`` and ``resolve_device`` raise.
    """
    device = resolve_device(config.device)
    model = config.model or (MODEL if config.adapter is None and is_testbed(config.data) else None)
    loaded = load_stored(
        config.adapter,
        model,
        config.pretrained,
        device=device,
        precision=config.precision,
        fused=config.fused,
        backend=config.backend,
        with_adapter=config.method != "zeroshot",
        trust_base=config.trust_base,
        info=info,
    )
    if loaded.sentence is not None:
        print(loaded.sentence)
    return loaded


def run_eval(
    config: EvalConfig,
    loaded: LoadedModel | None = None,
    kept: dict[str, PartAnswers] | None = None,
    *,
    data: ImageData | None = None,
) -> dict[str, Any]:
    """``rmadapter eval`` at one strength: evaluate, print, and write what ``config`` asks for.

    Args:
        config: the evaluation.
        loaded: what ``load_model`` made of a configuration that differs in data or strength alone; default: it is
            loaded.
        kept: where given, the answers are put into it by part.
        data: taken in place of the data set that the configuration names.
    """
    (strength,) = config.strengths
    if loaded is not None:
        info = loaded.info
    else:
        info = read_info(Path(config.adapter)) if config.adapter else None
    zeroshot = config.method == "zeroshot"
    training = (info.training or {}) if info is not None else {}
    data = data or load_tested(config, training, adapted=not zeroshot)
    loaded = loaded or load_model(config, info)
    backbone, adapted = loaded.backbone, loaded.adapted
    elsewhere = (training.get("data"), training.get("style")) != (data.name, data.style)
    own = zeroshot_template(data.name) if info is None or zeroshot else _template(info, data, elsewhere)
    template = config.template or own or PHOTO
    parts = tested_parts(config.classes, data.class_names)
    own_names = adapted.classes if adapted is not None and config.unknown != REFUSE else None
    first = own_names or part_names(data.class_names, parts[0])
    model = loaded.classifier(first, template, elsewhere=elsewhere)
    model.set_strength(strength)
    loading = Loading(backbone.preprocessing, config.batch_size, config.workers, config.skip_bad_images)
    trained = training if adapted is not None else {}
    seen = seen_images(config.adapter, trained, data, parts, config.split)
    started = time.perf_counter()
    others = other_answers(config, loaded.zeroshot, own_names, data)
    kept = answers_to_keep(config, kept)
    keep = None if kept is None else kept.__setitem__
    found = evaluate_parts(model, data, parts, loading, split=config.split, zeroshot=others, keep=keep)
    results = results_of(
        method="zeroshot" if zeroshot else trained.get("method", "adapter"),
        data=data,
        trained_on=None if adapted is None or info is None else trained_on(trained, info.weights_sha256),
        model=backbone.source.name,
        pretrained=backbone.source.pretrained,
        base_hash=backbone.base_hash,
        shots=trained.get("shots"),
        seed=trained.get("seed"),
        classes=trained.get("classes") if adapted is not None else _beside(config.classes),
        split=config.split,
        found=found,
        trained_parameters=sum(p.numel() for p in adapted.trained().values()) if adapted else 0,
        seconds={"eval": time.perf_counter() - started},
        precision=loaded.precision,
        device=str(loaded.device),
        settings={
            **(trained.get("settings") or {}),
            "template": template,
            **answered(found),
            **({"strength": strength} if strength != 1 else {}),
        },
        backend=loaded.backend,
        **seen,
    )
    conclude(config, results, kept)
    return results


def _template(info: AdapterInfo, data: ImageData, elsewhere: bool) -> str | None:
    """The adapter's prompt; on another data set than its own, where that was the published one, that data set's.

    Learned words are the prompt, here as in the originals. They stand in the place of the words in front of the name:
    of another data set's prompt those behind it alone would be left, or there would be no room for them.
    """
    settings = (info.training or {}).get("settings") or {}
    published = settings.get("template") == PUBLISHED and not info.config.prompt.text_tokens
    return zeroshot_template(data.name) if elsewhere and published else info.template


def other_answers(
    config: EvalConfig,
    make: Callable[[list[str], str], CLIPClassifier],
    trained: list[str] | None,
    data: ImageData,
) -> CLIPClassifier | None:
    """The frozen model's classifier, made by ``make(class_names, template)``, for classes other than ``trained``.

    It has the prompt that ``--method zeroshot`` has. None where ``config`` does not want it, or nothing is bound.
    """
    if config.unknown == REFUSE or trained is None:
        return None
    return make(trained, config.template or zeroshot_template(data.name))


def answered(found: dict[str, Any]) -> dict[str, Any]:
    """What a result's settings say where the frozen model answered for some classes; reports keep such rows apart."""
    return {"unknown": ZEROSHOT} if ZEROSHOT in found.get("answered_by", {}).values() else {}


def _beside(classes: str) -> str:
    """What the frozen model's accuracy stands beside: both halves beside what was trained on the base half."""
    return "base" if classes == "base_new" else classes


def answers_to_keep(config: EvalConfig, kept: dict[str, PartAnswers] | None) -> dict[str, PartAnswers] | None:
    """``kept``, a new one where ``config`` writes answers, or None where nobody wants them."""
    return {} if kept is None and config.logits else kept


def conclude(config: EvalConfig, results: dict[str, Any], kept: dict[str, PartAnswers] | None) -> None:
    """Print ``results``, and write them and the answers ``kept`` where ``config`` says."""
    print(describe(results))
    if config.logits:
        assert kept is not None  # by ``answers_to_keep``
        write_logits(Path(config.logits), kept)
        print(f"logits: {config.logits}")
    if config.out:
        file = Path(config.out) / "results.json"
        write_results(file, results)
        print(f"results: {file}")
