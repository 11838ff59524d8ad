"""Base models by name, and the hash that tells them apart."""

from __future__ import annotations

import json

import open_clip
import pytest
import torch
from conftest import small_clip
from open_clip.pretrained import get_pretrained_cfg
from safetensors.torch import save_file

from rmadapter import InputError, RMAdapterConfig, inject
from rmadapter.clip.backbone import load_backbone
from rmadapter.clip.identity import base_hash
from rmadapter.clip.structure import structure_of


def test_a_local_folder(clip_folder):
    backbone = load_backbone(f"local-dir:{clip_folder}")
    for one, other in zip(backbone.clip.state_dict().values(), small_clip().state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert not any(p.requires_grad for p in backbone.clip.parameters())
    assert backbone.preprocessing.size == 32
    assert backbone.tokenizer(["a cat"]).shape == (1, 77)
    assert backbone.source.name == f"local-dir:{clip_folder}"


def test_two_local_folders_side_by_side(clip_folder, tmp_path):
    """Each is registered with open_clip under its own name, which no other takes over."""
    config = json.loads((clip_folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["layers"] = 1
    config["preprocess_cfg"]["mean"] = [0.25, 0.5, 0.75]
    clip = open_clip.CLIP(**config["model_cfg"])
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    save_file(clip.state_dict(), tmp_path / "open_clip_model.safetensors")
    other = load_backbone(f"local-dir:{tmp_path}")
    assert other.preprocessing.mean == (0.25, 0.5, 0.75)
    assert len(other.clip.visual.transformer.resblocks) == 1
    again = load_backbone(f"local-dir:{clip_folder}")
    assert base_hash(again.clip) == base_hash(small_clip())
    assert again.preprocessing.mean != other.preprocessing.mean


def activation(clip):
    return structure_of(clip)["visual.transformer.resblocks.*.mlp.gelu"]


@pytest.mark.parametrize(
    ("name", "tag", "quick"),
    [
        ("ViT-B-32", "openai", True),
        ("ViT-B/32", "openai", True),
        ("ViT-B-32-quickgelu", "openai", True),
        ("ViT-B-32", "laion2b_s34b_b79k", False),
        ("ViT-B-32", "none", False),
    ],
)
def test_the_activation_is_that_of_the_weights(name, tag, quick, monkeypatch):
    """open_clip's "ViT-B-32" has GELU whatever the tag; OpenAI's weights were trained with QuickGELU."""

    def without_weights(found, pretrained, force_quick_gelu):
        assert (found, pretrained) == (name.replace("/", "-"), None if tag == "none" else tag)
        return small_clip(quick_gelu=force_quick_gelu or found.endswith("quickgelu"))

    monkeypatch.setattr(open_clip, "create_model", without_weights)
    assert activation(load_backbone(name, tag).clip) == ("QuickGELU" if quick else "GELU")


def test_names_with_quickgelu_have_no_tag_of_other_weights():
    """So ``check_source`` refuses the one mismatch that ``load_backbone`` does not mend."""
    names = [name for name in open_clip.list_models() if name.endswith("-quickgelu")]
    assert "ViT-B-32-quickgelu" in names
    for name in names:
        for tag in open_clip.list_pretrained_tags_by_model(name):
            assert get_pretrained_cfg(name, tag)["quick_gelu"], (name, tag)


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("ViT-B-23", None, "model is 'ViT-B-23'.*did you mean 'ViT-B-32'"),
        ("ViT-B-32", "openia", "pretrained is 'openia'.*did you mean 'openai'.*laion2b_s34b_b79k"),
        ("ViT-B-32-quickgelu", "laion2b_s34b_b79k", "neither a file nor a tag of ViT-B-32-quickgelu.*valid: openai, "),
        ("local-dir:nowhere", None, "no open_clip_config.json"),
        ("local-dir:{folder}", None, "no open_clip_model.safetensors"),
        ("s3:bucket", None, "scheme of model is 's3'; valid: 'local-dir', 'hf-hub'"),
        ("hf-hub:nobody/nothing", None, "cannot be loaded"),
        ("hf-hub:a/b", "openai", "brings its own weights"),
        ("hf-hub:a/b", "none", "brings its own weights"),
        (
            "ViT-B-32",
            None,
            "pretrained is None.*random weights.*valid: --pretrained one of its .* tags.*a weights file, or none",
        ),
    ],
)
def test_refusals(name, pretrained, message, tmp_path):
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(InputError, match=message):
        load_backbone(name.format(folder=tmp_path), pretrained)


def test_damaged_weights(clip_folder, tmp_path):
    (tmp_path / "open_clip_config.json").write_bytes((clip_folder / "open_clip_config.json").read_bytes())
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(InputError, match=r"weights file .* is damaged"):
        load_backbone(f"local-dir:{tmp_path}")


def test_hash_knows_the_base_alone():
    clip = small_clip()
    value = base_hash(clip)
    assert value == base_hash(small_clip())
    inject(clip, RMAdapterConfig(layers="all"))
    assert base_hash(clip) == value
    with torch.no_grad():
        clip.visual.proj[0, 0] += 1e-3
    assert base_hash(clip) != value
    assert base_hash(small_clip().bfloat16()) != value


@pytest.mark.slow
def test_random_weights_are_the_same_each_time_and_warned_of():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with pytest.warns(UserWarning, match="ViT-B-32 with --pretrained none has random weights"):
        one = load_backbone("ViT-B-32", "none")
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.warns(UserWarning, match="random weights"):
        other = load_backbone("ViT-B-32", "none")
    assert base_hash(one.clip) == base_hash(other.clip)
