"""The bundled small CLIP: its file, what it knows, and warnings about what it does not."""

from __future__ import annotations

import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load

from rmadapter.cli import main
from rmadapter.clip import emoji_clip as clip
from rmadapter.clip.backbone import load_backbone
from rmadapter.clip.names import MODEL
from rmadapter.data import Preprocessing
from rmadapter.data.emoji import atlas
from rmadapter.data.emoji.emoji_data import DEFAULT_STYLE
from rmadapter.errors import InputError
from rmadapter.testbed import zero_shot
from rmadapter.testbed.pool import TEMPLATES, Captions


def test_packing_keeps_the_trained_rows_and_fills_the_others_from_a_fixed_seed():
    torch.manual_seed(1)
    model = clip.new_model(7)
    used = torch.tensor([0, 3, 500, 501, 9000, 49406, 49407])
    packed = clip.pack(model.state_dict(), used)
    assert packed[clip.ROWS].shape == (7, 96)
    assert clip.EMBEDDING not in packed
    state = clip.unpack(packed)
    table = state[clip.EMBEDDING]
    assert table.shape == (49408, 96)
    assert torch.equal(table[used], model.token_embedding.weight.detach().half().float())
    assert torch.equal(table, clip.unpack(packed)[clip.EMBEDDING])
    assert table[1].std() > 0.5
    rest = {name: tensor.half().float() for name, tensor in model.state_dict().items() if name != clip.EMBEDDING}
    rest["logit_scale"] = model.logit_scale.detach()
    assert state.keys() - {clip.EMBEDDING} == rest.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in rest.items())


def test_it_is_a_plain_open_clip_model_of_the_bundled_config():
    backbone = load_backbone(MODEL)
    config = json.loads(atlas.read_bundled(clip.CONFIG))
    twin = open_clip.CLIP(**config["model_cfg"])
    twin.load_state_dict(backbone.clip.state_dict())
    assert config["model_cfg"] == clip.ARCHITECTURE
    assert backbone.preprocessing == Preprocessing(48, (0.5,) * 3, (0.25,) * 3)
    assert backbone.source.name == MODEL
    assert backbone.source.pretrained is None


def test_only_rows_that_occur_are_kept():
    index = load(atlas.read_bundled(clip.WEIGHTS))[clip.INDEX].long()
    names = tuple(emoji.name for emoji in atlas.catalogue())
    assert torch.equal(index, Captions(names, len(names)).used)


@pytest.mark.parametrize(("group", "least"), [("food", 55), pytest.param("animals", 43, marks=pytest.mark.slow)])
def test_zero_shot_accuracy_on_a_style_it_has_never_seen(group, least, monkeypatch):
    monkeypatch.setattr(zero_shot, "GROUPS", (group,))
    monkeypatch.setattr(zero_shot, "ONE_DRAWING", (DEFAULT_STYLE, "fluent"))
    assert zero_shot.zero_shot(atlas.FILES)[group]["fluent"] >= least


def test_untrained_words_are_those_with_a_token_that_pretraining_never_saw():
    assert clip.untrained_words(["a photo of a grapes.", "Hot Dog", "a photo of a"]) == []
    assert clip.untrained_words(["hot xylophone", "red zither", "xylophone"]) == ["xylophone", "zither"]
    assert all(clip.untrained_words([template.replace("{}", "cat")]) == [] for template in TEMPLATES)


def test_predict_warns_about_untrained_words(tmp_path, capsys):
    path = tmp_path / "image.png"
    Image.fromarray(np.full((48, 48, 3), 200, np.uint8)).save(path)
    command = ["predict", str(path), "--model", MODEL, "--top", "1"]
    assert main([*command, "--classes", "cat,xylophone"]) == 0
    assert "emoji-clip was not pretrained on 'xylophone'" in capsys.readouterr().err
    assert main([*command, "--classes", "cat,dog"]) == 0
    assert "warning" not in capsys.readouterr().err


def test_names_near_it_and_a_tag_are_refused():
    with pytest.raises(InputError, match="did you mean 'emoji-clip'"):
        load_backbone("emoji_clip")
    with pytest.raises(InputError, match="pretrained is 'openai', but model 'emoji-clip' brings its own weights"):
        load_backbone(MODEL, "openai")


def test_damaged_weights_are_named_with_their_hash(tmp_path, monkeypatch):
    content = bytearray(atlas.read_bundled(clip.WEIGHTS))
    content[-1] ^= 1
    for name in (clip.CONFIG, atlas.MANIFEST):
        (tmp_path / name).write_bytes((atlas.FILES / name).read_bytes())
    (tmp_path / clip.WEIGHTS).write_bytes(content)
    monkeypatch.setattr(atlas, "FILES", tmp_path)
    with pytest.raises(InputError, match=r"emoji-clip\.safetensors is damaged: SHA-256 [0-9a-f]{64}, expected"):
        load_backbone(MODEL)
