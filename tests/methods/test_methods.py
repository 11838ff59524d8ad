"""The methods: each trained, saved, loaded and used for prediction through the same commands."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import sys

import open_clip
import pytest
import torch
import yaml
from conftest import write_images
from miniatures import build
from torch.nn import functional as F

from rmadapter.cli import main
from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.data import base_new_names, load_data
from rmadapter.data.catalog import PHOTO
from rmadapter.errors import InputError
from rmadapter.methods import ABLATION_TABLE, METHODS, Method
from rmadapter.methods.naming import method_name
from rmadapter.methods.options import configure, own_words, parse_command
from rmadapter.training.probe_fit import DEFAULT_C, choose, fit
from rmadapter.training.recipe import EpochMean, make_optimizer, make_schedule
from rmadapter.tuners.adapter_file import read_info
from rmadapter.tuners.encoders import Encoders
from rmadapter.tuners.injection import inject
from rmadapter.tuners.probe import LinearProbe

TRAINED = [name for name in METHODS if name not in ("zeroshot", "linear-probe")]


@pytest.mark.parametrize("name", TRAINED)
def test_a_method_s_options_make_the_method_of_that_name(name):
    config = configure(name, ["--data", "x"])
    assert (method_name(config), config.label) == (name, None)
    # What the user says of the loss does not turn it into another one.
    assert method_name(configure(name, ["--data", "x", "--loss.lambda1", "7"])) == name


def test_the_ablation_table():
    assert len(ABLATION_TABLE) == len(set(ABLATION_TABLE)) == 11
    assert {"zeroshot", "single", "mma", "rmadapter"} < set(ABLATION_TABLE) < set(METHODS)


def test_trained_parameters_on_vit_b_16_are_as_published(tokenizer):
    published = {
        "mma": 674_560,
        "coop": 2_048,
        "kgcoop": 2_048,
        "cocoop": 35_360,
        "maple": 3_555_072,
        "ivlp": 30_720,
        "promptsrc": 46_080,
        "coprompt": 3_555_072 + 262_144,  # those of MaPLe and two adapters
        "clip-adapter": 131_072,
        "taskres": 512 * 10,
        "clip-lora": 184_320,
        "mmrl": 4_992_256,
        "tip-adapter": 0,
        "tip-adapter-f": 512 * 16 * 10,
    }
    clip = open_clip.create_model("ViT-B-16")
    settings = {"tokenizer": tokenizer, "class_names": [str(number) for number in range(10)], "cached_images": 160}
    for name, count in published.items():
        config = configure(name, ["--data", "x"])
        model = inject(
            clip, config.tuned, template=config.template.replace("published", "a photo of a {}."), **settings
        )
        assert sum(p.numel() for p in model.trained().values()) == count, name
        model.remove()
    for data, count in {"imagenet": 5_014_528, "dtd": 5_002_240, "fgvc_aircraft": 3_826_432}.items():
        model = inject(clip, configure("coprompt", ["--data", "x"], data=data).tuned, template=PHOTO, **settings)
        assert sum(p.numel() for p in model.trained().values()) == count, data
        model.remove()
    transfer = configure("maple", ["--data", "x"], data="imagenet", transfer=True)
    model = inject(clip, transfer.tuned, template=transfer.template, **settings)
    assert sum(p.numel() for p in model.trained().values()) == 1_185_024


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("maple", [], [1e-5, 0.0035, 0.003166, 0.002291, 0.001209]),
        ("cocoop", [], [1e-5, 0.002, 0.001951, 0.001809, 0.001588, 0.001309, 0.001, 0.000691, 0.000412, 0.000191]),
        ("mma", [], [0.0015, 0.001357, 0.000982, 0.000518, 0.000143]),
        ("maple", ["transfer"], [1e-5, 0.0026]),
        (
            "mmrl",
            [],
            [1e-5, 0.001, 0.000976, 0.000905, 0.000794, 0.000655, 0.0005, 0.000345, 0.000206, 0.0000955],
        ),
        ("mmrl", ["transfer"], [0.001]),
        ("coprompt", [], [1e-5, 0.0035, 0.003367, 0.002987, 0.00242, 0.00175, 0.00108, 0.000513]),
    ],
)
def test_learning_rates_by_epoch(name, options, expected):
    """As the field's code has them: the cosine begins anew after the warm-up, and with it does not end."""
    config = configure(name, ["--data", "x"], data="imagenet" if options else None, transfer=bool(options))
    assert rates_of(config, config.epochs) == pytest.approx(expected, rel=2e-3)


