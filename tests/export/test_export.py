"""Exported files: the numbers of the model, for any number of rows, whatever was trained; what cannot be exported."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import SMALL_CONFIG, small_clip
from PIL import Image
from safetensors.torch import load_file, save_file

from rmadapter import RMAdapterConfig
from rmadapter.cli import main
from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.clip.identity import ModelSource
from rmadapter.data import Preprocessing, eval_transform, load_data
from rmadapter.errors import InputError
from rmadapter.evaluation.calibration import Calibration
from rmadapter.export import formats
from rmadapter.export.export_command import EXPORT_FILE, ExportConfig, run_export
from rmadapter.export.graphs import PROBABILITIES, ClassifierGraph, make_graphs, probabilities_of
from rmadapter.export.on_data import known_items
from rmadapter.export.pixels import PixelPreprocessing
from rmadapter.export.tracing import trace
from rmadapter.export.written import write_files
from rmadapter.methods import METHODS
from rmadapter.methods.options import configure
from rmadapter.tuners.adapted_classifier import AdaptedClassifier
from rmadapter.tuners.frozen_classifier import FrozenClassifier
from rmadapter.tuners.injection import inject
from rmadapter.tuners.tuner import Features

NAMES = ["ant", "bee", "honey bee"]
TEMPLATE = "a photo of a {}."
SHALLOW = ["--prompt.text_depth=2", "--prompt.vision_depth=2"]


def clip_of(blocks):
    return small_clip(**{tower: {**SMALL_CONFIG[tower], "layers": blocks} for tower in ("vision_cfg", "text_cfg")})


def classifier_of(tokenizer, method, *options, blocks=2):
    """One of ``method`` in a small CLIP; all that is trained is drawn, so that nothing of it adds zero."""
    clip = clip_of(blocks)
    # At the usual scale of 0.001 nobody would see whether the adapters are there.
    adapters = [f"--adapter.layers={blocks}", "--adapter.scale=0.5"] if "adapter" in METHODS[method].groups else []
    config = configure(method, ["--data", "x", *adapters, *options])
    settings = {"tokenizer": tokenizer, "template": TEMPLATE, "class_names": NAMES, "cached_images": 6}
    model = inject(clip, config.tuned, seed=1, **settings)
    model.set_backend("eager")
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in model.trained().values():
            tensor.add_(torch.randn(tensor.shape, generator=draw), alpha=0.2)
    return AdaptedClassifier(model, tokenizer, NAMES, TEMPLATE)


@torch.no_grad()
def assert_exported_as_it_is(classifier, towers):
    """The traced graphs give the probabilities that the model itself gives, for one image and for five."""
    batches = [torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count)) for count in (1, 5)]
    expected = [classifier.eval()(images).logits.softmax(-1) for images in batches]
    with classifier.untouched():
        frozen = CLIPClassifier(classifier.clip, classifier.tokenizer, NAMES, TEMPLATE)(batches[1]).logits.softmax(-1)
    assert (expected[1] - frozen).abs().max() > 1e-2  # what is trained is seen
    graphs = make_graphs(classifier, 32, None, towers=towers)
    image, *text = [trace(graph).module() for graph in graphs]
    of_classes = text[0](graphs[1].tokens(NAMES)) if towers else {}
    for images, probabilities in zip(batches, expected, strict=True):
        found = image(images)
        found = probabilities_of({**found, **of_classes}) if towers else found[PROBABILITIES]
        assert (found - probabilities).abs().max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("zeroshot", "linear-probe", "cocoop")])
def test_every_method_is_exported(method, tokenizer):
    deep = method in ("ivlp", "maple", "promptsrc", "coprompt")
    own = {"vpt": SHALLOW[1:], "mmrl": ["--space.layers=1-2"]}
    options = SHALLOW if deep else own.get(method, [])
    classifier = classifier_of(tokenizer, method, *options)
    if method.startswith("tip-adapter"):
        classifier.adapted.tuners[0].fill(torch.randn(6, 32), torch.arange(6) % 3)
    assert_exported_as_it_is(classifier, False)
    if classifier.inference is not None:  # among other classes one kind of its image features answers, and not two
        classifier.elsewhere = True
        classifier.set_classes(NAMES, TEMPLATE)
    if classifier.adapted.classes is None:
        assert_exported_as_it_is(classifier, True)


@pytest.mark.parametrize(
    ("method", "options", "towers", "message"),
    [
        ("cocoop", [], False, r"the text tower cannot be exported: its learned tokens depend on the image"),
        ("taskres", [], True, "towers: the text tower cannot be exported by itself: ClassOffsets has something of"),
        (
            "coop",
            ["--prompt.init=random", "--prompt.place=middle"],
            True,
            "with prompt.place 'middle' the places of its learned tokens depend on the class name; valid: no --towers",
        ),
    ],
)
def test_what_cannot_be_exported_is_named(method, options, towers, message, tokenizer):
    with pytest.raises(InputError, match=message):
        make_graphs(classifier_of(tokenizer, method, *options), 32, None, towers=towers)


def test_what_the_exporter_does_not_take_is_named(tokenizer):
    classifier = classifier_of(tokenizer, "single")
    (graph,) = make_graphs(classifier, 32, None, towers=False)
    graph.features = lambda images: torch.from_numpy(images.numpy())
    with pytest.raises(InputError, match="the classifier cannot be exported: "):
        trace(graph)


class TestPixels:
    """Preprocessing inside the graph against Pillow's."""

    @pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
    @pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
    def test_sizes_and_filters(self, resize_mode, interpolation):
        preprocessing = Preprocessing(32, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), interpolation, resize_mode)
        module, reference = PixelPreprocessing(preprocessing), eval_transform(preprocessing)
        random = np.random.default_rng(0)
        # Wide ones, one of the size itself, smaller ones; of odd differences the crop rounds to even.
        for height, width in [(36, 41), (37, 100), (32, 32), (20, 50), (63, 64), (150, 233), (32, 47), (32, 49)]:
            image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
            found = module(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None])[0]
            assert (found - reference(image)).abs().max() < 1e-5, (height, width)

    def test_tall_images_within_two_levels(self):
        """Whichever side Pillow begins with; a picture without noise."""
        preprocessing = Preprocessing(32, (0, 0, 0), (1, 1, 1))
        rows, columns = np.mgrid[:90, :37]
        image = Image.fromarray(np.stack([rows * 2, columns * 6, rows + columns], -1).astype(np.uint8))
        found = PixelPreprocessing(preprocessing)(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None])[0]
        assert (found - eval_transform(preprocessing)(image)).abs().max() <= 2 / 255

    def test_another_way_of_resizing_is_refused(self):
        with pytest.raises(InputError, match="resize_mode is 'longest'; valid: 'shortest', 'squash'"):
            PixelPreprocessing(Preprocessing(32, (0, 0, 0), (1, 1, 1), resize_mode="longest"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """The folder of an adapter in a CLIP of one block a tower, as drawn."""
    folder = tmp_path_factory.mktemp("adapter")
    towers = {tower: {**SMALL_CONFIG[tower], "layers": 1} for tower in ("vision_cfg", "text_cfg")}
    config = {"model_cfg": {**SMALL_CONFIG, **towers}, "preprocess_cfg": {"size": [32, 32]}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    clip = small_clip(**towers)
    save_file(clip.state_dict(), folder / "open_clip_model.safetensors")
    model = inject(
        clip, RMAdapterConfig(layers="1", scale=0.1), seed=1, source=ModelSource(f"local-dir:{folder}", None)
    )
    model.save_adapter(folder, class_names=["ant", "bee"], template=TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def exported(adapter, animals, tmp_path_factory):
    """The folder of one run of the command: ONNX, in 8 bits too, and torch.export, of pixels."""
    folder = tmp_path_factory.mktemp("exported")
    words = ["--adapter", str(adapter), "--trust-base", "--check", str(animals), "--workers", "0"]
    assert main(["export", *words, "--preprocess", "--onnx", str(folder), "--int8", "--pt2", str(folder)]) == 0
    return folder


def session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_onnx_of_pixels_answers_as_predict_does(exported, adapter, animals, capsys):
    capsys.readouterr()
    path = animals / "bee" / "03.png"
    assert main(["predict", "--adapter", str(adapter), "--trust-base", str(path), "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    expected = {one["class"]: one["probability"] for one in record["predictions"]}
    facts = json.loads((exported / EXPORT_FILE).read_text())
    pixels = np.array(Image.open(path).convert("RGB")).transpose(2, 0, 1)[None].repeat(3, 0)
    (found,) = session(exported / "classifier.onnx").run(["probabilities"], {"images": pixels})
    assert found.shape == (3, 2)
    for row in found:
        assert dict(zip(facts["class_names"], row.tolist(), strict=True)) == pytest.approx(expected, abs=1e-4)
    shape = [
        dim.dim_param or dim.dim_value
        for dim in graph_of(exported / "classifier.onnx").input[0].type.tensor_type.shape.dim
    ]
    assert shape == ["batch", 3, "height", "width"]


def graph_of(path):
    return onnx.load(path).graph


@pytest.mark.slow
def test_strength_and_temperature_are_in_the_file(adapter, animals, tmp_path, capsys):
    folder, out = shutil.copytree(adapter, tmp_path / "adapter"), tmp_path / "out"
    words = ["--adapter", str(folder), "--trust-base", "--strength", "0.5"]
    data = ["--data", str(animals), "--classes", "base", "--workers", "0", "--precision", "fp32"]
    assert main(["calibrate", *words, *data]) == 0
    assert main(["export", *words, "--onnx", str(out), "--int8", "--pt2", str(out)]) == 0
    capsys.readouterr()
    path = animals / "bee" / "03.png"
    assert main(["predict", *words, "--precision", "fp32", "--json", str(path)]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    expected = [one["probability"] for one in sorted(record["predictions"], key=lambda one: one["index"])]
    facts = json.loads((out / EXPORT_FILE).read_text())
    image = eval_transform(Preprocessing.from_dict(facts["preprocessing"]))(Image.open(path).convert("RGB"))
    (found,) = session(out / "classifier.onnx").run(["probabilities"], {"images": image[None].numpy()})
    assert found[0].tolist() == pytest.approx(expected, abs=1e-5)
    temperature = Calibration.load(folder).temperature
    assert temperature != pytest.approx(1, abs=0.01)
    assert (facts["strength"], facts["temperature"]) == (0.5, temperature)
    said = {"class_names": '["ant", "bee"]', "template": TEMPLATE, "strength": "0.5", "temperature": repr(temperature)}
    for name in ("classifier.onnx", "classifier.int8.onnx"):
        assert {one.key: one.value for one in onnx.load(out / name).metadata_props}.items() >= said.items()
    kept = dict.fromkeys(said, "")
    torch.export.load(out / "classifier.pt2", extra_files=kept)
    assert kept == said


@torch.no_grad()
def test_the_towers_temperature_is_in_the_scale_and_the_bias(tokenizer):
    classifier = CLIPClassifier(clip_of(1), tokenizer, NAMES, TEMPLATE)
    classifier.clip.logit_bias = torch.nn.Parameter(torch.tensor(-3.0))
    image, text = make_graphs(classifier, 32, None, towers=True, temperature=2.5)
    images = image.example(3)
    found = probabilities_of({**image(images), **text(text.tokens(NAMES))})
    torch.testing.assert_close(found, (classifier(images).logits / 2.5).softmax(-1))
    assert text(text.tokens(NAMES))["logit_bias"] == pytest.approx(-3 / 2.5)


@pytest.mark.slow
def test_the_towers_files_have_the_names_of_their_outputs(tokenizer, tmp_path):
    # Coupled tokens in both towers, and adapters behind them.
    classifier = classifier_of(tokenizer, "coprompt", "--prompt.text_depth=1", "--prompt.vision_depth=1", blocks=1)
    graphs = make_graphs(classifier, 32, None, towers=True)
    model = ClassifierGraph(classifier, 32)
    written = write_files(formats.FORMATS["onnx"], graphs, [trace(graph) for graph in graphs], model, tmp_path)
    assert written.difference < 1e-5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.onnx", "text.onnx"]
    image, text = (session(tmp_path / name) for name in written.files)
    assert [out.name for out in image.get_outputs()] == ["image_emb"]
    assert [out.name for out in text.get_outputs()] == ["text_emb", "logit_scale"]
    embeddings, scale = text.run(None, {"tokens": graphs[1].tokens(["a crow"]).numpy()})
    assert embeddings.shape == (1, 32)
    assert np.linalg.norm(embeddings) == pytest.approx(1, abs=1e-5)
    assert scale == pytest.approx(1 / 0.07, rel=1e-4)


def test_a_file_has_no_weights_that_it_does_not_use(exported):
    """And no operator of this package."""
    program = torch.export.load(exported / "classifier.pt2")
    assert not [name for name in program.state_dict if "token_embedding" in name or ".w_rec" in name]
    assert [name for name in program.state_dict if name.endswith("blocks.0.rm_adapter.branch.w_down")]
    assert "rmadapter" not in program.graph_module.code.replace("rm_adapter", "")


def test_int8_leaves_the_adapters_alone(exported, adapter):
    trained = load_file(adapter / "adapter.safetensors")
    whole, small = (graph_of(exported / f"classifier{end}.onnx") for end in ("", ".int8"))
    arrays = [onnx.numpy_helper.to_array(one) for one in small.initializer]
    for name in ("vision.1.w_down", "vision.1.w_up"):
        assert any(np.array_equal(array, trained[name].numpy()) for array in arrays), name
    products = [node for node in small.node if node.op_type == "MatMulInteger"]
    # An output projection of attention, the MLP of the last block, and the projection to the features.
    assert len(products) == 4
    assert not [node for node in whole.node if node.op_type == "MatMulInteger"]


def test_the_check_is_that_of_eval(exported, adapter, animals, tmp_path):
    facts = json.loads((exported / EXPORT_FILE).read_text())
    out = tmp_path / "eval"
    words = ["--adapter", str(adapter), "--trust-base", "--data", str(animals), "--classes", "base", "--workers", "0"]
    assert main(["eval", *words, "--precision", "fp32", "--out", str(out)]) == 0
    accuracy = json.loads((out / "results.json").read_text())["accuracy"]["base"]
    assert facts["check"].keys() == {"model", "ONNX", "ONNX int8", "torch.export"}
    for name in ("model", "ONNX", "torch.export"):
        assert facts["check"][name]["top1"] == accuracy
        assert facts["check"][name]["images_a_second"] > 0


def test_a_file_that_answers_otherwise_is_not_kept(tokenizer, tmp_path):
    classifier = classifier_of(tokenizer, "single", blocks=1)
    (graph,) = make_graphs(classifier, 32, None, towers=False)

    def answers_otherwise(path, outputs):
        return lambda images: {PROBABILITIES: graph(images)[PROBABILITIES] + 2e-4}

    form = formats.Format("text", ".txt", (), lambda program, graph, path: path.write_text("x"), answers_otherwise)
    with pytest.raises(InputError, match=r"classifier cannot be exported as text: a probability differs .* by 0.0002;"):
        write_files(form, [graph], [None], graph, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_format_that_cannot_hold_a_part_is_named(tokenizer, tmp_path):
    (graph,) = make_graphs(classifier_of(tokenizer, "single", blocks=1), 32, None, towers=False)

    def refuse(program, graph, path):
        raise RuntimeError("no compiler\nwas found")

    form = formats.Format("text", ".txt", (), refuse, lambda path, outputs: None)
    with pytest.raises(InputError, match="the classifier cannot be exported as text: no compiler was found"):
        write_files(form, [graph], [None], graph, tmp_path)


@pytest.mark.slow
def test_a_linear_probe(animals, clip_folder, tmp_path, capsys):
    words = ["--method", "linear-probe", "--data", str(animals), "--shots", "2", "--workers", "0"]
    base = ["--model", f"local-dir:{clip_folder}"]
    assert main(["train", *words, *base, "--out", str(tmp_path / "run")]) == 0
    adapter = ["--adapter", str(tmp_path / "run" / "adapter"), "--pt2", str(tmp_path / "out")]
    capsys.readouterr()
    assert main(["export", *adapter, "--classes", "dog,bee", "--check", str(animals), "--workers", "0"]) == 0
    assert "animals, test: 6 images among 2 classes" in capsys.readouterr().out
    assert main(["export", *adapter, "--towers"]) == 2
    assert "a linear probe has no text tower" in capsys.readouterr().err


@torch.no_grad()
def test_the_base_model_alone(tokenizer):
    classifier = FrozenClassifier(clip_of(1), tokenizer, NAMES, TEMPLATE).eval()
    (graph,) = make_graphs(classifier, 32, None, towers=False)
    traced = trace(graph).module()
    for count in (1, 3, 4):
        images = graph.example(count)
        found = traced(images)[PROBABILITIES]
        assert (found - classifier(images).logits.softmax(-1)).abs().max() < 1e-5


def test_two_kinds_of_image_features_are_no_tower(tokenizer):
    classifier = classifier_of(tokenizer, "single", blocks=1)
    graphs = make_graphs(classifier, 32, None, towers=True)
    classifier.headed = lambda image, text: Features(image, text, ((0.5, image),))
    with pytest.raises(
        InputError, match="image tower cannot be exported by itself: among these classes 2 kinds of its"
    ):
        trace(graphs[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no folder is given; valid: one or more of --onnx DIR, --pt2 DIR, --aotinductor DIR"),
        ({"pt2": "x", "int8": True}, "int8 is True, but onnx is None"),
        ({"pt2": "x", "adapter": None}, "adapter and model are both None"),
        ({"pt2": "x", "split": "tests"}, "split is 'tests'"),
    ],
)
def test_options(options, message):
    with pytest.raises(InputError, match=message):
        ExportConfig(**{"adapter": "a", **options})


def test_a_file_in_a_folder_s_place_is_named_before_anything_is_loaded(tmp_path):
    file = tmp_path / "afile"
    file.touch()
    with pytest.raises(InputError, match=r"pt2 is '.*afile', which is a file; valid: a folder"):
        run_export(ExportConfig(adapter=str(tmp_path / "gone"), onnx=str(tmp_path / "new"), pt2=str(file)))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(InputError, match=r"ONNX needs onnxscript, which is missing; pip install 'rmadapter\[onnx\]'"):
        formats.FORMATS["onnx"].check_installed()


def test_images_of_other_classes_are_left_out_of_the_check(animals):
    data = load_data(str(animals))
    found = known_items(data.test, data, ["dog", "ant", "wolf"])
    assert {(item.name, item.label) for item in found} == {("dog", 0), ("ant", 1)}
    with pytest.raises(
        InputError, match="check is 'animals', which has no image of the exported classes, such as 'an'"
    ):
        known_items(data.test, data, ["an", "wolf"])


@pytest.mark.slow
def test_aotinductor_compiles_a_package(adapter, animals, tmp_path):
    adapter = ["--adapter", str(adapter), "--trust-base", "--check", str(animals), "--workers", "0"]
    assert main(["export", *adapter, "--aotinductor", str(tmp_path / "out")]) == 0
    facts = json.loads((tmp_path / "out" / EXPORT_FILE).read_text())
    assert facts["check"]["AOTInductor"]["top1"] == facts["check"]["model"]["top1"]
    assert facts["files"]["AOTInductor"]["classifier"]["file"] == "classifier.aoti.pt2"
    package = torch._inductor.aoti_load_package(str(tmp_path / "out" / "classifier.aoti.pt2"))
    assert package.get_metadata()["strength"] == "1.0"
