"""``rmadapter export``: a trained classifier as files for other software."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.clip.identity import ModelSource
from rmadapter.config import check_template
from rmadapter.config.chosen_model import check_class_choice, check_model_choice
from rmadapter.config.paths import ModelText, PathText
from rmadapter.data import ImageData, Preprocessing, load_data
from rmadapter.data.catalog import PHOTO
from rmadapter.errors import InputError, check_choice, check_range
from rmadapter.evaluation.calibration import Calibration, calibration_for
from rmadapter.evaluation.eval_images import Loading
from rmadapter.evaluation.loaded_model import LoadedModel, load_base, load_stored
from rmadapter.evaluation.predict import wanted_class_names
from rmadapter.evaluation.stored import holds_probe
from rmadapter.export.formats import FORMATS, Format
from rmadapter.export.graphs import ClassifierGraph, Graph, TextGraph, make_graphs
from rmadapter.export.int8 import quantize
from rmadapter.export.on_data import Measured, compare_on, known_items
from rmadapter.export.pixels import PixelPreprocessing
from rmadapter.export.tracing import trace
from rmadapter.export.written import Written, made_whole, measured, write_files
from rmadapter.files import check_folder_name, write_json
from rmadapter.tuners.adapter_file import read_info
from rmadapter.tuners.backend_choice import choose_backend
from rmadapter.tuners.probe import load_probe, read_probe
from rmadapter.tuners.stored_facts import StoredFacts

PRECISION = "fp32"
EXPORT_FILE = "export.json"


@dataclass
class ExportConfig:
    """A classifier as files for other software, in fp32 and for the CPU: from images to probabilities.

    Args:
        adapter: folder of an adapter; without one the base model alone is exported
        onnx: folder for ONNX files
        pt2: folder for files of torch.export
        aotinductor: folder for packages that AOTInductor compiles for this machine's CPU
        towers: the two towers apart, from images to image_emb, from tokens to text_emb and logit_scale
        preprocess: resize, crop and normalise inside, from 8-bit images of any size
        int8: ONNX also with the frozen matrices in 8 bits; what is trained stays in fp32
        classes: class names, separated by commas, one that stands twice counts once; default: those the adapter was
            trained on
        classes_file: text file with one class name a line, in place of classes; a line that begins with "# " is none
        template: prompt with {}; default: the adapter's, else 'a photo of a {}.'
        strength: how strongly the adapter counts: 0 is zero-shot CLIP, 1 as trained, above 1 beyond
        check: data set on which the files are compared with the model: a folder, a name in data_root, a bundled one
        data_root: folder that holds the data sets
        style: whose drawings, for the bundled data sets
        split: test, val or train, of the data set to check with
        batch_size: images a step of the check; with preprocess it is 1
        workers: processes that decode images
        skip_bad_images: leave unreadable images out and count them
        model: open_clip model name; default: the adapter's
        pretrained: open_clip tag, weights file, or none for random weights; default: the adapter's
        trust_base: load the folder, hub repository or weights file that the adapter alone names as its base model
    """

    adapter: PathText | None = None
    onnx: PathText | None = None
    pt2: PathText | None = None
    aotinductor: PathText | None = None
    towers: bool = False
    preprocess: bool = False
    int8: bool = False
    classes: str | None = None
    classes_file: PathText | None = None
    template: str | None = None
    strength: float = 1.0
    check: PathText | None = None
    data_root: PathText | None = None
    style: str | None = None
    split: str = "test"
    batch_size: int = 32
    workers: int = 2
    skip_bad_images: bool = False
    model: ModelText | None = None
    pretrained: PathText | None = None
    trust_base: bool = False

    def __post_init__(self) -> None:
        if not self.folders:
            raise InputError("no folder is given; valid: one or more of --onnx DIR, --pt2 DIR, --aotinductor DIR")
        if self.int8 and self.onnx is None:
            raise InputError("int8 is True, but onnx is None; valid: --int8 with --onnx DIR, whose runtime it is for")
        check_model_choice(self.adapter, self.model)
        check_class_choice(self.classes, self.classes_file)
        if self.template is not None:
            check_template(self.template)
        check_range("strength", self.strength, 0)
        check_choice("split", self.split, ("test", "val", "train"))
        check_range("batch_size", self.batch_size, 1)
        check_range("workers", self.workers, 0)

    @property
    def folders(self) -> dict[str, Path]:
        """Where files of each wanted format go, by its name in ``FORMATS``."""
        return {name: Path(getattr(self, name)) for name in FORMATS if getattr(self, name) is not None}


@dataclass(frozen=True)
class Stored:
    """A stored classifier and what its files say.

    Attributes:
        classifier: among the wanted classes.
        preprocessing: of its images.
        source: the base model's name.
        loaded: the model with its adapter; None for a probe, which has none.
        weights_sha256: of the adapter's weights; None without an adapter.
        calibration: that of the adapter, where it holds for these classes, prompt and strength.
    """

    classifier: CLIPClassifier
    preprocessing: Preprocessing
    source: ModelSource
    loaded: LoadedModel | None
    weights_sha256: str | None
    calibration: Calibration | None

    @property
    def temperature(self) -> float:
        """What its logits are divided by."""
        return 1.0 if self.calibration is None else self.calibration.temperature

    def fastest(self) -> CLIPClassifier:
        """The classifier as prediction runs it."""
        if self.loaded is None:
            return self.classifier
        if self.loaded.adapted is not None:
            choose_backend(self.loaded.adapted, fused=True, backend=None)
        return self.loaded.classifier(self.classifier.class_names, self.classifier.template)

    @property
    def frozen(self) -> list[torch.Tensor]:
        """The base model's weights, without those of what is trained in it."""
        adapted = self.loaded.adapted if self.loaded is not None else None
        trained = set() if adapted is None else {id(tensor) for tensor in adapted.adapter_tensors().values()}
        return [weight for weight in self.classifier.clip.parameters() if id(weight) not in trained]