def rates_of(config, epochs):
    """The learning rate of each epoch."""
    optimizer = make_optimizer(config, [torch.nn.Parameter(torch.zeros(1))])
    schedule = make_schedule(config, optimizer, steps_per_epoch=7)
    found = []
    for _ in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_the_two_learning_rates_of_kgcoop():
    """Plain, and with the factor squared, as its author's log has it: 1.217e-10 behind the last of 100 epochs.

    The cosine's angles at epochs 1, 26, 51, 76 are 0, pi/4, pi/2 and 3 pi/4, its factors 1, (2 + 2^0.5) / 4, 1/2 and
    (2 - 2^0.5) / 4.
    """
    plain = rates_of(configure("kgcoop", ["--data", "x"]), 101)
    squared = rates_of(configure("kgcoop", ["--data", "x", "--decay-power", "2"]), 101)
    assert [plain[epoch] for epoch in (0, 1, 26, 51, 76)] == pytest.approx([1e-5, 2e-3, 1.707107e-3, 1e-3, 2.92893e-4])
    assert [squared[epoch] for epoch in (0, 1, 26, 51, 76)] == pytest.approx(
        [1e-5, 2e-3, 1.457107e-3, 5e-4, 4.28932e-5]
    )
    assert (plain[100], squared[100]) == pytest.approx((4.934e-7, 1.217e-10), rel=1e-3)


def test_a_power_of_the_cosine_ends_at_the_final_rate_too():
    words = ["--data", "x", "--lr", "0.1", "--final-lr", "0.02", "--epochs", "4", "--decay-power", "2"]
    # Of 4 epochs: factors 1, (2 + 2^0.5) / 4, 1/2, (2 - 2^0.5) / 4 and 0, squared, on what lies above the final rate.
    expected = [0.1, 0.02 + 0.08 * 0.728553, 0.02 + 0.08 * 0.25, 0.02 + 0.08 * 0.021447, 0.02]
    assert rates_of(configure("single", words), 5) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(InputError, match="decay_power is 0; valid: a number >= 1"):
        configure("kgcoop", ["--data", "x", "--decay-power", "0"])


@pytest.mark.parametrize(
    ("data", "transfer", "weight", "changes"),
    [
        ("any", False, 1, {"batch_size": 4, "epochs": 10, "warmup_epochs": 1, "min_crop": 0.5, "drop_last": True}),
        ("stanford_cars", False, 7, {"batch_size": 4}),
        ("eurosat", False, 0.01, {"epochs": 10, "optimizer": "adamw", "weight_decay": 5e-4}),
        ("imagenet", False, 0.5, {"batch_size": 32, "epochs": 5, "warmup_epochs": 1}),
        ("imagenet", True, 0.2, {"batch_size": 32, "epochs": 1, "warmup_epochs": 0}),
    ],
)
def test_mmrl_by_data_set_and_protocol(data, transfer, weight, changes):
    config = configure("mmrl", ["--data", "x"], data=data, transfer=transfer)
    assert (config.loss.lambda3, config.loss.lambda4, config.loss.distance) == (weight, weight, "cosine")
    assert {name: getattr(config, name) for name in changes} == changes
    assert (config.template, config.space.tokens) == ("published", 5)
    assert config.space.width == (2048 if data == "eurosat" else 512)


def test_a_rate_that_falls_by_step():
    config = configure("clip-lora", ["--data", "x", "--shots", "4"])
    optimizer = make_optimizer(config, [torch.nn.Parameter(torch.zeros(1))])
    schedule = make_schedule(config, optimizer, steps_per_epoch=7)
    assert isinstance(optimizer, torch.optim.AdamW)
    for _ in range(1000):
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx((2e-4 + 1e-6) / 2, rel=1e-3)


def test_the_mean_of_epochs_is_weighted_by_a_gaussian():
    mean = EpochMean("15,1", 20)
    assert mean.weights[12:17] == pytest.approx([0.054, 0.242, 0.399, 0.242, 0.054], abs=1e-3)
    assert sum(mean.weights) == pytest.approx(1)
    weight = torch.zeros(2)
    for epoch in range(20):
        mean.add(epoch, {"w": torch.full((2,), float(epoch + 1))})
    mean.write({"w": weight})
    assert weight.tolist() == pytest.approx([15, 15], abs=1e-3)


def test_an_option_of_what_a_method_does_not_train_is_refused():
    with pytest.raises(InputError, match=r"option '--lora.rank' is none of method 'coop'; valid: --prompt\.\*"):
        configure("coop", ["--data", "x", "--lora.rank", "4"])
    with pytest.raises(InputError, match=r"'--no-adapter.reconstruct' is none of method 'maple'"):
        configure("maple", ["--data", "x", "--no-adapter.reconstruct"])


@pytest.fixture(scope="module")
def options(animals, clip_folder):
    return ["--data", str(animals), "--model", f"local-dir:{clip_folder}", "--workers", "0"]


