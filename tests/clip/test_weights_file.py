"""Files of weights as people have them: read without running anything in them, or refused with the way round."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import open_clip
import pytest
import torch
from conftest import SMALL_CONFIG, small_clip
from safetensors.torch import load_file, save_file

from rmadapter import InputError
from rmadapter.cli import main
from rmadapter.clip import backbone as loading
from rmadapter.clip.backbone import check_source, load_backbone
from rmadapter.clip.own_config import read_config
from rmadapter.clip.weights_file import readable_weights


class Optimizer:
    """Stands for Python objects in a checkpoint."""


@pytest.fixture(scope="module")
def weights():
    return small_clip().state_dict()


def read(path):
    with readable_weights(path) as file:
        return load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)


NESTED = {
    "plain": lambda w: w,
    "state_dict": lambda w: {
        "epoch": 3,
        "name": "run",
        "state_dict": w,
        "optimizer": {"state": {}, "param_groups": []},
    },
    "model": lambda w: {"model": w, "model_ema": w, "args": {"lr": 0.1}},
    "some other name": lambda w: {"weights": w, "step": 7},
    "DataParallel": lambda w: {f"module.{name}": tensor for name, tensor in w.items()},
    "compiled": lambda w: {f"_orig_mod.{name}": tensor for name, tensor in w.items()},
    "both": lambda w: {"state_dict": {f"module._orig_mod.{name}": tensor for name, tensor in w.items()}},
    "OpenAI's": lambda w: {**w, "input_resolution": torch.tensor(32), "vocab_size": torch.tensor(49408)},
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("form", NESTED)
def test_weights_are_found_where_programs_put_them(form, suffix, weights, tmp_path):
    path = tmp_path / f"file{suffix}"
    held = NESTED[form](weights)
    if suffix == ".pt":
        torch.save(held, path)
    elif all(isinstance(value, torch.Tensor) for value in held.values()):
        save_file(held, path)
    else:
        return
    found = read(path)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())


def garbage(path):
    path.write_bytes(b"<html>not found</html>")


def torchscript(path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), str(path))


WRONG = {
    "empty": (lambda p: p.touch(), r"is empty \(0 bytes\)"),
    "garbage": (garbage, "is damaged, or no file of weights"),
    "legacy garbage": (
        lambda p: p.write_bytes(pickle.dumps({"a": 1}, 2)),
        "is damaged, or no file of weights|holds 'a'",
    ),
    "truncated": (lambda p: truncated(p), "is damaged, or no file of weights"),
    "TorchScript": (torchscript, r"is a TorchScript archive.*not run. Valid: --pretrained openai.*torch\.jit\.load"),
    "objects": (lambda p: torch.save({"model": Optimizer()}, p), "holds Python objects beside tensors.*Optimizer"),
    "a module": (lambda p: torch.save(torch.nn.Linear(2, 2), p), "holds Python objects beside tensors.*save_file"),
    "numbers": (lambda p: torch.save({"a": torch.zeros(1), "b": 3}, p), "holds 'a', 'b'; valid: tensors by name"),
    "two models": (
        lambda p: torch.save({"a": {"x": torch.ones(1)}, "b": {"x": torch.ones(1)}}, p),
        "holds 'a', 'b'; valid",
    ),
    "a tensor": (lambda p: torch.save(torch.zeros(3), p), "holds a Tensor; valid: tensors by name"),
    "numpy": (lambda p: torch.save({"state_dict": {"x": np.zeros(3)}}, p), "holds "),
}


def truncated(path):
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("name", WRONG)
def test_refusals_name_the_way_round(name, tmp_path):
    write, message = WRONG[name]
    path = tmp_path / "weights.pt"
    write(path)
    with pytest.raises(InputError, match=message) as error:
        read(path)
    assert "weights_only" not in str(error.value)  # torch's advice to switch its check off
    assert str(path) in str(error.value)


def test_a_damaged_file_of_safetensors(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"\0" * 100)
    with pytest.raises(InputError, match="is damaged"):
        read(path)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read(tmp_path / "none.safetensors")


class TestAModelWithAFile:
    """--pretrained FILE; the small CLIP under names of open_clip's own kind, one of which has a twin."""

    @pytest.fixture(autouse=True)
    def registered(self, tmp_path, monkeypatch):
        (tmp_path / "models").mkdir()
        for name, quick in (("tiny", False), ("tiny-quickgelu", True)):
            (tmp_path / "models" / f"{name}.json").write_text(json.dumps({**SMALL_CONFIG, "quick_gelu": quick}))
        monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
        monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", list(open_clip.factory._MODEL_CONFIG_PATHS))
        open_clip.add_model_config(tmp_path / "models")

    def test_which_activation_is_not_known_of_a_file(self, weights, tmp_path, recwarn):
        torch.save({"model": weights}, tmp_path / "w.pt")
        clip = load_backbone("tiny", str(tmp_path / "w.pt")).clip
        assert torch.equal(clip.visual.proj, weights["visual.proj"])
        assert any("w.pt does not say whether its weights were trained with GELU" in str(w.message) for w in recwarn)
        assert any("--model tiny-quickgelu" in str(w.message) for w in recwarn)
        recwarn.clear()
        assert type(load_backbone("tiny-quickgelu", str(tmp_path / "w.pt")).clip.transformer.resblocks[0].mlp.gelu)
        assert not recwarn

    def test_weights_of_another_model(self, weights, tmp_path):
        torch.save({name: tensor for name, tensor in weights.items() if "ln_post" not in name}, tmp_path / "w.pt")
        with pytest.raises(InputError, match=r"cannot be loaded: .*Missing key.*ln_post") as error:
            load_backbone("tiny-quickgelu", str(tmp_path / "w.pt"))
        assert len(str(error.value)) < 700

    def test_weights_that_are_not_finite(self, weights, tmp_path, animals, capsys):
        broken = {name: tensor.clone() for name, tensor in weights.items()}
        broken["visual.ln_post.bias"][3] = float("nan")
        torch.save(broken, tmp_path / "w.pt")
        zeroshot = ["--model", "tiny-quickgelu", "--pretrained", str(tmp_path / "w.pt"), "--data", str(animals)]
        for argv in (
            ["eval", "--method", "zeroshot", *zeroshot],
            ["predict", str(animals / "ant" / "00.png"), "--classes", "ant,bee", *zeroshot[:4]],
            ["train", "--method", "linear-probe", *zeroshot, "--workers", "0", "--out", str(tmp_path / "run")],
        ):
            assert main(argv) == 2
            assert "the base model's visual.ln_post.bias holds values that are not finite" in capsys.readouterr().err
        assert not (tmp_path / "run" / "adapter").exists()

    def test_random_weights_are_insisted_on(self, tmp_path, animals, capsys):
        image = str(animals / "ant" / "00.png")
        for argv in (
            ["train", "--model", "tiny", "--data", str(animals), "--out", str(tmp_path / "run")],
            [
                "train",
                "--method",
                "zeroshot",
                "--model",
                "tiny",
                "--data",
                str(animals),
                "--out",
                str(tmp_path / "run"),
            ],
            [
                "train",
                "--method",
                "linear-probe",
                "--model",
                "tiny",
                "--data",
                str(animals),
                "--out",
                str(tmp_path / "run"),
            ],
            ["eval", "--method", "zeroshot", "--model", "tiny", "--data", str(animals)],
            ["predict", image, "--classes", "ant,bee", "--model", "tiny"],
            [
                "sweep",
                "base2new",
                "--model",
                "tiny",
                "--data",
                str(animals),
                "--out",
                str(tmp_path / "sweep"),
                "--dry-run",
            ],
        ):
            assert main(argv) == 2
            said = capsys.readouterr().err
            assert (
                "pretrained is None, which is random weights for tiny; valid: --pretrained a weights file, or none"
                in said
            )
        assert not (tmp_path / "run").exists()
        assert main(["predict", image, "--classes", "ant,bee", "--model", "tiny", "--pretrained", "none"]) == 0
        assert "has random weights" in capsys.readouterr().err


