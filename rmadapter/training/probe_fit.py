"""A linear probe: logistic regression on the frozen model's image features.

The features are normalised and come from test-time preprocessing, without augmentation. The weight of the penalty is
chosen on the few-shot validation images of the classes that are trained on. The probe knows these classes alone, so
it has no accuracy on new ones.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from rmadapter.backbone import Backbone, base_hash, load_backbone
from rmadapter.config import TrainConfig
from rmadapter.data import (
    EvalImages,
    ImageData,
    Item,
    base_new_split,
    collate_readable,
    eval_transform,
    load_data,
)
from rmadapter.errors import InputError
from rmadapter.evaluation import (
    EvalConfig,
    Loading,
    conclude,
    describe,
    evaluate_parts,
    finished_run,
    load_tested,
)
from rmadapter.files import read_json, write_atomic, write_json
from rmadapter.methods.linear_probe import LINEAR_PROBE
from rmadapter.methods.method import check_no_explain
from rmadapter.model import CLIPClassifier
from rmadapter.prediction import PredictConfig, check_files, preprocessed, print_predictions, wanted_class_names
from rmadapter.prediction import predict as predict_images
from rmadapter.results import FORMAT
from rmadapter.run_folder import RunFolder
from rmadapter.runtime import environment, resolve_device
from rmadapter.training import few_shot

CONFIG_FILE, WEIGHTS_FILE = LINEAR_PROBE.file, "linear_probe.safetensors"
FILE_FORMAT = 1
FIELDS = {
    "model": dict,
    "base_hash": str,
    "class_names": list,
    "template": str,
    "training": dict,
    "weights_sha256": str,
}
# Inverse penalties of the logistic regression, as scikit-learn's C.
GRID = tuple(10.0**power for power in range(-1, 6))
# Without validation images: CLIP's own 0.316 for ImageNet, on features that have a norm of about 10 there and 1 here.
DEFAULT_C = 31.6


class LinearProbe(CLIPClassifier):
    """A classifier by ``weight`` [classes, embed] and ``bias`` [classes] among ``trained`` names or a part of them."""

    def __init__(
        self,
        clip: nn.Module,
        tokenizer: Callable[..., Tensor],
        trained: Sequence[str],
        template: str,
        weight: Tensor,
        bias: Tensor,
    ):
        super().__init__(clip, tokenizer, trained, template)
        self.trained = list(trained)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def set_classes(self, class_names: Sequence[str], template: str) -> None:
        """Classify among these names, which have to be those trained on or some of them.

        Raises:
            InputError: a name that was not trained on.
        """
        trained = getattr(self, "trained", class_names)  # none yet where the base class sets them
        self.rows = rows_of(list(class_names), list(trained))
        super().set_classes(class_names, template)

    def text_features(self) -> Tensor:
        """The classes' weights [classes, embed], in the place of their prompts' features."""
        return self.weight[self.rows]

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """[batch, classes] in fp32."""
        return F.normalize(image_features.float(), dim=-1) @ text_features.T + self.bias[self.rows]


def rows_of(class_names: list[str], trained: list[str]) -> list[int]:
    """For each name its place in ``trained``; of a half of them in its order, which tells equal names apart.

    Raises:
        InputError: a name that is not in it.
    """
    count = len(class_names)
    for first in range(len(trained) - count + 1):
        if trained[first : first + count] == class_names:
            return list(range(first, first + count))
    if unknown := [name for name in class_names if name not in trained]:
        raise InputError(
            f"the linear probe was not trained on class {unknown[0]!r}; valid: the {len(trained)} classes that it was "
            "trained on, or some of them"
        )
    return [trained.index(name) for name in class_names]


def fit(features: Tensor, labels: Tensor, classes: int, inverse_penalty: float, start: Tensor | None = None) -> Tensor:
    """Logistic regression: ``[classes, embed + 1]`` (the last column is the bias), of features [n, embed].

    Minimises ``|w|^2 / 2 + C sum(cross-entropy)`` with L-BFGS in fp64, the bias without penalty, as scikit-learn.
    """
    features, device = features.double(), features.device
    solution = torch.zeros(classes, features.shape[1] + 1, dtype=torch.float64, device=device)
    if start is not None:
        solution.copy_(start)
    solution.requires_grad_(True)
    optimizer = torch.optim.LBFGS([solution], max_iter=300, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = features @ solution[:, :-1].T + solution[:, -1]
        # Divided by C n, which moves no minimum, so that one tolerance suits every C.
        penalty = solution[:, :-1].square().sum() / (2 * inverse_penalty * len(labels))
        value = F.cross_entropy(logits, labels) + penalty
        value.backward()
        return value

    optimizer.step(loss)
    return solution.detach()


def choose(train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor] | None, classes: int) -> tuple[Tensor, float]:
    """The solution and its C: the best of ``GRID`` on the validation images, the smallest of equals."""
    if val is None:
        return fit(*train, classes, DEFAULT_C), DEFAULT_C
    best: tuple[int, float, Tensor] | None = None
    solution = None
    for inverse_penalty in GRID:
        solution = fit(*train, classes, inverse_penalty, solution)
        logits = val[0].double() @ solution[:, :-1].T + solution[:, -1]
        correct = int((logits.argmax(-1) == val[1]).sum())
        if best is None or correct > best[0]:
            best = (correct, inverse_penalty, solution)
    return best[2], best[1]


def train(config: TrainConfig) -> dict[str, Any]:
    """Fit a probe on the few-shot sample, save it in ``adapter/`` of the run folder, evaluate it.

    Raises:
        InputError: as ``training.train``; an unreadable image.
    """
    check_no_explain(config, LINEAR_PROBE.name)
    folder = RunFolder(config.run_folder)
    if (done := finished_run(folder, config)) is not None:
        return done
    device = resolve_device(config.device)
    data = load_data(config.data, config.data_root, config.style)
    for note in data.notes:
        print(note)
    sample, items, names = few_shot(config, data, data.read)
    val_items = base_new_split(sample.val, config.classes, len(data.class_names))
    backbone = load_backbone(config.model, config.pretrained, device)
    folder.prepare(config)
    write_json(folder.environment_file, environment(device))
    sample.save(folder.sample_file)

    began = time.perf_counter()
    fitted = encode(backbone, data, items, config, device)
    validated = encode(backbone, data, val_items, config, device) if val_items else None
    solution, inverse_penalty = choose(fitted, validated, len(names))
    seconds = time.perf_counter() - began
    print(f"linear probe: C = {inverse_penalty:g}, {len(items)} images of {len(names)} classes, {seconds:.1f} s")
    probe = _probe(backbone, names, config.template, solution)
    training = {
        "method": LINEAR_PROBE.name,
        "data": data.name,
        "style": data.style,
        "classes": config.classes,
        "shots": config.shots,
        "seed": config.seed,
        "C": inverse_penalty,
    }
    save(folder.adapter, probe, backbone, training)

    found = {"accuracy": {}, "images": {}, "skipped": 0}
    began = time.perf_counter()
    if config.evaluate:
        loading = Loading(backbone.preprocessing, config.eval_batch_size, config.workers, config.skip_bad_images)
        # New classes are unknown to it: of the halves it has the one that it was trained on.
        found = evaluate_parts(probe, data, (config.classes,), loading)
        print(describe(found))
    results = {
        "format": FORMAT,
        "method": LINEAR_PROBE.name,
        "data": data.name,
        "style": data.style,
        "split_file": data.split_id,
        "model": config.model,
        "pretrained": config.pretrained,
        "shots": config.shots,
        "seed": config.seed,
        "classes": config.classes,
        "settings": {"C": DEFAULT_C if validated is None else list(GRID)},
        "split": "test",
        **found,
        "trained_parameters": solution.numel(),
        "seconds": {"train": seconds, "eval": time.perf_counter() - began},
        "precision": "fp32",
        "device": str(device),
        "few_shot_hash": sample.hash,
    }
    write_json(folder.results_file, results)
    print(f"adapter: {folder.adapter}\nresults: {folder.results_file}")
    return results


@torch.no_grad()
def encode(
    backbone: Backbone, data: ImageData, items: Sequence[Item], config: TrainConfig, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Normalised image features [n, embed] in fp32 and labels [n] of ``items``, on ``device``."""
    images = EvalImages(data.read, items, eval_transform(backbone.preprocessing))
    loader = DataLoader(
        images,
        config.eval_batch_size,
        num_workers=config.workers,
        collate_fn=collate_readable,
        generator=torch.Generator(),
    )
    features, labels = [], []
    for batch, batch_labels, unreadable in loader:
        if unreadable and not config.skip_bad_images:
            raise InputError(f"{unreadable[0]}; --skip-bad-images leaves such images out")
        if len(batch_labels):
            features.append(F.normalize(backbone.clip.encode_image(batch.to(device)).float(), dim=-1))
            labels.append(batch_labels.to(device))
    if not labels:
        raise InputError(f"none of {len(items)} images could be read")
    return torch.cat(features), torch.cat(labels)