@pytest.fixture(scope="module")
def trained(options, tmp_path_factory):
    """The folder of a finished run of a method, made once and to be read alone; ``copied`` is one to write in."""
    folder = tmp_path_factory.mktemp("trained")

    @functools.cache
    def make(name):
        assert main(["train", "--method", name, *options, *training_of(name), "--out", str(folder / name)]) == 0
        return folder / name

    return make


@pytest.fixture
def copied(trained, tmp_path, capsys):
    def make(name):
        shutil.copytree(trained(name), tmp_path / "run")
        capsys.readouterr()
        return tmp_path / "run"

    return make


TRAINING = ["--shots", "4", "--epochs", "1", "--adapter.layers", "2-3", "--classes", "base"]
SHALLOW = ["--prompt.text_depth", "2", "--prompt.vision_depth", "2"]


def training_of(name):
    """``TRAINING`` for a method: where it has deep tokens for a model of three blocks, and in few steps."""
    method = METHODS[name]
    adapters = ["--adapter.layers", "2-3"] if "adapter" in method.groups else []
    own = {"vpt": SHALLOW[2:], "clip-lora": ["--steps_per_shot", "2"], "mmrl": ["--space.layers", "2-3"]}
    deep = SHALLOW if name in ("ivlp", "maple", "promptsrc", "coprompt") else own.get(name, [])
    few = ["--batch_size", "4", "--average", "1,1"] if name == "promptsrc" else ["--batch_size", "4"]
    return ["--shots", "4", "--epochs", "1", "--classes", "base", *adapters, *deep, *few]


