"""Models built without drawing the weights that a file brings."""

from __future__ import annotations

import open_clip
import pytest
import torch
from conftest import small_clip
from torch import nn

from rmadapter.clip import backbone
from rmadapter.clip.backbone import load_backbone
from rmadapter.clip.undrawn import built

DRAWN = ("normal", "uniform", "truncated", "padded.weight", "slices")


class Drawn(nn.Module):
    """Weights from each of torch's distributions, whole and in part, and numbers that are not drawn."""

    def __init__(self):
        super().__init__()
        self.normal = nn.Parameter(nn.init.normal_(torch.empty(4, 5)))
        self.uniform = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(4, 5)))
        self.truncated = nn.Parameter(nn.init.trunc_normal_(torch.empty(4, 5), std=0.02))
        self.padded = nn.Embedding(6, 3, padding_idx=0)
        self.slices = nn.Parameter(torch.zeros(5, 4).t())
        nn.init.normal_(self.slices[1:])
        self.zero = nn.Parameter(torch.zeros(3))
        self.register_buffer("steps", torch.arange(3), persistent=False)


def counted(build):
    calls = []

    def one():
        calls.append(None)
        return build()

    return one, calls


def test_what_a_file_brings_is_not_drawn():
    weights = {name: torch.randn_like(tensor) for name, tensor in Drawn().state_dict().items()}
    weights["zero"].zero_()

    def loaded():
        model = Drawn()
        assert all(model.get_parameter(name).isnan().any() for name in DRAWN)
        model.load_state_dict(weights)
        return model

    one, calls = counted(loaded)
    model = built(one)
    assert len(calls) == 1
    assert all(torch.equal(model.get_parameter(name), weight) for name, weight in weights.items())
    assert model.zero.tolist() == [0, 0, 0]
    assert model.steps.tolist() == [0, 1, 2]


@pytest.mark.parametrize("missing", DRAWN)
def test_what_a_file_does_not_bring_is_drawn_as_ever(missing):
    weights = {name: torch.ones_like(tensor) for name, tensor in Drawn().state_dict().items() if name != missing}

    def loaded():
        model = Drawn()
        model.load_state_dict(weights, strict=False)
        return model

    one, calls = counted(loaded)
    torch.manual_seed(3)
    model = built(one)
    assert len(calls) == 2
    torch.manual_seed(3)
    assert torch.equal(model.get_parameter(missing), loaded().get_parameter(missing))


def test_memory_that_holds_anything_ends(monkeypatch):
    """torch draws a truncated normal distribution until no value is out of range."""
    real = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **options: real(*size, **options).fill_(1e30))
    monkeypatch.setattr(torch, "empty_like", lambda tensor, **options: torch.empty(tensor.shape, **options))
    model = built(lambda: nn.ParameterList([nn.init.trunc_normal_(torch.empty(1000), std=0.02)]))
    assert model[0].abs().max() <= 2


def test_a_model_from_a_folder_has_the_file_s_weights_and_is_built_once(clip_folder, monkeypatch):
    calls, real = [], open_clip.create_model
    monkeypatch.setattr(backbone.open_clip, "create_model", lambda *a, **k: calls.append(a) or real(*a, **k))
    expected = small_clip().state_dict()
    found = load_backbone(f"local-dir:{clip_folder}").clip.state_dict()
    assert len(calls) == 1
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
