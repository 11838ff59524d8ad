"""Configuration: what is valid, what is refused and with which words, and how towers take their values."""

from __future__ import annotations

import pytest

from rmadapter.config import LossConfig, RMAdapterConfig, TowerOverrides, TrainConfig, layer_numbers
from rmadapter.errors import InputError


@pytest.mark.parametrize(
    ("spec", "numbers"),
    [
        ("all", [1, 2, 3, 4, 5, 6]),
        ("none", []),
        ("last:2", [5, 6]),
        ("2-4", [2, 3, 4]),
        ("1,5-6", [1, 5, 6]),
        ("3", [3]),
        ([6, 2], [2, 6]),
    ],
)
def test_layer_numbers(spec, numbers):
    assert layer_numbers(RMAdapterConfig(layers=spec).layers, 6) == numbers


def test_layers_from_a_range_are_those_of_the_last_eight_of_twelve():
    config = RMAdapterConfig(layers=range(5, 13))
    assert layer_numbers(config.layers, 12) == layer_numbers("last:8", 12) == list(range(5, 13))


@pytest.mark.parametrize(("depth", "first"), [(12, 5), (24, 9), (3, 2), (4, 2), (1, 1), (27, 10)])
def test_a_share_is_of_the_towers_own_depth(depth, first):
    assert layer_numbers("last:2/3", depth) == list(range(first, depth + 1))


@pytest.mark.parametrize("spec", ["last:7", "0", "7", "3-9", [7], [0], "5-3", []])
def test_layers_outside_the_tower_are_named(spec):
    with pytest.raises(InputError, match=r"valid: .*1 to (last:)?6"):
        layer_numbers(RMAdapterConfig(layers=spec).layers, 6)


def test_a_layer_named_twice_is_refused():
    with pytest.raises(InputError, match="twice"):
        layer_numbers("2,1-3", 6)


@pytest.mark.parametrize("spec", ["first:2", "last:0", "a", 3, [1.5], [True]])
def test_other_layer_forms_are_refused(spec):
    with pytest.raises(InputError, match=r"adapter\.layers is .*valid"):
        RMAdapterConfig(layers=spec)


def test_towers_take_their_overrides_and_else_the_shared_values():
    config = RMAdapterConfig(
        scale=0.01, vision=TowerOverrides(bottleneck=8, scale=0.5), text=TowerOverrides(layers=[1])
    )
    vision, text = config.tower("vision"), config.tower("text")
    assert (vision.bottleneck, vision.rec_hidden, vision.scale, vision.layers) == (8, 8, 0.5, "last:2/3")
    assert (text.bottleneck, text.rec_hidden, text.scale, text.layers) == (32, 32, 0.01, [1])
    assert vision.branch_grad_scale == 1 / 0.5
    assert text.branch_grad_scale == 1 / 0.01
    assert RMAdapterConfig(branch_grad_scale=3.0).tower("text").branch_grad_scale == 3.0


def test_dictionary_and_back():
    config = RMAdapterConfig(layers=[2, 3], objective="cosine", text=TowerOverrides(bottleneck=16))
    assert RMAdapterConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("values", [{"bottelneck": 3}, {"vision": {"bottelneck": 3}}])
def test_unknown_keys_are_refused_with_the_nearest(values):
    with pytest.raises(InputError, match="did you mean 'bottleneck'"):
        RMAdapterConfig.from_dict(values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bottleneck": 0}, r"adapter\.bottleneck is 0; valid: a number >= 1 and <= 128"),
        ({"bottleneck": 129}, r"adapter\.bottleneck is 129"),
        ({"rec_hidden": 200}, r"adapter\.rec_hidden is 200"),
        ({"vision": TowerOverrides(bottleneck=500)}, r"adapter\.vision\.bottleneck is 500"),
        ({"scale": 0.0}, r"adapter\.scale is 0\.0; valid: a number > 0"),
        ({"scale": float("nan")}, r"adapter\.scale is nan"),
        ({"activation": "gelo"}, r"adapter\.activation is 'gelo'.*did you mean 'gelu'"),
        ({"objective": "l3"}, r"adapter\.objective is 'l3'"),
        ({"rec_layers": 4}, r"adapter\.rec_layers is 4; valid: 1, 2, 3"),
        ({"init": "zero"}, r"adapter\.init"),
        ({"rec_stream": "x"}, r"adapter\.rec_stream"),
        ({"rec_tokens": "some"}, r"adapter\.rec_tokens"),
        ({"adapter_input": "x"}, r"adapter\.adapter_input"),
        ({"shared_layer": True, "text": TowerOverrides(bottleneck=8)}, "same bottleneck"),
        ({"separate_down": True, "reconstruct": False}, r"adapter\.reconstruct is False"),
    ],
)
def test_adapter_values_out_of_range(arguments, message):
    with pytest.raises(InputError, match=message):
        RMAdapterConfig(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": ""}, "data is missing"),
        ({"shots": 0}, "shots is 0; valid: a number >= 1"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"lr": 0.0}, r"lr is 0\.0"),
        ({"classes": "old"}, "classes is 'old'; valid: 'all', 'base', 'new'"),
        ({"precision": "bf61"}, "precision is 'bf61'.*did you mean 'bf16'"),
        ({"augmentation": "flip"}, "augmentation"),
        ({"template": "a photo"}, "template is 'a photo'"),
        ({"template": "{} {}"}, "template"),
        ({"template": "{0}"}, "template"),
        ({"resume": True, "overwrite": True}, "resume and overwrite"),
        ({"fused": False, "backend": "eager"}, "backend is 'eager' and fused is False"),
    ],
)
def test_training_values_out_of_range(arguments, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(**{"data": "animals", **arguments})


def test_loss_weights_are_not_negative():
    with pytest.raises(InputError, match=r"loss\.lambda3 is -1"):
        LossConfig(lambda3=-1)
