"""Adapter files: what is in them, and each way in which they can be wrong."""

from __future__ import annotations

import errno
import json

import pytest
import torch
from conftest import small_clip
from safetensors.torch import load_file, save_file

from rmadapter import InputError, ModelSource, RMAdapterConfig, inject, load
from rmadapter.clip.backbone import Backbone
from rmadapter.clip.identity import weights_hash
from rmadapter.clip.storage import store_backbone
from rmadapter.config import HeadConfig, TunerConfig
from rmadapter.data import Preprocessing
from rmadapter.tuners import adapter_file
from rmadapter.tuners.adapter_file import read_info

CONFIG = RMAdapterConfig(layers="3", bottleneck=4)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return inject(small_clip(), CONFIG, source=ModelSource("ViT-B-32", "openai"))


@pytest.fixture
def folder(model, tmp_path):
    model.save_adapter(tmp_path / "adapter", class_names=["cat", "dog"], template="a {}")
    return tmp_path / "adapter"


def weights(model):
    return {name: p.detach().clone() for name, p in model.adapter_tensors().items()}


def test_files_and_keys_are_pinned(folder):
    assert sorted(p.name for p in folder.iterdir()) == ["adapter.safetensors", "adapter_config.json"]
    shapes = {name: list(t.shape) for name, t in load_file(folder / "adapter.safetensors").items()}
    tower = {
        "w_down": lambda d: [d, 4],
        "b_down": lambda d: [4],
        "w_up": lambda d: [4, d],
        "b_up": lambda d: [d],
        "w_rec1": lambda d: [4, 4],
        "b_rec1": lambda d: [4],
        "w_rec2": lambda d: [4, d],
        "b_rec2": lambda d: [d],
    }
    expected = {
        f"{name}.3.{key}": shape(d) for name, d in (("vision", 64), ("text", 32)) for key, shape in tower.items()
    }
    assert shapes == expected
    assert set(json.loads((folder / "adapter_config.json").read_text())) == {
        "format",
        "config",
        "source",
        "base",
        "tokenizer",
        "preprocessing",
        "precision",
        "class_names",
        "template",
        "training",
        "weights_sha256",
    }


def test_round_trip(model, folder):
    info = read_info(folder)
    assert (info.class_names, info.template, info.source) == (["cat", "dog"], "a {}", ModelSource("ViT-B-32", "openai"))
    assert info.config.adapter == CONFIG
    loaded = load(small_clip(), folder)
    for name, tensor in weights(model).items():
        assert torch.equal(loaded.adapter_tensors()[name], tensor)
    assert loaded.source == info.source
    torch.manual_seed(1)
    other = inject(small_clip(), CONFIG)
    other.load_adapter(folder)
    assert torch.equal(other.adapter_tensors()["text.3.w_up"], weights(model)["text.3.w_up"])


def test_shared_layers_are_saved_once(tmp_path):
    config = RMAdapterConfig(layers="2-3", reconstruct=False, shared_layer=True)
    model = inject(small_clip(), config)
    model.save_adapter(tmp_path / "mma")
    names = set(load_file(tmp_path / "mma" / "adapter.safetensors"))
    assert {n for n in names if n.startswith("shared")} == {
        f"shared.{k}.{p}" for k in (1, 2) for p in ("weight", "bias")
    }
    loaded = load(small_clip(), tmp_path / "mma")
    assert torch.equal(loaded.adapter_tensors()["shared.2.weight"], model.adapter_tensors()["shared.2.weight"])


def damage_json(folder, without=None, **changes):
    path = folder / "adapter_config.json"
    kept = {name: value for name, value in json.loads(path.read_text()).items() if name != without}
    path.write_text(json.dumps({**kept, **changes}))


def change_tensors(folder, change):
    path = folder / "adapter.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def drop(tensors):
    del tensors["vision.3.w_down"]


def add(tensors):
    tensors["vision.1.w_down"] = torch.zeros(2)


def reshape(tensors):
    tensors["vision.3.w_down"] = torch.zeros(4, 64)


def poison(tensors):
    tensors["text.3.b_up"][3] = float("nan")


def replace(tensors):
    tensors["text.3.b_up"] += 1


def truncate(folder):
    path = folder / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