@pytest.mark.parametrize("name", METHODS)
def test_train_evaluate_and_predict_with_every_method(name, trained, animals, tmp_path, capsys):
    out = trained(name)
    results = json.loads((out / "results.json").read_text())
    assert results["method"] == name
    assert results["split_file"] == load_data(str(animals)).split_id
    assert results["split_file"].startswith("split_rmadapter.json, SHA-256 ")
    parts = {"base", "new", "hm"} if METHODS[name].open_vocabulary else {"base"}
    assert set(results["accuracy"]) == parts
    determined = {"zeroshot": {"template"}, "linear-probe": {"C"}}.get(name, {"lr", "adapter", "loss"})
    assert determined <= results["settings"].keys()
    if name == "zeroshot":
        return
    adapter = ["--adapter", str(out / "adapter")]
    data = ["--data", str(animals), "--workers", "0"]
    assert main(["eval", *adapter, *data, "--classes", "base", "--out", str(tmp_path / "eval")]) == 0
    evaluated = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert evaluated["method"] == name
    assert evaluated["split_file"] == results["split_file"]
    assert evaluated["accuracy"]["base"] == results["accuracy"]["base"]
    assert evaluated["trained_parameters"] == results["trained_parameters"]
    assert (results["trained_parameters"] > 0) == (name != "tip-adapter")
    capsys.readouterr()
    assert main(["predict", *adapter, str(animals / "ant" / "00.png"), "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert {p["class"] for p in record["predictions"]} == {"ant", "bee"}


class TestBoundMethods:
    """Those that have something of each class, and so know no others."""

    @pytest.fixture(params=["taskres", "tip-adapter", "linear-probe", "class-specific coop"])
    def adapter(self, request, trained, options, tmp_path, capsys):
        if request.param != "class-specific coop":
            return ["--adapter", str(trained(request.param) / "adapter")]
        words = ["--prompt.init", "random", "--prompt.class_specific", *training_of("coop"), "--no-evaluate"]
        assert main(["train", "--method", "coop", *options, *words, "--out", str(tmp_path / "csc")]) == 0
        capsys.readouterr()
        return ["--adapter", str(tmp_path / "csc" / "adapter")]

    @pytest.fixture
    def evaluated(self, animals, tmp_path):
        def make(*words):
            data = ["--data", str(animals), "--workers", "0", "--precision", "fp32"]
            assert main(["eval", *data, *words, "--out", str(tmp_path / "eval")]) == 0
            return json.loads((tmp_path / "eval" / "results.json").read_text())

        return make

    def test_other_classes_are_refused_or_answered_by_the_frozen_model(
        self, adapter, evaluated, animals, clip_folder, capsys
    ):
        data = ["--data", str(animals), "--workers", "0"]
        for classes in ("new", "all"):
            assert main(["eval", *data, *adapter, "--classes", classes]) == 2
            assert re.search("not trained on class 'cat'|knows one half alone", capsys.readouterr().err)
        model = ["--method", "zeroshot", "--model", f"local-dir:{clip_folder}"]
        frozen, own = evaluated(*model, "--classes", "base_new"), evaluated(*adapter, "--classes", "base")
        assert "answered_by" not in own
        assert "unknown" not in own["settings"]
        both = evaluated(*adapter, "--classes", "base_new", "--unknown", "zeroshot")
        assert both["answered_by"] == {"base": "adapter", "new": "zeroshot"}
        assert both["settings"]["unknown"] == "zeroshot"
        assert both["method"] == own["method"]
        assert both["accuracy"]["base"] == own["accuracy"]["base"]
        assert both["accuracy"]["new"] == frozen["accuracy"]["new"]
        # One class that it does not know is enough: what two classifiers say cannot be compared.
        everything = evaluated(*adapter, "--classes", "all", "--unknown", "zeroshot")
        assert everything["answered_by"] == {"all": "zeroshot"}
        assert everything["accuracy"] == evaluated(*model, "--classes", "all")["accuracy"]
        asked = evaluated(*adapter, "--classes", "base", "--unknown", "zeroshot")
        assert (asked["answered_by"], asked["accuracy"]) == ({"base": "adapter"}, own["accuracy"])
        assert "unknown" not in asked["settings"]

    def test_predictions_say_who_answered(self, adapter, animals, clip_folder, capsys):
        image, common = str(animals / "ant" / "00.png"), ["--json", "--precision", "fp32"]

        def predicted(*words):
            capsys.readouterr()
            assert main(["predict", image, *words, *common]) == 0
            out, err = capsys.readouterr()
            return json.loads(out)[0], err

        assert main(["predict", *adapter, image, "--classes", "ant,cow"]) == 2
        assert "was not trained on class 'cow'" in capsys.readouterr().err
        frozen, _ = predicted("--model", f"local-dir:{clip_folder}", "--classes", "ant,cow")
        found, said = predicted(*adapter, "--classes", "ant,cow", "--unknown", "zeroshot")
        assert found.pop("answered_by") == "zeroshot"
        assert "not all of these classes were trained on: the frozen model answers" in said
        assert found == frozen
        own, _ = predicted(*adapter, "--classes", "ant,bee")
        found, said = predicted(*adapter, "--classes", "ant,bee", "--unknown", "zeroshot")
        assert found.pop("answered_by") == "adapter"
        assert (found, said) == (own, "")

    def test_a_method_that_is_open_answers_itself(self, trained, evaluated):
        adapter = ["--adapter", str(trained("coop") / "adapter"), "--classes", "base_new"]
        unasked, asked = evaluated(*adapter), evaluated(*adapter, "--unknown", "zeroshot")
        assert asked["accuracy"] == unasked["accuracy"]
        assert "answered_by" not in asked


def test_zero_shot_takes_the_data_set_s_own_prompt(tmp_path, clip_folder, monkeypatch, capsys):
    build(tmp_path, "dtd")
    templates = []
    init = CLIPClassifier.__init__
    monkeypatch.setattr(CLIPClassifier, "__init__", lambda self, *a: (templates.append(a[3]), init(self, *a))[0])
    argv = ["--method", "zeroshot", "--model", f"local-dir:{clip_folder}", "--workers", "0"]
    argv += ["--data", "dtd", "--data-root", str(tmp_path)]
    for command in ("train", "eval"):
        for name, own in {"a": [], "b": ["--template", "an image of {}"]}.items():
            out = tmp_path / command / name
            assert main([command, *argv, *own, "--out", str(out)]) == 0
            assert json.loads((out / "results.json").read_text())["settings"]["template"] == templates[-1]
    assert templates == 2 * ["{} texture.", "an image of {}"]


def test_zero_shot_of_an_adapter_s_model_has_the_data_set_s_prompt_too(tmp_path, clip_folder):
    build(tmp_path, "dtd")
    data = ["--data", "dtd", "--data-root", str(tmp_path), "--workers", "0"]
    argv = ["train", *data, "--model", f"local-dir:{clip_folder}", "--shots", "1", "--epochs", "1"]
    argv += ["--adapter.layers", "2-3", "--template", "a picture of {}", "--no-evaluate"]
    assert main([*argv, "--out", str(tmp_path / "run")]) == 0
    adapter = ["--adapter", str(tmp_path / "run" / "adapter"), "--out", str(tmp_path / "eval")]
    for method, template in {"adapter": "a picture of {}", "zeroshot": "{} texture."}.items():
        assert main(["eval", *data, *adapter, "--method", method]) == 0
        assert json.loads((tmp_path / "eval" / "results.json").read_text())["settings"]["template"] == template


def test_two_inferences_are_marked_in_results_and_reports(trained, animals, clip_folder, tmp_path, capsys):
    out = trained("mmrl")
    both, alone = "class and representation features", "class features alone"
    assert json.loads((out / "results.json").read_text())["inference"] == {"base": both, "new": alone}
    assert "inference" not in json.loads((trained("rmadapter") / "results.json").read_text())
    build(tmp_path, "dtd")
    adapter = ["eval", "--adapter", str(out / "adapter"), "--workers", "0"]
    # On another data set none of the classes counts as trained on, and the published prompt is that data set's.
    assert main([*adapter, "--data", "dtd", "--data-root", str(tmp_path), "--out", str(tmp_path / "on")]) == 0
    on = json.loads((tmp_path / "on" / "results.json").read_text())
    assert (on["inference"], on["settings"]["template"]) == ({"all": alone}, "{} texture.")
    write_images(tmp_path / "copies" / "others", ["ant", "bee"], 4)
    capsys.readouterr()
    assert main([*adapter, "--data", str(tmp_path / "copies" / "others")]) == 0
    assert f"(2 images), by {alone}" in capsys.readouterr().out
    assert main(["report", str(out), str(trained("rmadapter")), "--out", str(tmp_path / "report")]) == 0
    text = capsys.readouterr().out
    assert f"Inference two: mmrl answers base classes by {both}, new classes by {alone}." in text
    cells = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert " two |" in cells["mmrl"]
    assert " two |" not in cells["rmadapter"]


@pytest.mark.parametrize("name", ["zeroshot", "linear-probe", "rmadapter"])
def test_a_finished_run_is_gone_on_with_or_written_over_only_when_asked(name, options, copied, tmp_path, capsys):
    argv = ["train", "--method", name, *options, *training_of(name), "--out", str(copied(name))]
    file = tmp_path / "run" / "results.json"
    first = file.read_bytes()
    assert main(argv) == 2
    assert "where a run is already; valid: --resume" in capsys.readouterr().err
    assert main([*argv, "--resume", "--seed", "2"]) == 2
    assert "seed is 2, but the run in" in capsys.readouterr().err
    assert main([*argv, "--resume"]) == 0
    assert "is finished; its results" in capsys.readouterr().out
    assert file.read_bytes() == first
    (tmp_path / "run" / "metrics.jsonl").write_text("of the first run")
    assert main([*argv, "--overwrite", "--seed", "2", "--log-every", "100"]) == 0
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["seed"] == 2
    assert not any("first" in file.read_text() for file in (tmp_path / "run").glob("metrics.jsonl"))


@pytest.mark.parametrize("name", ["zeroshot", "linear-probe"])
def test_a_method_without_a_step_explains_none(name, options, tmp_path, capsys):
    argv = ["train", "--method", name, *options, "--explain", "--out", str(tmp_path / "run")]
    assert main(argv) == 2
    assert f"explain is True, but {name} has no training step" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["coop", "cocoop", "promptsrc", "clip-adapter", "clip-lora", "mmrl", "rmadapter+lora"])
def test_the_speed_up_of_a_step_is_predicted_for_every_method(name, options, tmp_path, capsys):
    argv = ["train", "--method", name, *options, *training_of(name), "--explain", "--out", str(tmp_path / "run")]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    (ratio,) = re.findall(r"expected ([0-9.]+) times fewer operations than the plain step", shown)
    assert float(ratio) > 1.5
    assert not (tmp_path / "run").exists()


def test_zero_shot_is_its_evaluation(options, tmp_path, capsys):
    assert main(["train", "--method", "zeroshot", *options, "--no-evaluate", "--out", str(tmp_path / "run")]) == 2
    assert "evaluate is False, but zeroshot does nothing else" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["zeroshot", "rmadapter"])
