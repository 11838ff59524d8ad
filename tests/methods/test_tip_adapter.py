"""Tip-Adapter and Tip-Adapter-F: the cache, its training, and the search for its strength, by hand and as runs."""

from __future__ import annotations

import json
import math
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import small_clip, write_images
from safetensors.torch import load_file
from small_runs import adapter_of, assert_equal, metrics_of, stopped_before_step

from rmadapter.cli import main
from rmadapter.clip.backbone import load_backbone
from rmadapter.config import HeadConfig, RMAdapterConfig, TunerConfig
from rmadapter.data import FewShotSample, Item, TrainImages, few_shot_sample, read_image, train_transform
from rmadapter.data.sampling import validation_items
from rmadapter.data.templates import SEVEN_TEMPLATES
from rmadapter.errors import InputError
from rmadapter.evaluation.loaded_model import load_stored
from rmadapter.methods.options import configure
from rmadapter.training.choosing import search_strength
from rmadapter.training.recipe import BestEpoch, make_optimizer, make_schedule
from rmadapter.tuners.adapted_classifier import AdaptedClassifier
from rmadapter.tuners.adapter_file import read_info
from rmadapter.tuners.injection import inject
from rmadapter.tuners.tuner import Features


@pytest.fixture(scope="module")
def words(animals, clip_folder):
    """A small run on the base half of four classes; of others the keys are a mean over four views."""

    def make(method, out, *more):
        common = ["--data", str(animals), "--model", f"local-dir:{clip_folder}", "--workers", "0", "--classes", "base"]
        few = ["--shots", "4", "--batch_size", "3", "--head.cache_views", "4", "--precision", "fp32"]
        return ["train", "--method", method, *common, *few, "--out", str(out), *more]

    return make


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def keys_by_hand(backbone, folder, sample, views):
    """Of each image the mean over its augmented views, and only then brought to length 1."""
    images = TrainImages(
        lambda path: read_image(folder / path), sample, train_transform(backbone.preprocessing, min_crop=0.5), seed=1
    )
    with torch.no_grad():
        each = [
            torch.stack([backbone.clip.encode_image(images[view, index][0][None])[0] for view in range(views)]).mean(0)
            for index in range(len(sample))
        ]
    return unit(torch.stack(each))


@pytest.mark.parametrize("more", [[], ["--no-shortcuts"], ["--head.image_ratio", "0.5", "--epochs", "1"]])
def test_the_cache_and_the_first_logits_are_those_of_the_formula(
    words, tmp_path, animals, clip_folder, tokenizer, more
):
    """Without a search and before training; whatever is trained beside it, the keys are the frozen model's."""
    fixed = ["--head.max_weight", "0", "--head.max_sharpness", "0", "--head.cache_weight", "2"]
    out = tmp_path / "run"
    assert main(words("tip-adapter", out, *fixed, "--head.cache_sharpness", "5.5", *more)) == 0
    tensors = adapter_of(out)
    backbone = load_backbone(f"local-dir:{clip_folder}", None, torch.device("cpu"))
    sample = [Item(*item) for item in json.loads((out / "few_shot.json").read_text())["train"] if item[1] < 2]
    keys = keys_by_hand(backbone, animals, sample, views=4)
    assert torch.allclose(tensors["cache.keys"], keys, atol=1e-5)
    assert tensors["cache.labels"].tolist() == [item.label for item in sample]
    assert sorted(tensors["cache.labels"].tolist()) == [0] * 4 + [1] * 4
    if "--head.image_ratio" in more:
        return
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        z = unit(backbone.clip.encode_image(images))
        text = unit(backbone.clip.encode_text(tokenizer(["a photo of a ant.", "a photo of a bee."])))
        values = torch.zeros(8, 2)
        for row, item in enumerate(sample):
            values[row, item.label] = 1
        expected = backbone.clip.logit_scale.exp() * z @ text.T + 2 * torch.exp(-5.5 * (1 - z @ keys.T)) @ values
        loaded = load_stored(str(out / "adapter"), None, None, device=torch.device("cpu"), precision="fp32")
        model = loaded.classifier(["ant", "bee"], "a photo of a {}.").eval()
        found = model.classify(images, model.text_features())
        assert torch.allclose(found, expected, atol=1e-4)
        # Among some of its classes the others have no votes.
        model.set_classes(["bee", "ant"], model.template)
        assert torch.allclose(model.classify(images, model.text_features()), expected[:, [1, 0]], atol=1e-4)


