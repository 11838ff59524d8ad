"""The methods: each trained, saved, loaded and used for prediction through the same commands."""

from __future__ import annotations

import json
import subprocess
import sys

import open_clip
import pytest
import torch
import yaml
from miniatures import build
from torch.nn import functional as F

from rmadapter.cli import main
from rmadapter.data import load_data
from rmadapter.errors import InputError
from rmadapter.injection import inject
from rmadapter.linear_probe import DEFAULT_C, choose, fit
from rmadapter.methods import ABLATION_TABLE, METHODS, Method, configure

ADAPTERS = [name for name in METHODS if name not in ("zeroshot", "linear-probe")]


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_method_s_options_make_the_method_of_that_name(name):
    assert configure(name, ["--data", "x"]).method == name
    # What the user says of the loss does not turn it into another one.
    assert configure(name, ["--data", "x", "--loss.lambda1", "7"]).method == name


def test_the_ablation_table():
    assert len(ABLATION_TABLE) == len(set(ABLATION_TABLE)) == len(METHODS) - 1
    assert set(ABLATION_TABLE) == set(METHODS) - {"linear-probe"}


def test_mma_has_the_published_number_of_parameters_on_vit_b_16():
    clip = open_clip.create_model("ViT-B-16")
    model = inject(clip, configure("mma", ["--data", "x"]).adapter)
    assert sum(p.numel() for p in model.adapter_tensors().values()) == 674_560


@pytest.fixture
def options(images, clip_folder):
    return ["--data", str(images), "--model", f"local-dir:{clip_folder}", "--workers", "0"]


TRAINING = ["--shots", "4", "--epochs", "1", "--adapter.layers", "2-3", "--classes", "base"]


@pytest.mark.parametrize("name", METHODS)
def test_train_evaluate_and_predict_with_every_method(name, options, images, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", "--method", name, *options, *TRAINING, "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["method"] == name
    assert results["split_file"] == load_data(str(images)).split_id
    assert results["split_file"].startswith("split_rmadapter.json, SHA-256 ")
    parts = {"base"} if name == "linear-probe" else {"base", "new", "hm"}
    assert set(results["accuracy"]) == parts
    determined = {"zeroshot": {"template"}, "linear-probe": {"C"}}.get(name, {"lr", "adapter", "loss"})
    assert determined <= results["settings"].keys()
    if name == "zeroshot":
        return
    adapter = ["--adapter", str(out / "adapter")]
    data = ["--data", str(images), "--workers", "0"]
    assert main(["eval", *adapter, *data, "--classes", "base", "--out", str(tmp_path / "eval")]) == 0
    evaluated = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert evaluated["method"] == name
    assert evaluated["split_file"] == results["split_file"]
    assert evaluated["accuracy"]["base"] == results["accuracy"]["base"]
    assert evaluated["trained_parameters"] == results["trained_parameters"] > 0
    capsys.readouterr()
    assert main(["predict", *adapter, str(images / "ant" / "00.png"), "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert {p["class"] for p in record["predictions"]} == {"ant", "bee"}


def test_zero_shot_takes_the_data_set_s_own_prompt(tmp_path, clip_folder, monkeypatch, capsys):
    from rmadapter import evaluation

    build(tmp_path, "dtd")
    templates = []
    init = evaluation.CLIPClassifier.__init__
    monkeypatch.setattr(
        evaluation.CLIPClassifier, "__init__", lambda self, *a: (templates.append(a[3]), init(self, *a))[0]
    )
    argv = ["train", "--method", "zeroshot", "--model", f"local-dir:{clip_folder}", "--workers", "0"]
    argv += ["--data", "dtd", "--data-root", str(tmp_path)]
    assert main([*argv, "--out", str(tmp_path / "a")]) == 0
    assert main([*argv, "--out", str(tmp_path / "b"), "--template", "an image of {}"]) == 0
    assert templates == ["{} texture.", "an image of {}"]


class TestLinearProbe:
    def test_it_learns_and_goes_on_where_it_stopped(self, options, tmp_path, capsys):
        argv = ["train", "--method=linear-probe", *options, *TRAINING, "--out", str(tmp_path / "run")]
        assert main(argv) == 0
        results = json.loads((tmp_path / "run" / "results.json").read_text())
        assert results["accuracy"]["base"] >= 90
        assert results["trained_parameters"] == 2 * 33
        assert main([*argv, "--resume"]) == 0
        assert main(argv) == 2
        assert "where a run is already" in capsys.readouterr().err

    def test_it_knows_only_what_it_was_trained_on(self, options, images, tmp_path, capsys):
        assert main(["train", "--method=linear-probe", *options, *TRAINING, "--out", str(tmp_path / "run")]) == 0
        adapter = ["--adapter", str(tmp_path / "run" / "adapter")]
        image = str(images / "ant" / "00.png")
        for argv, message in {
            ("eval", "--classes", "new"): "was not trained on class 'cat'",
            ("eval", "--classes", "base_new"): "knows one half alone",
            ("predict", image, "--classes", "ant,cow"): "was not trained on class 'cow'",
        }.items():
            data = ["--data", str(images), "--workers", "0"] if argv[0] == "eval" else []
            assert main([*argv, *adapter, *data]) == 2
            assert message in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda f: (f / "linear_probe.safetensors").write_bytes(b"x"), "is damaged"),
            (lambda f: (f / "linear_probe.safetensors").unlink(), "is damaged"),
            (lambda f: edit(f, format=9), "no linear probe of format 1"),
            (lambda f: edit(f, class_names=["a"]), "is not the file that"),
            (lambda f: edit(f, base_hash="0"), "belongs to other base weights"),
        ],
    )
    def test_damaged_files(self, options, images, tmp_path, capsys, spoil, message):
        assert main(["train", "--method=linear-probe", *options, *TRAINING, "--out", str(tmp_path / "run")]) == 0
        spoil(tmp_path / "run" / "adapter")
        adapter = ["--adapter", str(tmp_path / "run" / "adapter")]
        assert main(["eval", *adapter, "--data", str(images), "--classes", "base", "--workers", "0"]) == 2
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


def edit(folder, **values):
    path = folder / "linear_probe.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_mistakes(options, capsys):
    assert main(["train", "--method", "rmadapte", *options]) == 2
    assert "did you mean 'rmadapter'" in capsys.readouterr().err
    assert main(["train", *options, "--method"]) == 2
    assert "--method needs a value; valid: zeroshot" in capsys.readouterr().err
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


def test_a_method_is_one_entry(options, images, tmp_path, monkeypatch, capsys):
    """Even where its options do not tell its name: train, eval, sweep and report call it by its own."""
    monkeypatch.setitem(METHODS, "wide", Method("wide", "a bottleneck of 12", ("--adapter.bottleneck=12",)))
    out = tmp_path / "run"
    assert main(["train", "--method", "wide", *options, *TRAINING, "--adapter.bottleneck", "3", "--out", str(out)]) == 0
    assert json.loads((out / "results.json").read_text())["method"] == "wide"
    evaluation = ["--adapter", str(out / "adapter"), "--data", str(images), "--workers", "0"]
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
