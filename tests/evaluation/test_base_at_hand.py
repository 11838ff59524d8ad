"""A stored method goes on the base model that it was made on, and on no other: in eval, predict and load."""

from __future__ import annotations

import json
import shutil

import open_clip
import pytest
import torch
from conftest import SMALL_CONFIG, run_config, small_clip
from safetensors.torch import save_file

from rmadapter import InputError, RMAdapterCLIP, load
from rmadapter.cli import main
from rmadapter.clip import known_bases
from rmadapter.clip.backbone import load_backbone
from rmadapter.data import Preprocessing
from rmadapter.evaluation.loaded_model import load_stored, stored_precision
from rmadapter.training.probe_run import train_probe
from rmadapter.tuners.adapter_file import read_info
from rmadapter.tuners.probe import read_probe

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def stored(base_run, animals, clip_folder, tmp_path_factory):
    """The folders of an adapter and of a linear probe on the same base model."""
    run = tmp_path_factory.mktemp("probe") / "run"
    train_probe(run_config(animals, clip_folder, run, evaluate=False))
    return {"adapter": base_run / "adapter", "probe": run / "adapter"}


def folder_of(path, *, preprocessing=None, quick_gelu=False, **towers):
    """A local-dir: folder of the small CLIP's weights with another configuration."""
    config = {**SMALL_CONFIG, **{name: {**SMALL_CONFIG[name], **changes} for name, changes in towers.items()}}
    path.mkdir(parents=True)
    values = {
        "model_cfg": {**config, "quick_gelu": quick_gelu},
        "preprocess_cfg": {"size": [32, 32], **(preprocessing or {})},
    }
    (path / "open_clip_config.json").write_text(json.dumps(values))
    save_file(small_clip().state_dict(), path / "open_clip_model.safetensors")
    return path


TWINS = {
    "heads": (
        {"vision_cfg": {"head_width": 32}},
        "visual.transformer.resblocks.*.attn.num_heads is 4 in its record, 2 in",
    ),
    "eps": ({"text_cfg": {"norm_kwargs": {"eps": 1e-3}}}, "ln_final.eps is 1e-05 in its record, 0.001 in this model"),
    "activation": (
        {"vision_cfg": {"act_kwargs": {"approximate": "tanh"}}},
        "approximate is 'none' in its record, 'tanh'",
    ),
    "quick gelu": ({"quick_gelu": True}, "mlp.gelu is 'GELU' in its record, 'QuickGELU' in this model"),
}


@pytest.mark.parametrize("kind", ["adapter", "probe"])
@pytest.mark.parametrize("name", TWINS)
def test_the_same_weights_with_another_structure_are_refused(name, kind, stored, animals, tmp_path, capsys):
    changes, message = TWINS[name]
    base = ["--model", f"local-dir:{folder_of(tmp_path / 'twin', **changes)}"]
    image = str(animals / "ant" / "00.png")
    adapter = ["--adapter", str(stored[kind]), *base]
    for argv in (["predict", image, *adapter], ["eval", *adapter, "--data", str(animals), "--classes", "base"]):
        assert main(argv) == 2
        said = capsys.readouterr().err
        assert message in said
        assert "valid: the base model that it was trained on, local-dir:" in said
        if name != "heads":  # both commands come through one function; once is enough
            break
    if kind == "adapter":
        twin = load_backbone(base[1]).clip
        with pytest.raises(InputError) as error:
            load(twin, stored[kind])
        assert message in str(error.value)
        assert not any("rm_adapter" in key for key in twin.state_dict())


