"""Top-1 accuracy on all classes or on the base and new halves; ``rmadapter eval``."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from rmadapter.backbone import Backbone, load_backbone, store_backbone
from rmadapter.checkpoint import AdapterInfo, load, read_info
from rmadapter.config import PRECISIONS, TrainConfig, check_template
from rmadapter.data import (
    EvalImages,
    ImageData,
    Item,
    Preprocessing,
    Read,
    base_new_split,
    collate_readable,
    eval_transform,
    load_data,
    part_names,
)
from rmadapter.data.catalog import PHOTO, zeroshot_template
from rmadapter.encoders import Encoders
from rmadapter.errors import InputError, check_choice, check_range
from rmadapter.files import write_json
from rmadapter.injection import AdaptedCLIP
from rmadapter.model import CLIPClassifier
from rmadapter.results import FORMAT, harmonic_mean
from rmadapter.run_folder import RunFolder
from rmadapter.runtime import DTYPES, choose_backend, residual_dtype, resolve_device, resolve_precision
from rmadapter.testbed import MODEL, is_testbed

DATA_FORMS = "--data FOLDER, or --data NAME --data-root DIR, or a bundled one such as --data emoji_food"


@dataclass
class EvalConfig:
    """Top-1 accuracy of an adapter, or of zero-shot CLIP, on a data set.

    Args:
        adapter: folder of an adapter; its base model, template and preprocessing are used
        method: adapter, or zeroshot for the base model alone
        data: folder of images, its name in data_root, or a bundled data set such as emoji_food; default: the bundled
            one that the adapter was trained on
        data_root: folder that holds the data sets
        style: whose drawings, for the bundled data sets; default: the adapter's, else fluent
        classes: all, base, new, or base_new for both halves and their harmonic mean
        split: test, val or train
        retention: for a bundled data set also the accuracy on its classes drawn in the unseen style
        model: open_clip model name; default: the adapter's
        pretrained: open_clip tag or weights file; default: the adapter's
        template: prompt with {}; default: the adapter's, for zeroshot the data set's published one
        precision: auto, bf16, fp16 or fp32
        device: auto, cpu, cuda or cuda:N
        fused: use the fastest adapter backend there is
        backend: one adapter backend by name
        batch_size: images a step
        workers: processes that decode images
        skip_bad_images: leave unreadable images out and count them
        out: folder for results.json
    """

    adapter: str | None = None
    method: str = "adapter"
    data: str = ""
    data_root: str | None = None
    style: str | None = None
    classes: str = "all"
    split: str = "test"
    retention: bool = True
    model: str | None = None
    pretrained: str | None = None
    template: str | None = None
    precision: str = "auto"
    device: str = "auto"
    fused: bool = True
    backend: str | None = None
    batch_size: int = 64
    workers: int = 2
    skip_bad_images: bool = False
    out: str | None = None

    def __post_init__(self) -> None:
        check_choice("method", self.method, ("adapter", "zeroshot"))
        check_choice("classes", self.classes, ("all", "base", "new", "base_new"))
        check_choice("split", self.split, ("test", "val", "train"))
        check_choice("precision", self.precision, PRECISIONS)
        if not self.data and self.adapter is None:
            raise InputError(f"data is missing; valid: {DATA_FORMS}")
        if self.adapter is None and self.method == "adapter":
            raise InputError("adapter is missing; valid: --adapter DIR, or --method zeroshot")
        if self.template is not None:
            check_template(self.template)
        check_range("batch_size", self.batch_size, 1)
        check_range("workers", self.workers, 0)


@dataclass(frozen=True)
class Loading:
    """How images come to an evaluation."""

    preprocessing: Preprocessing
    batch_size: int = 64
    workers: int = 2
    skip_bad: bool = False


@dataclass(frozen=True)
class Accuracy:
    """``top1`` in percent over ``images`` images; ``skipped`` could not be read."""

    top1: float
    images: int
    skipped: int


@torch.no_grad()
def accuracy(
    model: CLIPClassifier,
    read: Read,
    items: Sequence[Item],
    loading: Loading,
    *,
    name: str = "",
    text: Tensor,
) -> Accuracy:
    """Top-1 accuracy of ``model``, whose classes the labels of ``items`` count; the model is left in eval mode.

    ``text`` are its ``text_features()`` [classes, embed].

    Raises:
        InputError: no items, an unreadable image (without ``loading.skip_bad``).
    """
    if not items:
        raise InputError(f"there are no images to evaluate{' for ' + name if name else ''}")
    device = model.prompts.tokens.device
    images = EvalImages(read, items, eval_transform(loading.preprocessing))
    loader = DataLoader(
        images,
        loading.batch_size,
        num_workers=loading.workers,
        collate_fn=collate_readable,
        generator=torch.Generator(),
    )
    model.eval()
    seen, correct = 0, 0
    quiet = not sys.stderr.isatty()
    for batch, labels, unreadable in tqdm(
        loader, desc=f"evaluate {name}".strip(), unit="batch", disable=quiet, leave=False
    ):
        if unreadable and not loading.skip_bad:
            raise InputError(f"{unreadable[0]}; --skip-bad-images leaves such images out")
        if len(labels):
            logits = model.logits(model.image_features(batch.to(device)), text)
            correct += int((logits.argmax(-1).cpu() == labels).sum())
            seen += len(labels)
    if not seen:
        raise InputError(f"none of {len(items)} images{' for ' + name if name else ''} could be read")
    return Accuracy(100 * correct / seen, seen, len(items) - seen)


def evaluate_parts(
    model: CLIPClassifier,
    data: ImageData,
    parts: Sequence[str],
    loading: Loading,
    *,
    split: str = "test",
) -> dict[str, Any]:
    """Accuracy for each of ``parts`` ("all", "base", "new"), each classified among its own classes.

    Returns ``{"accuracy": {part: percent, "hm": ...}, "images": {part: n}, "skipped": n}``, with ``retained_PART`` in
    ``accuracy`` too where the data set comes with an unseen style, and that ``retention_style``. The model is left with
    the classes of the last part.

    Raises:
        InputError: a part of fewer than two classes; what ``accuracy`` raises.
    """
    items = getattr(data, split)
    classes = len(data.class_names)
    found: dict[str, Any] = {"accuracy": {}, "images": {}, "skipped": 0}
    for part in parts:
        model.set_classes(part_names(data.class_names, part), model.template)
        chosen = base_new_split(items, part, classes)
        with torch.no_grad():
            text = model.eval().text_features()
        result = accuracy(model, data.read, chosen, loading, name=part, text=text)
        found["accuracy"][part] = result.top1
        found["images"][part] = result.images
        found["skipped"] += result.skipped
        if data.retention is not None:
            unseen = data.retention
            kept = base_new_split(getattr(unseen, split), part)
            result = accuracy(model, unseen.read, kept, loading, name=f"{part}, {unseen.style}", text=text)
            found["accuracy"][f"retained_{part}"] = result.top1
            found["retention_style"] = unseen.style
    if {"base", "new"} <= set(parts):
        found["accuracy"]["hm"] = harmonic_mean(found["accuracy"]["base"], found["accuracy"]["new"])
    return found


def tested_parts(classes: str, class_names: Sequence[str]) -> tuple[str, ...]:
    """What ``evaluate_parts`` is asked for with "all", "base", "new" or "base_new".

    The new half of three classes is one class, on which every method is right: of "base_new" the base half is left.
    """
    if classes != "base_new":
        return (classes,)
    return ("base", "new") if len(class_names) > 3 else ("base",)


def describe(found: dict[str, Any]) -> str:
    """One line a part: accuracy and number of images."""
    lines = []
    for part, percent in found["accuracy"].items():
        count = found["images"].get(part)
        what = f"({count} images)" if count else "harmonic mean"
        if part.startswith("retained_"):
            part, what = (
                part.removeprefix("retained_"),
                f"retention: the same classes drawn by {found['retention_style']}",
            )
        lines.append(f"{part:>5}  {percent:6.2f} %  {what}")
    if found["skipped"]:
        lines.append(f"{found['skipped']} unreadable images left out")
    return "\n".join(lines)


def load_adapted(
    adapter: str | None, model: str | None, pretrained: str | None, device: torch.device, *, with_adapter: bool = True
) -> tuple[Backbone, AdaptedCLIP | None]:
    """The base model that an adapter names (or that is named here) and the adapter in it.

    Raises:
        InputError: the adapter's file does not say which model it belongs to and none is named.
    """
    if adapter is None:
        return load_backbone(model or "ViT-B-16", pretrained, device), None
    info = read_info(Path(adapter))
    if model is None and info.source is None:
        raise InputError(f"the adapter in {adapter} does not name its base model; give --model and --pretrained")
    if model is None:
        model, pretrained = info.source.name, pretrained or info.source.pretrained
    backbone = load_backbone(model, pretrained, device)
    return backbone, load(backbone.clip, adapter, source=backbone.source) if with_adapter else None


def finished_run(folder: RunFolder, config: TrainConfig) -> dict[str, Any] | None:
    """What the finished run found that ``config`` goes on with, which is said; None where there is work to do.

    Raises:
        InputError: what ``folder.check`` raises.
    """
    folder.check(config)
    done = folder.results() if config.resume else None
    if done is not None:
        print(f"the run in {folder.path} is finished; its results: {folder.results_file}\n{describe(done)}")
    return done


def load_tested(config: EvalConfig, training: dict[str, Any], *, adapted: bool) -> ImageData:
    """The data set of ``config``, by default the bundled one that ``training`` says; prints what it has to say.

    Args:
        config: the evaluation.
        training: how the adapter was trained, as its file says it; empty without one.
        adapted: whether the adapter is what is evaluated, and not the base model alone.

    Raises:
        InputError: everything ``load_data`` raises; no data set is named; ``config.out`` is a file or a training run's.
    """
    if config.out and Path(config.out).is_file():
        raise InputError(f"out is {config.out!r}, which is a file; valid: a folder")
    if config.out and RunFolder(Path(config.out)).config_file.is_file():
        raise InputError(
            f"out is {config.out!r}, where a training run is, whose results this would write over; valid: another one"
        )
    trained_on, trained_style = training.get("data") or "", training.get("style")
    name = config.data or (trained_on if is_testbed(trained_on) else "")
    if not name:
        raise InputError(f"data is missing, and the adapter was trained on {trained_on!r}; valid: {DATA_FORMS}")
    style = config.style or (trained_style if is_testbed(name) else None)
    data = load_data(name, config.data_root, style)
    for note in data.notes:
        print(note)
    # A style that training has seen measures no retention.
    seen = adapted and data.retention is not None and data.retention.style == trained_style
    return data if config.retention and not seen else replace(data, retention=None)


def encoders_of(adapted: AdaptedCLIP, info: AdapterInfo, precision: str) -> Encoders | None:
    """What runs an adapted model in evaluation, with the residual stream of its training where that is known.

    None after training through open_clip's own forward passes (--no-shortcuts): they round otherwise in 16 bits.
    """
    residual = (info.training or {}).get("residual", "auto")
    return None if residual is None else Encoders.of(adapted, stream=residual_dtype(residual, precision))


@dataclass(frozen=True)
class LoadedModel:
    """The base model that ``run_eval`` evaluates, with the adapter in it and the backend chosen; for any data set."""

    backbone: Backbone
    adapted: AdaptedCLIP | None
    backend: str | None
    precision: str
    device: torch.device


def load_model(config: EvalConfig) -> LoadedModel:
    """The model of ``config``; says the backend.

    Raises:
        InputError: everything ``load_adapted``, ``resolve_device`` and ``choose_backend`` raise.
    """
    device = resolve_device(config.device)
    precision = resolve_precision(config.precision, device)
    model_name = config.model or (MODEL if config.adapter is None and is_testbed(config.data) else None)
    with_adapter = config.method != "zeroshot"
    backbone, adapted = load_adapted(config.adapter, model_name, config.pretrained, device, with_adapter=with_adapter)
    store_backbone(backbone.clip, DTYPES[precision])
    backend = None
    if adapted is not None:
        backend, sentence = choose_backend(adapted, config.fused, config.backend)
        print(sentence)
    return LoadedModel(backbone, adapted, backend, precision, device)


def run_eval(config: EvalConfig, loaded: LoadedModel | None = None) -> dict[str, Any]:
    """``rmadapter eval``: evaluate, print, and write results.json to ``config.out`` where it is given.

    ``loaded`` is what ``load_model`` made of a configuration that differs in the data alone; default: it is loaded.
    """
    info = read_info(Path(config.adapter)) if config.adapter else None
    zeroshot = config.method == "zeroshot"
    data = load_tested(config, (info.training or {}) if info else {}, adapted=not zeroshot)
    loaded = loaded or load_model(config)
    backbone, adapted = loaded.backbone, loaded.adapted
    own = zeroshot_template(data.name) if zeroshot else info.template
    template = config.template or own or PHOTO
    model = CLIPClassifier(adapted or backbone.clip, backbone.tokenizer, data.class_names, template)
    if adapted is not None:
        model.encoders = encoders_of(adapted, info, loaded.precision)
    loading = Loading(backbone.preprocessing, config.batch_size, config.workers, config.skip_bad_images)
    parts = tested_parts(config.classes, data.class_names)
    trained = (info.training or {}) if adapted is not None else {}
    started = time.perf_counter()
    found = evaluate_parts(model, data, parts, loading, split=config.split)
    results = {
        "format": FORMAT,
        "method": "zeroshot" if zeroshot else trained.get("method", "adapter"),
        "data": data.name,
        "style": data.style,
        "split_file": data.split_id,
        "model": backbone.source.name,
        "pretrained": backbone.source.pretrained,
        "shots": trained.get("shots"),
        "seed": trained.get("seed"),
        "classes": "base" if config.classes == "base_new" else config.classes,
        "settings": {"template": template},
        "split": config.split,
        **found,
        "trained_parameters": sum(p.numel() for p in adapted.adapter_tensors().values()) if adapted else 0,
        "seconds": {"eval": time.perf_counter() - started},
        "backend": loaded.backend,
        "precision": loaded.precision,
        "device": str(loaded.device),
    }
    conclude(config, results)
    return results


def conclude(config: EvalConfig, results: dict[str, Any]) -> None:
    """Print ``results``, and write them to ``config.out`` where it is given."""
    print(describe(results))
    if config.out:
        file = Path(config.out) / "results.json"
        write_json(file, results)
        print(f"results: {file}")