def test_of_three_classes_the_base_half_is_tested_alone(name, clip_folder, tmp_path, capsys):
    """The new half is one class, on which every method is right."""
    data = ["--data", str(write_images(tmp_path / "three", ["ant", "bee", "cat"], 6)), "--workers", "0"]
    argv = ["train", "--method", name, *data, "--model", f"local-dir:{clip_folder}", *TRAINING]
    assert main([*argv, "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["accuracy"].keys() == {"base"}
    zeroshot = ["eval", *data, "--method", "zeroshot", "--model", f"local-dir:{clip_folder}", "--classes", "new"]
    assert main(zeroshot) == 2
    assert "classes is 'new', which leaves 1 of 3 classes" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["zeroshot", "linear-probe", "rmadapter"])
def test_an_evaluation_writes_over_no_training_run(name, options, copied, capsys):
    out = copied(name)
    what = ["--method", "zeroshot"] if name == "zeroshot" else ["--adapter", str(out / "adapter")]
    before = (out / "results.json").read_bytes()
    assert main(["eval", *options, *what, "--classes", "base", "--out", str(out / "results.json")]) == 2
    assert "results.json', which is a file" in capsys.readouterr().err
    assert main(["eval", *options, *what, "--classes", "base", "--out", str(out)]) == 2
    assert "where a training run is" in capsys.readouterr().err
    assert (out / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    ("given", "recorded", "streams"),
    [
        ([], "auto", [torch.float32]),
        (["--residual", "compute"], "compute", [torch.bfloat16]),
        (["--no-shortcuts"], None, []),  # through open_clip's own forward passes, in evaluation too
    ],
)
def test_evaluation_has_the_residual_stream_of_the_training(
    given, recorded, streams, options, animals, tmp_path, monkeypatch
):
    argv = ["train", *options, *TRAINING, *given, "--precision", "bf16", "--no-evaluate"]
    assert main([*argv, "--out", str(tmp_path / "run")]) == 0
    adapter = tmp_path / "run" / "adapter"
    assert read_info(adapter).training["residual"] == recorded
    found = []
    of = Encoders.of
    monkeypatch.setattr(Encoders, "of", lambda model, stream: (found.append(stream), of(model, stream=stream))[1])
    common = ["--adapter", str(adapter), "--precision", "bf16"]
    assert main(["eval", *common, "--data", str(animals), "--workers", "0"]) == 0
    assert main(["predict", *common, str(animals / "ant" / "00.png")]) == 0
    assert found == 2 * streams


class TestLinearProbe:
    def test_it_learns(self, trained):
        results = json.loads((trained("linear-probe") / "results.json").read_text())
        assert results["accuracy"]["base"] >= 90
        assert results["trained_parameters"] == 2 * 33

    def test_it_knows_only_what_it_was_trained_on(self, trained, animals, tmp_path, capsys):
        adapter = ["--adapter", str(trained("linear-probe") / "adapter")]
        image = str(animals / "ant" / "00.png")
        others = str(write_images(tmp_path / "others", ["cow", "dog"], 4))
        for argv, message in {
            ("eval", "--classes", "new"): "classes is 'new', but the linear probe knows one half alone; valid: base",
            ("eval", "--classes", "all"): "classes is 'all', but the linear probe knows one half alone; valid: base",
            ("eval", "--data", others): "was not trained on class 'cow'",
            ("eval", "--classes", "base_new"): "knows one half alone",
            ("eval", "--method", "zeroshot"): "holds a linear probe; valid: without --adapter",
            ("eval", "--template", "a {}"): "template is 'a {}', but a linear probe has no prompts",
            ("predict", image, "--template", "a {}"): "template is 'a {}', but a linear probe has no prompts",
            ("predict", image, "--classes", "ant,cow"): "some of them; in eval and predict also --unknown zeroshot",
        }.items():
            data = ["--data", str(animals), "--workers", "0"] if argv[0] == "eval" else []
            assert main([argv[0], *adapter, *data, *argv[1:]]) == 2
            assert message in capsys.readouterr().err

    def test_it_is_trained_on_the_images_of_the_others_where_some_cannot_be_read(self, clip_folder, images, tmp_path):
        options = ["--data", str(images), "--model", f"local-dir:{clip_folder}", "--workers", "0"]
        for number in (1, 4, 6):
            (images / "ant" / f"{number:02}.png").write_bytes(b"no image")
        hashes = set()
        for name in ("linear-probe", "single"):
            out = tmp_path / name
            assert main(["train", "--method", name, *options, *TRAINING, "--skip-bad-images", "--out", str(out)]) == 0
            hashes.add(json.loads((out / "results.json").read_text())["few_shot_hash"])
        assert len(hashes) == 1

    def test_classes_of_one_name_are_kept_apart(self, clip, tokenizer):
        """The two cranes lie in different halves."""
        weight, bias = torch.randn(5, 32), torch.zeros(5)
        names = ["ant", "crane", "heron", "crane", "digger"]
        probe = LinearProbe(clip, tokenizer, names, "{}", weight, bias)
        for part, rows in {"all": [0, 1, 2, 3, 4], "base": [0, 1, 2], "new": [3, 4]}.items():
            probe.set_classes(base_new_names(names, part), "{}")
            assert torch.equal(probe.text_features(), weight[rows])
        probe.set_classes(["heron", "ant"], "{}")
        assert torch.equal(probe.text_features(), weight[[2, 0]])

    def test_evaluation_needs_a_data_set(self, copied, monkeypatch, capsys):
        monkeypatch.chdir(copied("linear-probe").parent)
        assert main(["eval", "--adapter", "run/adapter", "--classes", "base"]) == 2
        assert "data is missing, and the adapter was trained on 'animals'" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda f: (f / "linear_probe.safetensors").write_bytes(b"x"), "is damaged"),
            (lambda f: (f / "linear_probe.safetensors").unlink(), "is damaged"),
            (lambda f: edit(f, format=9), "format 9, newer than 2"),
            (lambda f: edit(f, format=1), "format 1, which does not say all that 2 does"),
            (lambda f: edit(f, class_names=["a"]), "weight has shape [2, 32], and there are 1 class names"),
            (lambda f: edit(f, weights_sha256="0"), "is not the file that"),
            (lambda f: edit(f, without="training"), "linear probe lacks field 'training'"),
            (lambda f: edit(f, source=3), "linear probe.source is 3; valid: an object or null"),
            (lambda f: edit(f, template=None), "linear probe.template is None; valid: text"),
        ],
    )
    def test_damaged_files(self, copied, animals, capsys, spoil, message):
        folder = copied("linear-probe") / "adapter"
        spoil(folder)
        adapter = ["--adapter", str(folder)]
        assert main(["eval", *adapter, "--data", str(animals), "--classes", "base", "--workers", "0"]) == 2
        assert message in capsys.readouterr().err

    def test_the_fit_is_scikit_learn_s(self):
        from sklearn.linear_model import LogisticRegression

        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(60) % 3
        features = F.normalize(torch.randn(60, 8, generator=generator) + 2 * F.one_hot(labels, 8), dim=-1)
        theirs = LogisticRegression(C=30.0, tol=1e-8, max_iter=1000).fit(features.numpy(), labels.numpy())
        ours = fit(features, labels, 3, 30.0).float()
        # The classes' common shift is free in both: compare what is left without it.
        bias = ours[:, -1] - ours[:, -1].mean()
        assert torch.allclose(ours[:, :-1], torch.from_numpy(theirs.coef_), atol=2e-3)
        assert torch.allclose(bias, torch.from_numpy(theirs.intercept_ - theirs.intercept_.mean()), atol=2e-3)

    def test_the_penalty_is_chosen_on_validation_images(self):
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(40) % 2
        features = F.normalize(torch.randn(40, 8, generator=generator) + F.one_hot(labels, 8), dim=-1)
        assert choose((features, labels), None, 2)[1] == DEFAULT_C
        held_out = F.normalize(torch.randn(40, 8, generator=generator) + F.one_hot(labels, 8), dim=-1)
        solution, inverse_penalty = choose((features, labels), (held_out, labels), 2)
        accuracy = ((held_out.double() @ solution[:, :-1].T + solution[:, -1]).argmax(-1) == labels).sum()
        for other in (0.1, 1e5):
            weights = fit(features, labels, 2, other)
            assert accuracy >= ((held_out.double() @ weights[:, :-1].T + weights[:, -1]).argmax(-1) == labels).sum()
        assert inverse_penalty <= 1e5