WRONG = {
    "missing tensor": (lambda f: change_tensors(f, drop), r"lacks 1 tensors: vision\.3\.w_down"),
    "extra tensor": (lambda f: change_tensors(f, add), r"1 tensors too many: vision\.1\.w_down"),
    "wrong shape": (lambda f: change_tensors(f, reshape), r"w_down has shape \[4, 64\], the model's is \[64, 4\]"),
    "not finite": (lambda f: change_tensors(f, poison), r"text\.3\.b_up holds values that are not finite"),
    "other weights": (lambda f: change_tensors(f, replace), "not the file that adapter_config.json was written with"),
    "truncated": (truncate, "truncated or damaged"),
    "no weights": (lambda f: (f / "adapter.safetensors").unlink(), r"adapter\.safetensors is missing"),
    "no config": (lambda f: (f / "adapter_config.json").unlink(), r"adapter_config\.json is missing"),
    "not json": (lambda f: (f / "adapter_config.json").write_text("{"), "cannot be read"),
    "no adapter config": (lambda f: (f / "adapter_config.json").write_text("{}"), "no format number"),
    "newer format": (lambda f: damage_json(f, format=3), "format 3, newer than 2"),
    "older format": (
        lambda f: damage_json(f, format=1),
        "format 1, which does not say all that 2 does.*train it again",
    ),
    "unknown key": (lambda f: damage_json(f, config={"adapter": {"bottelneck": 1}}), "did you mean 'bottleneck'"),
    "malformed": (
        lambda f: damage_json(f, source=[]),
        r"is damaged: adapter\.source is \[\]; valid: an object or null",
    ),
    "mistyped": (
        lambda f: damage_json(f, config={"adapter": {"bottleneck": "4"}}),
        r"adapter\.config\.adapter\.bottleneck is '4'; valid: a whole",
    ),
    "mistyped inside": (lambda f: damage_json(f, preprocessing={"size": 32, "mean": 0, "std": [1, 1, 1]}), "mean is 0"),
    "missing": (lambda f: damage_json(f, without="base"), "adapter lacks field 'base'"),
    "nested": (
        lambda f: (f / "adapter_config.json").write_text("[" * 100_000),
        "too many lists or objects in one another",
    ),
    "settings that are none": (lambda f: damage_json(f, training={"settings": [1]}), r"training\.settings is \[1\]"),
    "classes that are none": (lambda f: damage_json(f, training={"classes": {"a": 1}}), r"training\.classes is"),
    "no deviation": (
        lambda f: damage_json(f, preprocessing={"size": 32, "mean": [0, 0, 0], "std": [0, 0, 0]}),
        "std is .*valid: numbers above 0",
    ),
    "deep training": (lambda f: damage_json(f, training=nested(100)), r"adapter\.training\.a is nested deeper than"),
    "huge": (lambda f: damage_json(f, template="{}" + " " * (17 << 20)), "is larger than 16 MB"),
    "layers": (lambda f: damage_json(f, config={"adapter": {"layers": "1-99999999"}}), "layers.* (is|=) .1-99999999."),
    "other residual": (lambda f: damage_json(f, training={"residual": "fp64"}), "training.residual is 'fp64'"),
    "other resizing": (lambda f: damage_preprocessing(f, interpolation="random"), "interpolation is 'random'"),
    "other size": (
        lambda f: damage_preprocessing(f, size=10**9),
        "preprocessing.size 1000000000, its base model takes",
    ),
    "other base": (lambda f: damage_base(f, weights="0" * 64), r"hash of the weights is '0{12}'.*ViT-B-32 \(openai\)"),
    "other structure": (lambda f: damage_base(f, structure={"model": "CLIP"}), "belongs to another base model"),
}


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return {"a": value}


def damage_base(folder, **changes):
    base = json.loads((folder / "adapter_config.json").read_text())["base"]
    damage_json(folder, base={**base, **changes})


def damage_preprocessing(folder, **changes):
    values = json.loads((folder / "adapter_config.json").read_text())["preprocessing"]
    damage_json(folder, preprocessing={**values, **changes})


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_and_nothing_is_touched(folder, name):
    damage, message = WRONG[name]
    damage(folder)
    torch.manual_seed(1)
    model = inject(small_clip(), CONFIG)
    before = weights(model)
    with pytest.raises(InputError, match=message):
        model.load_adapter(folder)
    for key, tensor in weights(model).items():
        assert torch.equal(tensor, before[key])
    clip = small_clip()
    keys = list(clip.state_dict())
    with pytest.raises(InputError, match=message):
        load(clip, folder)
    assert list(clip.state_dict()) == keys


def test_another_base_model_is_refused(folder):
    with pytest.raises(InputError, match=r"hash of the weights is '\w{12}' in its record, '\w{12}' in this model"):
        load(small_clip(seed=1), folder)


def test_a_base_model_says_where_it_comes_from():
    assert str(ModelSource("ViT-B-32", "openai")) == "ViT-B-32 (openai)"
    assert str(ModelSource("ViT-B-32")) == "ViT-B-32 (random weights)"
    assert str(ModelSource("local-dir:clip")) == "local-dir:clip"


def test_another_configuration_is_refused(folder):
    model = inject(small_clip(), RMAdapterConfig(layers="3", bottleneck=8))
    with pytest.raises(InputError, match=r"adapter\.bottleneck = 4, the model has 8"):
        model.load_adapter(folder)