def test_kept_views_make_the_same_cache(words, tmp_path):
    runs = {"fresh": [], "kept": ["--views", "4", "--cache-dir", str(tmp_path / "views")]}
    for name, more in runs.items():
        assert main(words("tip-adapter", tmp_path / name, "--no-evaluate", *more)) == 0
    assert main(words("tip-adapter", tmp_path / "again", "--no-evaluate", *runs["kept"])) == 0
    fresh, kept, again = (adapter_of(tmp_path / name) for name in (*runs, "again"))
    assert_equal(kept, again)
    assert torch.allclose(fresh["cache.keys"], kept["cache.keys"], atol=1e-6)


def by_hand(logits, nearness, labels, keys_of, grid):
    """The first pair of the grid with the most validation images right, beta in the outer loop."""
    best = (-1, None)
    for beta, alpha in grid:
        right = 0
        for row, near, label in zip(logits.tolist(), nearness.tolist(), labels.tolist(), strict=True):
            scores = list(row)
            for value, key_label in zip(near, keys_of.tolist(), strict=True):
                scores[key_label] += alpha * math.exp(-beta * (1 - value))
            right += scores.index(max(scores)) == label
        if right > best[0]:
            best = (right, (alpha, beta))
    return best


@pytest.mark.parametrize("start", [(1.0, 1.0), (40.0, 6.0)])
def test_the_search_is_that_of_the_formula(tokenizer, monkeypatch, start):
    """On a grid of fewer values; the second beginning is better than all of it, and stays."""
    monkeypatch.setattr("rmadapter.training.choosing.SHARPNESSES", 5)
    monkeypatch.setattr("rmadapter.training.choosing.WEIGHTS", 4)
    names = ["ant", "bee", "cat"]
    head = HeadConfig(
        cache="fixed", max_weight=4.1, max_sharpness=10.1, cache_weight=start[0], cache_sharpness=start[1]
    )
    config = TunerConfig(RMAdapterConfig(layers="none"), head=head)
    clip = small_clip()
    adapted = inject(clip, config, class_names=names, cached_images=9)
    model = AdaptedClassifier(adapted, tokenizer, names)
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(3, 32, generator=generator)
    key_labels, labels = torch.arange(9) % 3, torch.arange(30) % 3
    adapted.tuners[0].fill(centres[key_labels] + 1.2 * torch.randn(9, 32, generator=generator), key_labels)
    images = centres[labels] + 2.0 * torch.randn(30, 32, generator=generator)
    text = torch.randn(3, 32, generator=generator)
    validation = SimpleNamespace(model=model, features=lambda: (Features(images, text), labels))
    logits = clip.logit_scale.exp().detach() * unit(images) @ unit(text).T
    nearness = unit(images) @ adapted.tuners[0].keys.detach().T
    sharpnesses = [0.1, 2.1, 4.1, 6.1, 8.1]  # 10.1 is not among them
    grid = [(beta, alpha) for beta in sharpnesses for alpha in (0.1, 1.1, 2.1, 3.1)]
    right, (alpha, beta) = by_hand(logits, nearness, labels, key_labels, [*grid, (start[1], start[0])])
    found = search_strength(validation, head)
    assert (found.weight, found.sharpness, found.correct) == (pytest.approx(alpha), pytest.approx(beta), right)
    assert ((alpha, beta) == start) == (start[0] == 40)
    assert 10 < right < 30
    chosen = adapted.tuned.head
    assert (chosen.cache_weight, chosen.cache_sharpness) == (found.weight, found.sharpness)
    assert (head.cache_weight, head.cache_sharpness) == start  # the run's own options stay


def test_an_epoch_is_kept_only_where_it_is_better():
    found = iter([50.0, 75.0, 75.0, 60.0])
    best = BestEpoch(lambda: next(found))
    weight = torch.zeros(2)
    for epoch in range(4):
        weight.fill_(epoch + 1)
        best.add(epoch, {"w": weight})
    best.write({"w": weight})
    assert weight.tolist() == [2, 2]
    assert best.values == {"epoch": 2, "accuracy": 75.0}


def items(counts, part):
    return [Item(f"{part}/{label}/{n}", label, str(label)) for label, count in counts.items() for n in range(count)]


def test_validation_is_never_the_test():
    """Of a data set without validation images (ImageNet, whose usual ones are the test's) it is cut from training."""
    train = items(dict.fromkeys(range(4), 9), "train")
    for val in (items(dict.fromkeys(range(4), 7), "val"), []):
        data = SimpleNamespace(train=train, val=val, test=[], class_names=["0", "1", "2", "3"])
        sample = FewShotSample(*few_shot_sample(train, val, 6, 1), 6, 1, "x")
        found, whence = validation_items(data, sample, "base")
        paths = [item.path for item in found]
        assert sorted({item.label for item in found}) == [0, 1]
        if val:
            assert (len(found), whence) == (8, "validation images")
            assert {path.split("/")[0] for path in paths} == {"val"}
        else:
            assert (len(found), whence) == (6, "training images outside the sample")  # three are left of each
            assert not set(paths) & {item.path for item in sample.train}
    data = SimpleNamespace(train=train[:4], val=[], test=[], class_names=["0"])
    sample = FewShotSample(train[:4], [], 6, 1, "x")
    assert validation_items(data, sample, "all")[0] == []