@pytest.mark.parametrize("kind", ["adapter", "probe"])
def test_images_go_through_what_is_recorded(kind, stored, animals, tmp_path, capsys):
    """The same base with another mean: the recorded one is used, and results are those on the base itself."""
    twin = folder_of(tmp_path / "twin", preprocessing={"mean": [0.1, 0.9, 0.3]})
    image = str(animals / "bee" / "01.png")
    found = []
    for base in ([], ["--model", f"local-dir:{twin}"]):
        assert main(["predict", image, "--json", "--adapter", str(stored[kind]), *base, "--precision", "fp32"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1]


def test_loading_says_another_preprocessing(stored, tmp_path):
    twin = load_backbone(f"local-dir:{folder_of(tmp_path / 'twin', preprocessing={'mean': [0.1, 0.9, 0.3]})}").clip
    with pytest.warns(UserWarning, match=r"this model's own is .*0\.1, 0\.9, 0\.3"):
        model = load(twin, stored["adapter"])
    assert model.preprocessing == read_info(stored["adapter"]).preprocessing != Preprocessing.of(twin)
    model.save_adapter(tmp_path / "again")
    assert read_info(tmp_path / "again").preprocessing == model.preprocessing


def test_another_tokenizer_is_refused(stored, clip_folder, tmp_path):
    other = open_clip.SimpleTokenizer(clean="canonicalize")
    backbone = load_backbone(f"local-dir:{clip_folder}")
    with pytest.raises(
        InputError, match="trained with another tokenizer: its hash is 'ec6550422e2e1e53' in the record"
    ):
        load(backbone.clip, stored["adapter"], tokenizer=other)
    model = load(backbone.clip, stored["adapter"])
    with pytest.raises(InputError, match="another tokenizer"):
        RMAdapterCLIP(model, other, ["cat", "dog"])
    twin = folder_of(tmp_path / "twin", text_cfg={"tokenizer_kwargs": {"clean": "canonicalize"}})
    assert main(["predict", "x.png", "--adapter", str(stored["probe"]), "--model", f"local-dir:{twin}"]) == 2


def test_both_kinds_record_the_same(stored):
    adapter, probe = read_info(stored["adapter"]), read_probe(stored["probe"])
    for name in ("source", "base", "tokenizer", "preprocessing", "precision", "class_names", "template"):
        assert getattr(adapter, name) == getattr(probe, name), name
    assert adapter.tokenizer == "ec6550422e2e1e53"
    assert adapter.base.dtype == "float32"


def test_the_precision_is_that_of_the_training(stored):
    info = read_info(stored["adapter"])
    assert info.precision == "fp32"
    assert load_stored(str(stored["adapter"]), None, None, device=CPU, precision="auto").precision == "fp32"
    assert stored_precision(info, "the adapter", "bf16", CPU) == "bf16"
    half = type(info)(**{**vars(info), "precision": "fp16"})
    with pytest.raises(
        InputError, match=r"the adapter was trained in fp16, which --precision auto takes: .* bf16, fp32"
    ):
        stored_precision(half, "the adapter", "auto", CPU)


def test_zero_shot_is_that_of_the_base_it_was_trained_on(stored, animals, tmp_path, capsys):
    twin = folder_of(tmp_path / "twin", quick_gelu=True)
    argv = ["eval", "--method", "zeroshot", "--adapter", str(stored["adapter"]), "--data", str(animals)]
    assert main([*argv, "--model", f"local-dir:{twin}"]) == 2
    assert "belongs to another base model" in capsys.readouterr().err


class TestABaseThatOnlyAnAdapterNames:
    """It is loaded when the user says so."""

    @pytest.fixture
    def copied(self, stored, clip_folder, tmp_path):
        """An adapter and a probe as from elsewhere, whose base is a folder that was never chosen here."""
        elsewhere = tmp_path / "elsewhere"
        shutil.copytree(clip_folder, elsewhere)
        folders = {}
        for kind, file in (("adapter", "adapter_config.json"), ("probe", "linear_probe.json")):
            folders[kind] = shutil.copytree(stored[kind], tmp_path / kind)
            values = json.loads((folders[kind] / file).read_text())
            values["source"]["name"] = f"local-dir:{elsewhere}"
            (folders[kind] / file).write_text(json.dumps(values))
        return folders

    @pytest.mark.parametrize("kind", ["adapter", "probe"])
    def test_a_folder(self, kind, copied, animals, monkeypatch, capsys):
        image, adapter = str(animals / "ant" / "00.png"), ["--adapter", str(copied[kind])]
        with monkeypatch.context() as patch:
            patch.setattr("rmadapter.evaluation.loaded_model.load_backbone", None)  # not even read
            for argv in (["predict", image, *adapter], ["eval", *adapter, "--data", str(animals), "--classes", "base"]):
                assert main(argv) == 2
                said = capsys.readouterr().err
                assert "names the base model 'local-dir:" in said
                assert "--trust-base to load it" in said
        assert main(["predict", image, *adapter, "--trust-base"]) == 0
        assert main(["predict", image, *adapter]) == 0  # from now on

    def test_what_was_chosen_is_known(self, copied, tmp_path):
        """By --model, in training or anywhere; a relative path is the same folder."""
        load_backbone(f"local-dir:{tmp_path / 'elsewhere'}")
        loaded = load_stored(str(copied["adapter"]), None, None, device=CPU, precision="fp32")
        assert loaded.adapted is not None

    @pytest.mark.parametrize(
        ("source", "asked"),
        [
            (("hf-hub:somebody/clip", None), True),
            (("ViT-B-16", "weights.pt"), True),
            (("ViT-B-16", "openai"), False),
            (("ViT-B-16", "none"), False),
            (("emoji-clip", None), False),
        ],
    )
    def test_what_is_asked_about(self, source, asked, tmp_path, monkeypatch):
        monkeypatch.setattr(known_bases, "cache_folder", lambda cache_dir, kind: tmp_path / "bases")
        base = known_bases.ModelSource(*source)
        if asked:
            with pytest.raises(InputError, match="which was not chosen on this machine before"):
                known_bases.check_known(base, "the adapter")
        known_bases.remember(base)
        known_bases.check_known(base, "the adapter")
        assert (tmp_path / "bases").exists() == asked

    def test_a_cache_that_cannot_be_written_stops_nothing(self, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        monkeypatch.setattr(known_bases, "cache_folder", lambda cache_dir, kind: tmp_path / "file" / "bases")
        known_bases.remember(known_bases.ModelSource("hf-hub:a/b"))
