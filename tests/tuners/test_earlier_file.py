"""An adapter folder as it was written when adapters were all that could be trained, field for field."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from conftest import small_clip
from safetensors.torch import save_file

from rmadapter import InputError, RMAdapterCLIP, RMAdapterConfig, TowerOverrides, inject, load
from rmadapter.clip.identity import identity_of

BLOCKS = {"vision": (64, (2, 3)), "text": (32, (3,))}
SHAPES = {
    "w_down": lambda d: (d, 4),
    "b_down": lambda d: (4,),
    "w_up": lambda d: (4, d),
    "b_up": lambda d: (d,),
    "w_rec1": lambda d: (4, 4),
    "b_rec1": lambda d: (4,),
    "w_rec2": lambda d: (4, d),
    "b_rec2": lambda d: (d,),
}
CONFIG = {
    "layers": "last:2",
    "bottleneck": 4,
    "rec_hidden": None,
    "activation": "gelu",
    "scale": 0.5,
    "reconstruct": True,
    "objective": "l2",
    "local_reconstruction": True,
    "branch_grad_scale": None,
    "init": "kaiming",
    "adapter_input": "ln_1",
    "rec_stream": "adapted",
    "rec_tokens": "valid",
    "rec_layers": 2,
    "separate_down": False,
    "shared_layer": False,
    "vision": {"layers": None, "bottleneck": None, "scale": None},
    "text": {"layers": [3], "bottleneck": None, "scale": None},
}


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        f"{tower}.{layer}.{name}": torch.randn(shape(width), generator=generator)
        for tower, (width, layers) in BLOCKS.items()
        for layer in layers
        for name, shape in SHAPES.items()
    }


@pytest.fixture
def folder(tensors, tmp_path):
    save_file(tensors, tmp_path / "adapter.safetensors")
    base = identity_of(small_clip())
    values = {
        "format": 2,
        "source": {"name": "ViT-B-32", "pretrained": "openai"},
        "base": {"weights": base.weights, "dtype": base.dtype, "structure": base.structure},
        "tokenizer": None,
        "preprocessing": {
            "size": 32,
            "mean": [0.48, 0.46, 0.41],
            "std": [0.27, 0.26, 0.28],
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
        "precision": "fp32",
        "class_names": ["cat", "dog"],
        "template": "a {}",
        "training": {"method": "rmadapter", "data": "pets", "style": None, "classes": "base", "shots": 16, "seed": 1},
        "weights_sha256": hashlib.sha256((tmp_path / "adapter.safetensors").read_bytes()).hexdigest(),
        "config": CONFIG,
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(values))
    return tmp_path


def test_it_predicts_what_the_same_weights_do_today(folder, tensors, tokenizer, tmp_path):
    config = RMAdapterConfig(layers="last:2", bottleneck=4, scale=0.5, text=TowerOverrides(layers=[3]))
    today = inject(small_clip(), config)
    with torch.no_grad():
        for name, parameter in today.adapter_tensors().items():
            parameter.copy_(tensors[name])
    earlier = load(small_clip(), folder)
    assert earlier.tuned == today.tuned
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    def logits(model):
        with torch.no_grad():
            return RMAdapterCLIP(model, tokenizer, ["cat", "dog"], "a {}").eval()(images).logits

    expected = logits(today)
    assert torch.equal(logits(earlier), expected)
    assert not torch.equal(logits(inject(small_clip(), config)), expected)
    other = inject(small_clip(), config)
    other.load_adapter(folder)
    other.save_adapter(tmp_path / "now")
    assert set(json.loads((tmp_path / "now" / "adapter_config.json").read_text())["config"]) > {"adapter", "prompt"}
    assert torch.equal(logits(load(small_clip(), tmp_path / "now")), expected)


def test_what_is_wrong_in_it_is_said(folder):
    file = folder / "adapter_config.json"
    values = json.loads(file.read_text())
    for wrong, message in (
        ({"bottelneck": 4}, "key in adapter.config.adapter is 'bottelneck'.*did you mean 'bottleneck'"),
        ({"bottleneck": "4"}, r"adapter\.config\.adapter\.bottleneck is '4'; valid: a whole"),
    ):
        file.write_text(json.dumps({**values, "config": {**CONFIG, **wrong}}))
        with pytest.raises(InputError, match=message):
            load(small_clip(), folder)