def test_training_images_that_are_test_images_too_validate_nothing():
    """A split file may list them twice; a sample of few shots has none of them, so that no run is refused."""
    train = items(dict.fromkeys(range(4), 9), "train")
    sample = FewShotSample(train[::9], [], 1, 1, "x")
    tested = [item for item in train if not item.path.endswith(("/0", "/8"))]
    data = SimpleNamespace(train=train, val=[], test=tested, class_names=["0", "1", "2", "3"])
    found, _ = validation_items(data, sample, "all")
    assert [item.path for item in found] == [f"train/{label}/8" for label in range(4)]


def test_tip_adapter_f_trains_its_keys_from_the_cache_and_takes_the_best_epoch(words, tmp_path, capsys):
    """A rate at which the accuracy moves, so that the best epoch is not the last one."""
    assert main(words("tip-adapter", tmp_path / "tip", "--no-evaluate")) == 0
    fast = ["--lr", "0.05", "--epochs", "4"]
    assert main(words("tip-adapter-f", tmp_path / "f", *fast)) == 0
    assert "chosen on 4 validation images" in capsys.readouterr().out
    first, trained = adapter_of(tmp_path / "tip"), adapter_of(tmp_path / "f")
    assert not torch.equal(first["cache.keys"], trained["cache.keys"])
    assert (trained["cache.keys"].norm(dim=-1) - 1).abs().max() > 1e-3  # not brought to length 1 again
    assert torch.equal(first["cache.labels"], trained["cache.labels"])
    epochs = [line["validation_accuracy"] for line in metrics_of(tmp_path / "f") if line["kind"] == "epoch"]
    selection = json.loads((tmp_path / "f" / "results.json").read_text())["selection"]
    assert len(epochs) == 4
    assert selection["epoch"] == epochs.index(max(epochs)) + 1
    assert (selection["by"], selection["images"]) == ("validation images", 4)
    info = read_info(tmp_path / "f" / "adapter")
    assert info.training["selection"] == selection
    assert info.config.head.cache_weight == selection["cache_weight"]
    assert info.training["settings"]["head"]["cache_weight"] == 1.17  # what it began with


def test_the_epoch_that_was_kept_is_what_is_saved(words, tmp_path, monkeypatch):
    """The first epoch is called the best one: the result is that of a run of the same schedule that ends with it."""
    accuracies = iter([9.0, 1.0, 2.0])
    with monkeypatch.context() as patch:
        patch.setattr("rmadapter.training.validation.Validation.accuracy", lambda self: next(accuracies))
        assert main(words("tip-adapter-f", tmp_path / "best", "--epochs", "3", "--no-evaluate")) == 0
    with stopped_before_step(3, monkeypatch):  # three batches of eight images an epoch
        main(words("tip-adapter-f", tmp_path / "stopped", "--epochs", "3", "--no-evaluate"))
    state = load_file(tmp_path / "stopped" / "state.safetensors")
    assert torch.equal(adapter_of(tmp_path / "best")["cache.keys"], state["adapter.cache.keys"])


@pytest.mark.parametrize(
    ("method", "at", "more"),
    [("tip-adapter-f", 5, []), ("tip-adapter", 2, ["--head.image_ratio", "0.5", "--select", "validation"])],
)
def test_resumed_it_ends_with_the_same_bits(words, tmp_path, monkeypatch, method, at, more):
    """The cache comes from the state, the second time beside an adapter that is trained; it is not filled again."""
    more = [*more, "--epochs", "3", "--checkpoint-every", "1"]
    assert main(words(method, tmp_path / "whole", *more)) == 0
    with stopped_before_step(at, monkeypatch):
        main(words(method, tmp_path / "run", *more))
    with monkeypatch.context() as patch:
        patch.setattr("rmadapter.training.adapter_run.fill", None)
        assert main(words(method, tmp_path / "run", *more, "--resume")) == 0
    assert_equal(adapter_of(tmp_path / "run"), adapter_of(tmp_path / "whole"))
    one, other = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("run", "whole"))
    assert (one["selection"], one["accuracy"]) == (other["selection"], other["accuracy"])