def load_classifier(config: ExportConfig) -> Stored:
    """What ``config`` wants to be exported, on the CPU, its adapters in plain PyTorch.

    Raises:
        InputError: what loading raises; fewer than two classes, or ones that the stored method does not know.
    """
    device = torch.device("cpu")
    folder = Path(config.adapter) if config.adapter is not None else None
    if folder is not None and holds_probe(folder):
        if config.template is not None:
            raise InputError(f"template is {config.template!r}, but a linear probe has no prompts; valid: without it")
        info = read_probe(folder)
        names = wanted_class_names(config, info.class_names)
        what = f"the linear probe in {folder}"
        backbone = load_base(info, what, config.model, config.pretrained, device, trust_base=config.trust_base)
        probe = load_probe(folder, info, backbone)
        probe.set_classes(names, info.template)
        probe.set_strength(config.strength)
        calibration = _calibration(config, info.weights_sha256, probe)
        return Stored(probe, backbone.preprocessing, backbone.source, None, info.weights_sha256, calibration)
    facts: StoredFacts | None = None if folder is None else read_info(folder)
    names = wanted_class_names(config, facts.class_names if facts else None)
    loaded = load_stored(
        config.adapter,
        config.model,
        config.pretrained,
        device=device,
        precision=PRECISION,
        fused=False,
        trust_base=config.trust_base,
    )
    classifier = loaded.classifier(names, config.template or (facts.template if facts else None) or PHOTO)
    classifier.set_strength(config.strength)
    backbone = loaded.backbone
    sha256 = facts.weights_sha256 if facts else None
    calibration = _calibration(config, sha256, classifier)
    return Stored(classifier, backbone.preprocessing, backbone.source, loaded, sha256, calibration)


def _calibration(config: ExportConfig, sha256: str | None, classifier: CLIPClassifier) -> Calibration | None:
    return calibration_for(
        config.adapter, sha256, classifier.class_names, classifier.template, config.strength, sets=None
    )


def run_export(config: ExportConfig) -> dict[Path, dict[str, Any]]:
    """``rmadapter export``: trace, write, compare, print; returns what ``export.json`` in each folder says.

    Raises:
        InputError: a file in a folder's place, a missing package, what ``load_classifier`` raises, a part that cannot
            be exported, answers that differ from the model's, a data set that has none of the classes.
    """
    for name, folder in config.folders.items():
        check_folder_name(name, folder)
    forms = {name: FORMATS[name] for name in config.folders}
    for form in forms.values():
        form.check_installed()
    data = None if config.check is None else load_data(config.check, config.data_root, config.style)
    for note in data.notes if data is not None else ():
        print(note)
    stored = load_classifier(config)
    items = [] if data is None else known_items(getattr(data, config.split), data, stored.classifier.class_names)
    pixels = PixelPreprocessing(stored.preprocessing) if config.preprocess else None
    size = stored.preprocessing.size
    graphs = make_graphs(stored.classifier, size, pixels, towers=config.towers, temperature=stored.temperature)
    for graph in graphs:
        graph.metadata = _metadata(config, stored)
    programs = [trace(graph) for graph in graphs]
    model = ClassifierGraph(stored.classifier, size, pixels, stored.temperature)
    written: dict[str, list[Written]] = {}
    for name, form in forms.items():
        written[name] = [write_files(form, graphs, programs, model, config.folders[name])]
        if config.int8 and name == "onnx":
            written[name].append(_write_int8(form, written[name][0], model, stored))
        for files in written[name]:
            print(_described(files))
    found: dict[str, Measured] = {}
    if data is not None:
        found = _check(config, stored, data, items, written)
        print(_table(data, config.split, len(stored.classifier.class_names), found))
    facts = {}
    for folder in dict.fromkeys(config.folders.values()):
        several = [files for name in forms if config.folders[name] == folder for files in written[name]]
        facts[folder] = _facts(config, stored, graphs, several, found)
        write_json(folder / EXPORT_FILE, facts[folder])
    return facts