def test_no_such_folder(model, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        model.load_adapter(tmp_path / "nowhere")


def test_non_finite_weights_are_not_saved(model, tmp_path):
    with torch.no_grad():
        model.adapter_tensors()["text.3.b_up"][0] = float("inf")
    with pytest.raises(InputError, match=r"text\.3\.b_up"):
        model.save_adapter(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_full_disk_keeps_the_adapter_that_was_there(model, folder, monkeypatch):
    before = weights(model)

    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(adapter_file, "save_file", full)
    with torch.no_grad():
        model.adapter_tensors()["text.3.b_up"].add_(1)
    with pytest.raises(InputError, match="No space left on device"):
        model.save_adapter(folder)
    monkeypatch.undo()
    loaded = load(small_clip(), folder)
    assert torch.equal(loaded.adapter_tensors()["text.3.b_up"], before["text.3.b_up"])
    assert sorted(p.name for p in folder.iterdir()) == ["adapter.safetensors", "adapter_config.json"]


def test_a_base_that_has_changed_since_is_noticed(folder, tmp_path):
    """The hash is that of the weights now, not of those at some earlier call."""
    clip = small_clip()
    model = load(clip, folder)
    with torch.no_grad():
        clip.visual.proj.add_(1)
    with pytest.raises(InputError, match="hash of the weights"):
        model.load_adapter(folder)
    model.save_adapter(tmp_path / "changed")
    with pytest.raises(InputError, match="hash of the weights"):
        load(small_clip(), tmp_path / "changed")
    assert load(clip_like(clip), tmp_path / "changed").weights_hash is None


def clip_like(clip):
    """Another small CLIP with the weights of ``clip``, adapters left out."""
    other = small_clip()
    other.load_state_dict({name: tensor for name, tensor in clip.state_dict().items() if ".rm_adapter." not in name})
    return other


def test_a_base_stored_in_16_bits_is_known_by_the_weights_that_were_loaded(model, folder, tmp_path):
    backbone = Backbone(small_clip(), None, Preprocessing.of(small_clip()), ModelSource("ViT-B-32", "openai"))
    stored = store_backbone(backbone, torch.bfloat16)
    assert stored.weights_hash == weights_hash(small_clip()) != weights_hash(stored.clip)
    loaded = load(stored.clip, folder, weights_hash=stored.weights_hash)
    assert torch.equal(loaded.adapter_tensors()["text.3.w_up"], weights(model)["text.3.w_up"])
    loaded.load_adapter(folder)
    loaded.save_adapter(tmp_path / "again")
    assert load(small_clip(), tmp_path / "again").config == CONFIG
    with pytest.raises(InputError, match=r"dtype of the weights is 'float32' .* 'bfloat16\+float32'.*as it was loaded"):
        load(loaded.remove(), folder)
    injected = inject(stored.clip, CONFIG, weights_hash=stored.weights_hash)
    injected.load_adapter(folder)


def bound(names):
    config = TunerConfig(RMAdapterConfig(layers="none"), head=HeadConfig(offset=0.5))
    return inject(small_clip(), config, class_names=names)


def test_the_classes_of_the_model_are_saved_where_no_others_are_named(tmp_path):
    bound(["cat", "dog"]).save_adapter(tmp_path)
    assert load(small_clip(), tmp_path).classes == ["cat", "dog"]


@pytest.mark.parametrize("names", [["dog", "cat"], ["bee", "ant"]])
def test_what_each_class_has_is_not_loaded_for_another(tmp_path, names):
    bound(["cat", "dog"]).save_adapter(tmp_path)
    model = bound(names)
    before = weights(model)
    with pytest.raises(InputError, match=r"of each of its classes, \['cat', 'dog'\], the model of \['"):
        model.load_adapter(tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())


def test_a_loaded_adapter_brings_the_names_of_its_classes(folder):
    model = inject(small_clip(), CONFIG, class_names=["ant"])
    model.load_adapter(folder)
    assert model.class_names == ["cat", "dog"]


def test_what_was_taken_out_is_not_saved(model, folder):
    model.remove()
    with pytest.raises(InputError, match=r"remove\(\) has taken it out; valid: save_adapter\(\) before remove"):
        model.save_adapter(folder)
    load(small_clip(), folder)


def test_weights_that_are_spread_over_processes_are_said_before_anything_is_read_or_written(model, folder, tmp_path):
    next(iter(model.trained().values())).full_tensor = None  # a DTensor's way to be whole, which an FSDP's weight has
    with pytest.raises(InputError, match="not saved: the model's weights are spread over processes; valid: a model"):
        model.save_adapter(tmp_path / "spread")
    with pytest.raises(InputError, match="not loaded: the model's weights are spread over processes"):
        model.load_adapter(folder)
    assert not (tmp_path / "spread").exists()