def edit(folder, without=None, **values):
    path = folder / "linear_probe.json"
    kept = {key: value for key, value in json.loads(path.read_text()).items() if key != without}
    path.write_text(json.dumps({**kept, **values}))


# Blocks, tokens, weight of the consistency and epochs, as in the original's table of data sets.
COPROMPT = {
    "imagenet": (12, 4, 8, 8),
    "caltech101": (12, 4, 4, 8),
    "oxford_pets": (12, 2, 0.1, 8),
    "stanford_cars": (12, 4, 4, 8),
    "oxford_flowers": (9, 4, 8, 8),
    "food101": (9, 4, 0.5, 5),
    "fgvc_aircraft": (9, 4, 2, 8),
    "sun397": (12, 4, 8, 8),
    "dtd": (12, 2, 8, 8),
    "eurosat": (12, 2, 0.1, 8),
    "ucf101": (12, 4, 2, 8),
    "another": (9, 2, 1, 8),
}


@pytest.mark.parametrize("data", COPROMPT)
def test_coprompt_has_other_sizes_for_each_data_set(data):
    config = configure("coprompt", ["--data", "x"], data=data)
    prompt, head, loss = config.prompt, config.head, config.loss
    blocks, tokens, weight, epochs = COPROMPT[data]
    assert (prompt.text_depth, prompt.vision_depth, config.epochs) == (blocks, blocks, epochs)
    assert (prompt.text_tokens, prompt.vision_tokens, prompt.coupled) == (tokens, tokens, True)
    assert (loss.lambda3, loss.lambda4, loss.distance, loss.target) == (weight, weight, "cosine", "sentences")
    assert (head.image_ratio, head.text_ratio, head.reduction) == (0.1, 0.2, 4)
    assert (loss.second_view, config.augmentation, config.batch_size, config.lr) == (True, "randaugment", 4, 0.0035)
    assert method_name(config) == "coprompt"
    # The original cannot train on ImageNet for other data sets; here that is as on ImageNet alone.
    assert configure("coprompt", ["--data", "x"], data=data, transfer=True) == config