def _metadata(config: ExportConfig, stored: Stored) -> dict[str, str]:
    """What every file says of itself."""
    return {
        "class_names": json.dumps(stored.classifier.class_names),
        "template": stored.classifier.template,
        "strength": repr(config.strength),
        "temperature": repr(stored.temperature),
    }


def _write_int8(form: Format, whole: Written, model: ClassifierGraph, stored: Stored) -> Written:
    """Files beside those of ``whole``, with the frozen matrices in 8 bits."""
    names = [f"{graph.part}.int8{form.suffix}" for graph in whole.graphs]
    with made_whole(whole.folder) as beside:
        for file, name in zip(whole.files, names, strict=True):
            quantize(whole.folder / file, beside / name, stored.frozen)
        return measured(f"{form.name} int8", form, whole.graphs, names, model, beside, whole.folder)


def _described(files: Written) -> str:
    paths = ", ".join(str(files.folder / name) for name in files.files)
    return (
        f"{files.name}: {paths} ({files.size / 1e6:.1f} MB); probabilities differ from the model's by "
        f"{files.difference:.1e} at most on random images"
    )


def _check(
    config: ExportConfig, stored: Stored, data: ImageData, items: list, written: dict[str, list[Written]]
) -> dict[str, Measured]:
    """Accuracy and speed of the model and of all files."""
    classifier = stored.fastest().eval()
    with torch.no_grad():
        text = classifier.text_features()
    answers = {files.name: files.load(FORMATS[name]) for name, several in written.items() for files in several}
    loading = Loading(stored.preprocessing, config.batch_size, config.workers, config.skip_bad_images)
    return compare_on(
        data,
        items,
        loading,
        lambda images: classifier.classify(images, text).softmax(-1),
        answers,
        pixels=config.preprocess,
    )


def _table(data: ImageData, split: str, classes: int, found: dict[str, Measured]) -> str:
    whole = found["model"]
    width = max(map(len, found))
    lines = [
        f"{data.name}, {split}: {whole.images:,} images among {classes} classes",
        f"{'':{width}}  accuracy  images/s",
    ]
    for name, one in found.items():
        change = "" if one is whole else f"  {one.top1 - whole.top1:+.2f} points"
        lines.append(f"{name:{width}}  {one.top1:6.2f} %  {one.images_a_second:8.1f}{change}")
    return "\n".join(lines)


def _facts(
    config: ExportConfig, stored: Stored, graphs: list[Graph], written: list[Written], found: dict[str, Measured]
) -> dict[str, Any]:
    """What software that runs the files of one folder has to know, as plain values."""
    classifier = stored.classifier
    shown = {name: found[name] for name in ("model", *(files.name for files in written)) if name in found}
    text = next((graph for graph in graphs if isinstance(graph, TextGraph)), None)
    return {
        "files": {
            files.name: {
                graph.part: {
                    "file": file,
                    "input": graph.input,
                    "open_dimensions": {str(number): name for number, name in graph.dynamic.items()},
                    "outputs": list(graph.outputs),
                }
                for graph, file in zip(files.graphs, files.files, strict=True)
            }
            | {"largest_difference": files.difference}
            for files in written
        },
        "class_names": classifier.class_names,
        "template": classifier.template,
        "strength": config.strength,
        "temperature": stored.temperature,
        "tokens": None if text is None else text.tokens(classifier.class_names).tolist(),
        "preprocessing": stored.preprocessing.to_dict(),
        "preprocessing_inside": config.preprocess,
        "model": {"name": stored.source.name, "pretrained": stored.source.pretrained},
        "adapter_sha256": stored.weights_sha256,
        "check": {name: {"top1": one.top1, "images_a_second": one.images_a_second} for name, one in shown.items()},
    }
