"""``rmadapter models``, and what cannot be adapted."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import open_clip
import pytest
import torch
from conftest import small_clip
from small_towers import SmallTokenizer, small_model
from torch import nn

from rmadapter import InputError, RMAdapterCLIP, RMAdapterConfig, inject
from rmadapter.cli import main
from rmadapter.clip import backbone, model_table
from rmadapter.clip.stand_in_tokenizer import StandInTokenizer
from rmadapter.config import PromptConfig, TunerConfig
from rmadapter.config.lora import LoraConfig


def test_rates_that_a_model_reads_while_it_is_made_are_zero():
    """As timm 1.0.17 reads those of its stochastic depth. Sizes are no rates."""
    with torch.device("meta"), model_table._RatesAreZero():
        assert [rate.item() for rate in torch.linspace(0, 0.1, 3)] == [0.0] * 3
        assert torch.linspace(0, 0.1, 3).tolist() == [0.0] * 3
        with pytest.raises(RuntimeError, match="meta"):
            torch.arange(3).sum().item()


def test_names_are_looked_at_without_weights(capsys):
    names = ["ViT-B-16", "ViT-B-16-SigLIP", "EVA02-L-14", "RN50", "roberta-ViT-B-32"]
    assert main(["models", *names, "--json"]) in (0, None)
    rows = {row["name"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert rows["ViT-B-16"]["blocks"] == [12, 12]
    assert set(rows["ViT-B-16"]["shortcuts"].values()) == {"yes"}
    siglip = rows["ViT-B-16-SigLIP"]["shortcuts"]
    assert siglip["trim"] == "what stands behind a prompt's end counts"
    assert siglip["last_token, text"] == "yes"
    assert "attention over all tokens" in siglip["last_token, vision"]
    assert rows["EVA02-L-14"]["vision"] == "timm EVA"
    assert rows["EVA02-L-14"]["shortcuts"]["last_token, vision"] == "yes"
    assert rows["roberta-ViT-B-32"]["shortcuts"]["trim"] == "yes"
    assert "ModifiedResNet" in rows["RN50"]["refused"]


def test_a_table_says_how_many_work(capsys):
    main(["models", "ViT-B-16", "RN50"])
    printed = capsys.readouterr().out
    assert "1 of 2 can be adapted; not these:" in printed
    assert "vision and text" in printed
    main(["models", "ViT-B-16", "--markdown"])
    assert capsys.readouterr().out.startswith("| model ")
    assert main(["models", "ViT-B-61"]) == 2
    assert "'ViT-B-61', which open_clip does not know; did you mean 'ViT-B-16'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        (lambda clip: clip.visual.conv1.to("meta"), "spread over 2 devices"),
        (
            lambda clip: setattr(
                clip.transformer.resblocks[0].mlp, "c_fc", torch.ao.nn.quantized.dynamic.Linear(32, 128)
            ),
            "quantised Linear",
        ),
        (
            lambda clip: clip.transformer.resblocks[1].mlp.half(),
            "text tower's blocks have matrices in float16 and",
        ),
        (
            lambda clip: setattr(
                clip, "text_projection", nn.Parameter(torch.zeros(32, 32, dtype=torch.int8), requires_grad=False)
            ),
            "text_projection in int8; valid: a model of floating-point weights",
        ),
    ],
)
def test_models_that_cannot_be_adapted_are_refused(spoiled, message):
    clip = small_clip()
    spoiled(clip)
    with pytest.raises(InputError, match=message):
        inject(clip)


def test_a_compiled_model_is_refused_for_what_is_in_it():
    with pytest.raises(InputError, match=r"OptimizedModule around a CLIP; valid: what is in it, clip\._orig_mod"):
        inject(torch.compile(small_clip()))


@pytest.mark.parametrize(("name", "cut"), [("ViT-L-14-CLIPA", "CLIP"), ("ViT-B-16-SigLIP", "CustomTextCLIP")])
def test_random_weights_take_a_stand_in_where_the_tokenizer_cannot_be_had(name, cut, monkeypatch):
    def no_tokenizer(*_, **__):
        raise OSError("no hub")

    monkeypatch.setattr(backbone, "_tokenizer", no_tokenizer)
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: small_model(name))
    with pytest.warns(UserWarning, match="cannot be had .OSError.; random weights take a stand-in"):
        found = backbone.load_backbone(name, "none")
    assert type(found.clip).__name__ == cut
    assert found.tokenizer(["a cat"]).shape == (1, open_clip.get_model_config(name)["text_cfg"]["context_length"])
    with pytest.raises(InputError, match="no hub"):
        backbone.load_backbone(name, open_clip.list_pretrained_tags_by_model(name)[0])


def test_the_documented_table_has_every_model():
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    # Folders that were loaded as models in this process are listed by open_clip too.
    for name in (name for name in open_clip.list_models() if not name.startswith("local-")):
        assert re.search(rf"(^\| |^- |, ){re.escape(name)}( \||,|:)", text, re.MULTILINE), name


def test_a_tokenizer_is_needed():
    with pytest.raises(InputError, match=r"tokenizer is None; valid: .*get_tokenizer"):
        RMAdapterCLIP(small_clip(), None, ["cat"])


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("ViT-B-16-SigLIP", PromptConfig(vision_tokens=2, vision_depth=1), "pooled at its class token; valid: 0"),
        (
            "MobileCLIP-B",
            PromptConfig(vision_tokens=2, vision_depth=1),
            "needs an open_clip ViT, and this is a timm ViT; valid: 0",
        ),
        ("roberta-ViT-B-32", PromptConfig(text_tokens=2, init="random"), "has no embedding that they can enter by"),
        ("coca_ViT-B-32", PromptConfig(text_tokens=2, init="random"), "keeps padding apart"),
    ],
)
def test_learned_tokens_say_which_towers_take_them(name, config, message):
    with pytest.raises(InputError, match=message):
        inject(small_model(name), TunerConfig(adapter=RMAdapterConfig(layers="none"), prompt=config))


def test_updates_say_which_blocks_take_them():
    with pytest.raises(InputError, match=r"the vision tower is a timm EVA, .*valid: lora\.vision_layers none"):
        inject(small_model("EVA02-L-14"), TunerConfig(adapter=RMAdapterConfig(layers="none"), lora=LoraConfig(rank=2)))


def test_a_stand_in_keeps_texts_apart():
    tokenizer = StandInTokenizer({"vocab_size": 1000, "pool_type": "eos", "eos_id": 2}, pad=1, context_length=12)
    tokens = tokenizer(["a cat", "a dog", "a dog " * 10])
    assert tokens.shape == (3, 12)
    assert not torch.equal(tokens[0], tokens[1])
    assert tokens[0].tolist()[3:] == [2, *[1] * 8]
    assert int(tokens.max()) < 1000
    assert tokenizer("a cat", context_length=5).shape == (1, 5)


def test_copies_of_any_tower_are_independent():
    clip = small_model("EVA02-L-14")
    model = inject(clip, RMAdapterConfig(layers="2-3", bottleneck=4))
    other = copy.deepcopy(model)
    tokens = SmallTokenizer(clip)(["cat"])
    with torch.no_grad():
        before = model.encode_image(torch.ones(1, 3, 32, 32))
        for parameter in other.trained().values():
            parameter.add_(1.0)
        assert torch.equal(model.encode_image(torch.ones(1, 3, 32, 32)), before)
        assert not torch.equal(other.encode_image(torch.ones(1, 3, 32, 32)), before)
        assert other.encode_text(tokens).shape == (1, 24)