def test_a_sweep_hands_sentences_on_to_the_methods_that_read_them():
    words = ["--loss.sentences", "s.json", "--lr", "1"]
    assert own_words("coprompt", words) == words
    assert own_words("kgcoop", words) == own_words("rmadapter", words) == ["--lr", "1"]
    assert own_words("rmadapter", [*words, "--loss.target=sentences"]) == [*words, "--loss.target=sentences"]
    with pytest.raises(InputError, match=r"loss.sentences is 's.json', but loss.target is 'published'; valid: loss"):
        configure("kgcoop", ["--data", "x", *words])


def test_a_sweep_hands_on_to_each_method_what_it_has():
    words = ["--lora.rank", "4", "--prompt.text_tokens=8", "--no-adapter.reconstruct", "--lr", "1"]
    assert own_words("coop", words) == ["--prompt.text_tokens=8", "--lr", "1"]
    assert own_words("clip-lora", words) == ["--lora.rank", "4", "--lr", "1"]
    assert own_words("rmadapter", words) == ["--no-adapter.reconstruct", "--lr", "1"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--adapter.activation", "gelu"], ["--adapter.activation=relu"]),
        (["--adapter.activation=relu", "--no_adapter.reconstruct"], []),
        (["--adapter.reconstruct", "--lr", "0.1"], ["--no-adapter.reconstruct"]),
    ],
)
def test_an_option_that_the_method_decides_is_said_not_to_be_taken(words, said, recwarn):
    parse_command(["--method", "mma", "--data", "x", *words])
    assert [str(warning.message).partition(" ")[0] for warning in recwarn] == said


