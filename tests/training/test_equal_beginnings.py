"""Methods begin at the same weights where they have the same weights, so that their difference is the method's."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from conftest import small_clip
from small_runs import adapter_of

from rmadapter import LossConfig, RMAdapterConfig, inject
from rmadapter.clip.backbone import load_backbone
from rmadapter.data import load_data
from rmadapter.data.catalog import PHOTO
from rmadapter.methods import METHODS
from rmadapter.methods.method import TUNED
from rmadapter.methods.options import configure
from rmadapter.training.adapter_run import train
from rmadapter.training.loop import TrainingLoop
from rmadapter.tuners.weight_draws import run_seed, weight_generator

ADAPTERS = [name for name, method in METHODS.items() if method.kind == TUNED and method.groups == ("adapter",)]


def drawn(adapter: RMAdapterConfig, seed: int = 1) -> dict[str, torch.Tensor]:
    model = inject(small_clip(), adapter, seed=seed)
    return {name: tensor.detach().clone() for name, tensor in model.adapter_tensors().items()}


def of_method(name: str, seed: int = 1) -> dict[str, torch.Tensor]:
    return drawn(configure(name, ["--data", "x", "--adapter.layers", "2-3", "--adapter.bottleneck", "4"]).adapter, seed)


def test_weights_that_any_two_methods_share_begin_equal():
    """Of every method that is trained, as it is on the test bed."""
    backbone = load_backbone("emoji-clip", None, torch.device("cpu"))
    methods = {}
    for name in (name for name, method in METHODS.items() if method.kind == TUNED):
        tuned = configure(name, ["--data", "emoji_food"]).tuned
        classes = {"class_names": ["ant", "bee"], "template": PHOTO, "tokenizer": backbone.tokenizer}
        model = inject(backbone.clip, tuned, seed=1, cached_images=4, **classes)
        methods[name] = {name: tensor.detach().clone() for name, tensor in model.adapter_tensors().items()}
        model.remove()
    shared = {pair: methods[pair[0]].keys() & methods[pair[1]].keys() for pair in itertools.combinations(methods, 2)}
    adapters = {
        f"{tower}.{layer}.{key}" for tower in ("vision", "text") for layer in (2, 3, 4) for key in ("w_down", "w_up")
    }
    assert all(adapters <= names for pair, names in shared.items() if set(pair) <= set(ADAPTERS))
    assert shared["ivlp", "maple"]
    for (one, other), names in shared.items():
        for name in names:
            if methods[one][name].shape == methods[other][name].shape:
                assert torch.equal(methods[one][name], methods[other][name]), f"{name} of {one} and {other}"


def test_more_blocks_leave_the_weights_of_the_others():
    few, many = (drawn(RMAdapterConfig(layers=layers, bottleneck=4)) for layers in ("3", "1-3"))
    assert all(torch.equal(tensor, many[name]) for name, tensor in few.items())


def test_no_two_weights_begin_equal():
    weights = {name: tensor for name, tensor in of_method("mma").items() if tensor.ndim == 2}
    weights |= {f"seed 2: {name}": tensor for name, tensor in of_method("mma", seed=2).items() if tensor.ndim == 2}
    firsts = [tensor.flatten()[:8].tolist() for tensor in weights.values()]
    assert len(weights) == 2 * (2 * 2 * 2 + 2)
    # Up to the factor of their widths, which the rule of initialisation gives them.
    directions = {tuple(round(value / first[0], 4) for value in first) for first in firsts}
    assert len(directions) == len(weights)


def test_without_a_seed_torch_s_generator_decides_and_with_one_it_is_left_alone():
    def weights(seed):
        torch.manual_seed(5)
        model = inject(small_clip(), RMAdapterConfig(layers="3", bottleneck=4), seed=seed)
        return model.adapter_tensors()["vision.3.w_down"].detach(), torch.rand(1)

    (one, _), (other, _) = weights(None), weights(None)
    assert torch.equal(one, other)
    _, after = weights(3)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))


def test_the_generator_depends_on_every_part_of_the_name():
    first = weight_generator(1, "vision", 11, "w_up").initial_seed()
    others = [
        (2, "vision", 11, "w_up"),
        (1, "text", 11, "w_up"),
        (1, "vision", 1, "1w_up"),
        (1, "vision", 11, "w_down"),
    ]
    assert all(weight_generator(*names).initial_seed() != first for names in others)


def test_every_seed_and_data_set_has_draws_of_its_own():
    names = [(1, "a", None), (2, "a", None), (1, "b", None), (1, "a", "fluent"), (1, "a", "noto"), (12, "a", None)]
    assert len({run_seed(*name) for name in names}) == len(names)
    assert all(0 <= run_seed(*name) < 2**63 for name in names)


def test_runs_begin_at_draws_of_their_seed_and_data_set(config, tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(TrainingLoop, "fit", lambda loop, folder: begun.append(values_of(loop)))
    data = load_data(config().data)
    runs = [(data, 1, {}), (data, 2, {}), (dataclasses.replace(data, name="other"), 1, {})]
    runs += [(data, 1, {"adapter": RMAdapterConfig(layers="2-3", bottleneck=8, reconstruct=False)})]
    for number, (of, seed, changes) in enumerate(runs):
        run = config(seed=seed, out=str(tmp_path / str(number)), evaluate=False, **changes)
        train(run, data=of)
    first, other_seed, other_data, other_method = begun
    name = "vision.3.w_down"
    assert torch.equal(first[name], other_method[name])
    assert not torch.equal(first[name], other_seed[name])
    assert not torch.equal(first[name], other_data[name])


def values_of(loop):
    return {name: tensor.detach().clone() for name, tensor in loop.model.adapted.adapter_tensors().items()}


@pytest.mark.parametrize("shortcuts", [True, False])
def test_rmadapter_without_weight_on_its_reconstruction_is_single_with_consistency(config, tmp_path, shortcuts):
    adapter = {"layers": "2-3", "bottleneck": 4, "scale": 0.5}
    same = {"shortcuts": shortcuts, "epochs": 2}
    weightless = configure("rmadapter-lambda0", ["--data", "x"])  # the control of the ablation
    assert weightless.adapter.reconstruct
    zero = train(
        config(**same, adapter=RMAdapterConfig(**adapter), loss=weightless.loss, out=str(tmp_path / "zero")),
    )
    single = train(
        config(**same, adapter=RMAdapterConfig(**adapter, reconstruct=False), loss=LossConfig(lambda1=0, lambda2=0))
    )
    expected, found = adapter_of(tmp_path / "run"), adapter_of(tmp_path / "zero")
    assert set(expected) < set(found)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)
    assert zero["accuracy"] == single["accuracy"]