def test_on_imagenet_it_has_seven_prompts(words, tmp_path, clip_folder, tokenizer):
    config = configure("tip-adapter", ["--data", "x"], data="imagenet")
    assert config.head.class_prompts == "seven"
    assert main(words("tip-adapter", tmp_path / "run", "--head.class_prompts", "seven")) == 0
    clip = load_backbone(f"local-dir:{clip_folder}", None, torch.device("cpu")).clip
    with torch.no_grad():
        each = [
            unit(clip.encode_text(tokenizer([text.format(name) for name in ("ant", "bee")])))
            for text in SEVEN_TEMPLATES
        ]
    expected = unit(sum(each) / 7)
    assert torch.allclose(adapter_of(tmp_path / "run")["head.text"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("imagenet", (7, 3, 1.17, 20)),
        ("oxford_flowers", (50, 50, 10, 20)),
        ("eurosat", (12, 10, 2, 100)),
        ("oxford_pets", (7, 3, 1.17, 20)),
    ],
)
def test_recipes_by_data_set(data, expected):
    config = configure("tip-adapter-f", ["--data", "x"], data=data)
    head = config.head
    assert (head.max_sharpness, head.max_weight, head.cache_weight, config.epochs) == expected
    assert (head.cache_views, head.cache_sharpness, config.min_crop, config.batch_size) == (10, 1, 0.5, 256)


def test_the_rate_falls_to_zero_over_all_steps():
    config = configure("tip-adapter-f", ["--data", "x"])
    optimizer = make_optimizer(config, [torch.nn.Parameter(torch.zeros(1))])
    schedule = make_schedule(config, optimizer, steps_per_epoch=7)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (optimizer.defaults["eps"], optimizer.defaults["weight_decay"]) == (1e-4, 0.01)
    for step in range(140):
        expected = 0.001 * (1 + math.cos(math.pi * step / 140)) / 2
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-6, abs=1e-12)
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shots", "0"], "shots is 0, but head.cache is 'fixed', which keeps training images; valid: 1 or more"),
        (["--head.max_weight", "0.1"], "head.max_weight is 0.1, and the search begins at 0.1; valid: more, or 0"),
        (["--head.cache_views", "0"], "head.cache_views is 0; valid: a number >= 1"),
        (["--select", "test"], "select is 'test'; valid: 'last', 'validation'"),
        (["--select", "validation", "--average", "3,1"], "average is '3,1' and select 'validation'; valid: one"),
        (["--lora.rank", "2"], "option '--lora.rank' is none of method 'tip-adapter'"),
    ],
)
def test_mistakes(words, message):
    with pytest.raises(InputError, match=re.escape(message)):
        configure("tip-adapter", ["--data", "x", *words])
    with pytest.raises(InputError, match=r"max_weight is 3\.0, but head.cache is 'none'"):
        HeadConfig(max_weight=3.0)


def test_without_validation_images_nothing_is_chosen(clip_folder, tmp_path, capsys):
    """Every training image is in the sample."""
    root = tmp_path / "data"
    for part, count in (("train", 3), ("test", 3)):
        write_images(root / part, ["ant", "bee"], count, seed=len(part))
    common = ["--data", str(root), "--model", f"local-dir:{clip_folder}", "--workers", "0", "--shots", "3"]
    few = ["--epochs", "1", "--head.cache_views", "1"]
    assert main(["train", "--method", "tip-adapter-f", *common, *few, "--out", str(tmp_path / "run")]) == 0
    assert "has no validation images and no training images beside the sample" in capsys.readouterr().out
    assert "selection" not in json.loads((tmp_path / "run" / "results.json").read_text())
    assert read_info(tmp_path / "run" / "adapter").config.head.cache_weight == 1.17


@pytest.mark.slow
def test_a_sweep_and_its_report(sweep_words, tmp_path, capsys):
    options = {"methods": "zeroshot,tip-adapter,tip-adapter-f", "head.cache_views": 1, "data": "animals"}
    assert main(["sweep", *sweep_words(**options), "--dry-run"]) == 0
    assert "tip-adapter/animals/seed1: 0 steps" in capsys.readouterr().out
    assert main(["sweep", *sweep_words(**options)]) == 0
    (file,) = (tmp_path / "s").glob("runs/tip-adapter/*/seed1/run/results.json")
    results = json.loads(file.read_text())
    assert results["accuracy"].keys() == {"base"}
    assert (results["trained_parameters"], results["trained_on"]["classes"]) == (0, "base")
    assert main(["report", str(tmp_path / "s")]) == 0
    assert main(["report", str(tmp_path / "s" / "runs"), "--out", str(tmp_path / "r")]) == 0
    text = (tmp_path / "r" / "report.md").read_text()
    for name in ("tip-adapter", "tip-adapter-f"):
        assert f"| {name} " in text
    capsys.readouterr()
    assert main(["sweep", *sweep_words("cross", "c", **{**options, "data": "animals,plants"})]) == 2
    assert "methods has 'tip-adapter', which cannot classify classes" in capsys.readouterr().err