def _probe(backbone: Backbone, names: Sequence[str], template: str, solution: Tensor) -> LinearProbe:
    weight, bias = solution[:, :-1].float().contiguous(), solution[:, -1].float().contiguous()
    return LinearProbe(backbone.clip, backbone.tokenizer, names, template, weight, bias)


def save(folder: Path, probe: LinearProbe, backbone: Backbone, training: dict[str, Any]) -> None:
    """``linear_probe.safetensors`` (weight, bias) and ``linear_probe.json`` (names, base model, how it was trained)."""
    tensors = {"weight": probe.weight.cpu(), "bias": probe.bias.cpu()}
    write_atomic(folder / WEIGHTS_FILE, lambda path: save_file(tensors, path))
    values = {
        "format": FILE_FORMAT,
        "model": {"name": backbone.source.name, "pretrained": backbone.source.pretrained},
        "base_hash": base_hash(backbone.clip),
        "class_names": probe.trained,
        "template": probe.template,
        "training": training,
        "weights_sha256": hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest(),
    }
    write_json(folder / CONFIG_FILE, values)


def read(folder: Path) -> dict[str, Any]:
    """What ``linear_probe.json`` in ``folder`` says.

    Raises:
        InputError: a damaged file or one of another format.
    """
    values = read_json(folder / CONFIG_FILE, "linear probe file")
    if not isinstance(values, dict) or values.get("format") != FILE_FORMAT:
        raise InputError(f"{folder / CONFIG_FILE} is no linear probe of format {FILE_FORMAT}")
    for name, kind in FIELDS.items():
        if not isinstance(values.get(name), kind):
            raise InputError(f"the linear probe in {folder} is damaged: field {name} is missing or malformed")
    return values


