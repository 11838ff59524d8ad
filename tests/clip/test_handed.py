"""What is handed over in place of a CLIP model is said; what comes in and goes out is finite."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import small_clip
from torch import nn

from rmadapter import InputError, RMAdapterConfig, inject, load
from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.clip.finite import check_finite, is_finite
from rmadapter.files import write_json

CONFIG = RMAdapterConfig(layers="3", bottleneck=4)


class FSDPCLIP(nn.Module):
    """Named as torch names a model whose weights it has sharded."""


class OptimizedModule(nn.Module):
    """What torch.compile makes, without its import of all of Dynamo."""

    def __init__(self, model):
        super().__init__()
        self._orig_mod = model


def named(module: str, name: str) -> nn.Module:
    return type(name, (nn.Module,), {"__module__": module})()


HANDED = {
    "none": (lambda clip: None, "clip is None; valid: an open_clip CLIP model, such as open_clip.create_model"),
    "a name": (lambda clip: "ViT-B-16", r"clip is 'ViT-B-16' \(str\); valid: an open_clip CLIP model"),
    "a tuple": (
        lambda clip: (clip, None, None),
        "clip is a tuple of 3, as create_model_and_transforms returns it; valid",
    ),
    "DataParallel": (nn.DataParallel, "clip is a DataParallel around a CLIP; valid: what is in it, clip.module"),
    "compiled": (OptimizedModule, r"clip is a OptimizedModule around a CLIP; valid: what is in it, clip\._orig_mod"),
    "adapted": (
        lambda clip: inject(clip, CONFIG),
        "clip is a AdaptedCLIP around a CLIP; valid: what is in it, clip.clip",
    ),
    "sharded": (lambda clip: FSDPCLIP(), "clip is a FSDPCLIP, whose weights are spread over processes"),
    "timm": (lambda clip: named("timm.models.vit", "ViT"), "clip is a ViT of timm, which is an image model alone"),
    "transformers": (lambda clip: named("transformers.clip", "CLIPModel"), "clip is a CLIPModel of Hugging Face's"),
    "OpenAI's": (lambda clip: named("clip.model", "CLIP"), "clip is a CLIP of OpenAI's package"),
    "a layer": (lambda clip: nn.Linear(2, 2), "clip is a Linear, which has no image and text tower"),
}


@pytest.mark.parametrize("kind", HANDED)
def test_what_was_handed_over_is_said(kind, tmp_path):
    make, message = HANDED[kind]
    handed = make(small_clip())
    for call in (lambda: inject(handed, CONFIG), lambda: load(handed, tmp_path)):
        with pytest.raises(InputError, match=message):
            call()


@pytest.mark.slow
def test_a_compiled_model_is_said():
    with pytest.raises(InputError, match=HANDED["compiled"][1]):
        inject(torch.compile(small_clip()), CONFIG)


def test_a_model_in_half_precision(tmp_path):
    """Its weights are others than those of the training, and it can be handed over before it is cast."""
    inject(small_clip(), CONFIG).save_adapter(tmp_path)
    with pytest.raises(InputError, match=r"dtype of the weights is 'float32' in its record, 'float16'.*cast it \(half"):
        load(small_clip().half(), tmp_path)


def test_weights_that_are_not_finite_come_in_nowhere(tmp_path):
    clip = small_clip()
    inject(small_clip(), CONFIG).save_adapter(tmp_path)
    with torch.no_grad():
        clip.token_embedding.weight[7, 3] = float("inf")
    with pytest.raises(InputError, match=r"the base model's token_embedding\.weight holds values that are not finite"):
        inject(clip, CONFIG)
    assert not any("rm_adapter" in key for key in clip.state_dict())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_value_is_enough(value):
    tensor = torch.zeros(3, 4, dtype=torch.bfloat16)
    assert is_finite(tensor)
    tensor[1, 2] = value
    assert not is_finite(tensor)
    with pytest.raises(InputError, match="the image features hold values that are not finite"):
        check_finite("image features", tensor)
    assert is_finite(torch.zeros(0))
    assert is_finite(torch.zeros(2, device="meta"))


@pytest.mark.parametrize("what", ["image features", "text features", "logits"])
def test_no_answer_is_made_of_what_is_not_finite(what, tokenizer):
    """Finite weights of a broken model: an accuracy of 1/classes, or NaN in JSON."""
    clip = small_clip()
    with torch.no_grad():
        if what == "logits":
            clip.logit_scale.fill_(1e4)
        else:
            (clip.visual.proj if what == "image features" else clip.text_projection).fill_(1e38).mul_(1e38)
            assert not torch.isfinite(clip.visual.proj if what == "image features" else clip.text_projection).all()
    model = CLIPClassifier(clip, tokenizer, ["ant", "bee"])
    with pytest.raises(InputError, match=f"the {what} hold values that are not finite"):
        model.classify(torch.zeros(1, 3, 32, 32), model.text_features())


def test_json_holds_no_nan(tmp_path):
    with pytest.raises(ValueError, match="a is nan; valid: a finite number"):
        write_json(tmp_path / "file.json", {"a": float("nan")})
    assert not (tmp_path / "file.json").exists()
    write_json(tmp_path / "file.json", {"a": 0.5})
    assert json.loads((tmp_path / "file.json").read_text()) == {"a": 0.5}