def test_a_sweep_and_a_run_ask_one_function(monkeypatch):
    from rmadapter.sweeps import settings

    asked = []
    monkeypatch.setattr(loading, "check_source", lambda *of: asked.append(of))
    settings._check_weights(settings.TrainConfig(data="x", model="ViT-B-16"))
    assert asked == [("ViT-B-16", None)]
    with pytest.raises(InputError, match="pretrained is None"):
        check_source("ViT-B-16", None)


class TestWhatAConfigurationMayAskFor:
    """In a folder and in a hub repository: nothing that runs code."""

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                {"tokenizer_kwargs": {"trust_remote_code": True}},
                "text_cfg.tokenizer_kwargs is 'trust_remote_code'; valid",
            ),
            (
                {"tokenizer_kwargs": {"bpe_path": "/etc/passwd"}},
                "field of text_cfg.tokenizer_kwargs is 'bpe_path'; valid: 'cl",
            ),
            ({"tokenizer_kwargs": {"clean": "eval"}}, "text_cfg.tokenizer_kwargs.clean is 'eval'; valid: 'lower'"),
            ({"tokenizer_kwargs": [1]}, r"text_cfg.tokenizer_kwargs is \[1\]; valid: an object"),
            ({"tokenizer_mode": "x"}, "text_cfg.tokenizer_mode is 'x'"),
            ({"hf_model_name": "somebody/model"}, "text_cfg.hf_model_name is 'somebody/model'; valid: a name that"),
            ({"hf_model_name": ["a"]}, "text_cfg.hf_model_name is"),
        ],
    )
    def test_the_field_is_named(self, text, message, clip_folder, tmp_path):
        folder = self.folder(clip_folder, tmp_path, text)
        with pytest.raises(InputError, match=message):
            load_backbone(f"local-dir:{folder}")

    def test_a_hub_repository(self, clip_folder, tmp_path, monkeypatch):
        """Its configuration is read before anything is made of it."""
        text = {"hf_tokenizer_name": "somebody/tokenizer"}
        file = self.folder(clip_folder, tmp_path, text) / "open_clip_config.json"
        monkeypatch.setattr(loading, "download_pretrained_from_hf", lambda repository, filename: str(file))
        monkeypatch.setattr(open_clip, "create_model", None)
        with pytest.raises(InputError, match=r"text_cfg\.hf_tokenizer_name is 'somebody/tokenizer'; valid: a name"):
            load_backbone("hf-hub:org/clip")
        assert read_config(file, "somebody/tokenizer")
        assert read_config(file)  # of a folder the tokenizer beside the weights is taken

    def test_a_tokenizer_brings_no_code(self, monkeypatch):
        """transformers would ask at the terminal whether to run a repository's code."""
        asked = []
        monkeypatch.setattr(open_clip, "get_tokenizer", lambda name, **options: asked.append(options))
        loading._tokenizer("x", {"hf_tokenizer_name": "bert-base-uncased"})
        loading._tokenizer("x", {})
        assert asked == [{"trust_remote_code": False}, {}]

    @pytest.mark.parametrize("values", [[], {}, {"model_cfg": []}, {"model_cfg": {"vision_cfg": {}, "text_cfg": 3}}])
    def test_no_configuration(self, values, tmp_path):
        (tmp_path / "open_clip_config.json").write_text(json.dumps(values))
        with pytest.raises(InputError, match="is no model's configuration"):
            read_config(tmp_path / "open_clip_config.json")

    def folder(self, clip_folder, tmp_path, text):
        folder = shutil.copytree(clip_folder, tmp_path / "clip")
        values = json.loads((folder / "open_clip_config.json").read_text())
        values["model_cfg"]["text_cfg"].update(text)
        (folder / "open_clip_config.json").write_text(json.dumps(values))
        return folder


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("Re-running with weights_only set to False will likely succeed"), "holds Python objects"),
        (EOFError(), "is empty or cut off"),
    ],
)
def test_what_open_clip_itself_loads_never_advises_to_switch_the_check_off(monkeypatch, error, said):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(loading, "_from_hub", fails)
    with pytest.raises(InputError, match=said) as raised:
        load_backbone("hf-hub:someone/model")
    assert "weights_only" not in str(raised.value)