def test_a_folder_of_the_user_s_own_may_have_the_name_of_a_bundled_set(tmp_path):
    _, config = parse_command(["--data", "emoji_food", "--data-root", str(tmp_path)])
    assert (config.model, config.style) == ("ViT-B-16", None)


def test_mistakes(options, capsys):
    assert main(["train", "--method", "rmadapte", *options]) == 2
    assert "did you mean 'rmadapter'" in capsys.readouterr().err
    assert main(["train", *options, "--method"]) == 2
    assert "--method needs a value; valid: zeroshot" in capsys.readouterr().err
    assert main(["train", "--method", "mma"]) == 2
    assert "data is missing" in capsys.readouterr().err
    with pytest.raises(InputError, match="unknown option"):
        configure("mma", ["--data", "x", "--shotz", "3"])


@pytest.mark.parametrize("argv", [[], ["--method", "mma"]])
def test_help_lists_every_method(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", *argv, "--help"])
    assert stopped.value.code == 0
    text = "".join(capsys.readouterr().out.split())  # without the line breaks, which may be inside a name
    assert "--methodMETHOD" in text
    for method in METHODS.values():
        assert f"{method.name}({method.summary})".replace(" ", "") in text
    with pytest.raises(SystemExit):
        main(["train", *argv, "--data", "x", "--print_config"])
    assert "method" not in yaml.safe_load(capsys.readouterr().out)


def test_a_method_is_one_entry(options, animals, tmp_path, monkeypatch, capsys):
    """Even where its options do not tell its name: train, eval, sweep and report call it by its own."""
    monkeypatch.setitem(METHODS, "wide", Method("wide", "a bottleneck of 12", ("--adapter.bottleneck=12",)))
    out = tmp_path / "run"
    assert main(["train", "--method", "wide", *options, *TRAINING, "--adapter.bottleneck", "3", "--out", str(out)]) == 0
    assert json.loads((out / "results.json").read_text())["method"] == "wide"
    evaluation = ["--adapter", str(out / "adapter"), "--data", str(animals), "--workers", "0"]
    assert main(["eval", *evaluation, "--out", str(tmp_path / "eval")]) == 0
    assert json.loads((tmp_path / "eval" / "results.json").read_text())["method"] == "wide"
    sweep = ["sweep", "base2new", *options, *TRAINING[:-2], "--seeds", "1", "--out", str(tmp_path / "s")]
    assert main([*sweep, "--methods", "rmadapter,wide"]) == 0
    capsys.readouterr()
    assert main(["report", str(tmp_path / "s"), "--out", str(tmp_path / "report")]) == 0
    text = capsys.readouterr().out
    assert "| rmadapter - wide " in text
    assert len({line for line in text.splitlines() if line.startswith(("| wide ", "| rmadapter "))}) >= 2


def test_the_registry_does_not_import_open_clip():
    """A mistyped option answers at once."""
    code = "import rmadapter.methods, sys; sys.exit('open_clip' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