def load(
    folder: Path, values: dict[str, Any], device: torch.device, model: str | None = None, pretrained: str | None = None
) -> tuple[LinearProbe, Backbone]:
    """The probe in ``folder``, whose file says ``values``, on its base model (or the one named).

    Raises:
        InputError: damaged weights or those of another file, another base model.
    """
    try:
        tensors = load_file(folder / WEIGHTS_FILE)
        weight, bias = tensors["weight"], tensors["bias"]
        fits = hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest() == values["weights_sha256"]
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(f"the linear probe in {folder} is damaged: {error}") from error
    names, source = values["class_names"], values["model"]
    if not fits or weight.shape[0] != len(names):
        raise InputError(f"{folder / WEIGHTS_FILE} is not the file that {CONFIG_FILE} was written with")
    name, tag = (model, pretrained) if model else (source["name"], pretrained or source["pretrained"])
    backbone = load_backbone(name, tag, device)
    if base_hash(backbone.clip) != values["base_hash"]:
        raise InputError(f"the linear probe in {folder} belongs to other base weights than those of {backbone.source}")
    template = values["template"]
    return LinearProbe(backbone.clip, backbone.tokenizer, names, template, weight.to(device), bias.to(device)), backbone


def _check_no_template(config: EvalConfig | PredictConfig) -> None:
    if config.template is not None:
        raise InputError(f"template is {config.template!r}, but a linear probe has no prompts; valid: without it")


def evaluate(config: EvalConfig) -> dict[str, Any]:
    """``rmadapter eval`` of a probe: on all classes, or on the half that it was trained on."""
    device = resolve_device(config.device)
    folder = Path(config.adapter)
    values = read(folder)
    trained = values["training"]
    if config.method == "zeroshot":
        raise InputError(
            f"method is 'zeroshot', but {folder} holds a linear probe; valid: without --adapter, with --model "
            f"{values['model']['name']}"
        )
    if config.classes == "base_new":
        raise InputError("classes is 'base_new', but a linear probe knows one half alone; valid: all, base, new")
    _check_no_template(config)
    data = load_tested(config, trained, adapted=True)
    half = trained.get("classes")
    if half in ("base", "new") and data.name == trained.get("data") and config.classes != half:
        raise InputError(f"classes is {config.classes!r}, but the linear probe knows one half alone; valid: {half}")
    probe, backbone = load(folder, values, device, config.model, config.pretrained)
    loading = Loading(backbone.preprocessing, config.batch_size, config.workers, config.skip_bad_images)
    began = time.perf_counter()
    found = evaluate_parts(probe, data, (config.classes,), loading, split=config.split)
    results = {
        "format": FORMAT,
        "method": LINEAR_PROBE.name,
        "data": data.name,
        "style": data.style,
        "split_file": data.split_id,
        "model": backbone.source.name,
        "pretrained": backbone.source.pretrained,
        "shots": trained.get("shots"),
        "seed": trained.get("seed"),
        "classes": config.classes,
        "split": config.split,
        **found,
        "trained_parameters": probe.weight.numel() + probe.bias.numel(),
        "seconds": {"eval": time.perf_counter() - began},
        "precision": "fp32",
        "device": str(device),
    }
    conclude(config, results)
    return results


def predict(config: PredictConfig) -> list[dict[str, Any]]:
    """``rmadapter predict`` with a probe, among the classes it was trained on or some of them."""
    device = resolve_device(config.device)
    check_files(config.images)
    _check_no_template(config)
    folder = Path(config.adapter)
    values = read(folder)
    names = wanted_class_names(config, values["class_names"])
    probe, backbone = load(folder, values, device, config.model, config.pretrained)
    probe.set_classes(names, probe.template)
    images = preprocessed(config.images, backbone.preprocessing)
    return print_predictions(config, names, predict_images(probe, images, batch_size=config.batch_size))
