"""The small CLIP: it learns, open_clip loads it, the same arguments give the same bits, and folders are whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from packaging.version import Version
from PIL import Image
from safetensors.torch import load_file

from rmadapter.backbone import load_backbone
from rmadapter.errors import InputError
from rmadapter.testbed import small_clip
from rmadapter.testbed.small_clip import contrastive_loss, distort, main, pretrain


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of light bars on dark ground, 12 images each: lying, standing, and both."""
    folder = tmp_path_factory.mktemp("drawings")
    random = np.random.default_rng(0)
    for label in "abc":
        (folder / label).mkdir()
        for number in range(12):
            pixels = np.zeros((48, 48), np.uint8)
            row, column = random.integers(14, 30, 2)
            if label in "ac":
                pixels[row : row + 5, 8:40] = 250
            if label in "bc":
                pixels[8:40, column : column + 5] = 250
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    (folder / "classnames.txt").write_text("a lying\nb standing up\nc cross\n")
    return folder


@pytest.fixture(scope="module")
def folder(drawings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain(drawings, tmp_path_factory.mktemp("model") / "clip", steps=2, batch_size=8, progress=False)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "open_clip_model.safetensors")


def equal(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def load(folder: Path):
    """Model, test transform and tokenizer, as open_clip gives them."""
    backbone = load_backbone(f"local-dir:{folder}")
    model = backbone.clip
    return model, image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), False), backbone.tokenizer


def test_the_folder_loads_with_its_weights_and_preprocessing(folder):
    model, preprocess, tokenizer = load(folder)
    assert isinstance(model, open_clip.CLIP)
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in weights(folder).items())
    image = preprocess(Image.new("RGB", (60, 50), "white"))
    assert image.shape == (3, 48, 48)
    assert image.max() == 1  # mean and standard deviation 0.5, as in training
    tokens = tokenizer(["a photo of a zero."])
    assert tokens.shape == (1, 77)
    assert model.encode_image(image[None]).shape == model.encode_text(tokens).shape == (1, 64)


@pytest.mark.skipif(Version(open_clip.__version__) < Version("3"), reason="open_clip has local-dir: from 3.0 on")
def test_open_clip_loads_the_folder_by_itself(folder):
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    state = load(folder)[0].state_dict()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert model.visual.preprocess_cfg == load(folder)[0].visual.preprocess_cfg


def test_training_learns_the_classes(tmp_path, drawings):
    """From chance (33 %) to nearly all of the images it was trained on, 10 seconds' worth of steps."""
    path = pretrain(drawings, tmp_path / "clip", steps=90, batch_size=32, progress=False)
    model, preprocess, tokenizer = load(path)
    files = sorted(drawings.glob("*/*.png"))
    with torch.no_grad():
        images = torch.stack([preprocess(Image.open(file).convert("RGB")) for file in files])
        image_features = model.encode_image(images, normalize=True)
        names = ("lying", "standing up", "cross")
        text_features = model.encode_text(tokenizer([f"a photo of a {name}." for name in names]), normalize=True)
    labels = torch.tensor(["abc".index(file.parent.name) for file in files])
    assert (image_features @ text_features.T).argmax(1).eq(labels).float().mean() > 0.6


def test_same_seed_same_bits_and_no_trace_in_the_global_generator(drawings, folder, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again = pretrain(drawings, tmp_path / "again", steps=2, batch_size=8, progress=False)
    assert torch.equal(torch.rand(3), expected)
    assert equal(again, folder)
    assert not equal(pretrain(drawings, tmp_path / "other", steps=2, batch_size=8, seed=1, progress=False), folder)


def test_made_folder_is_kept_for_equal_settings_and_replaced_for_others(drawings, tmp_path, monkeypatch):
    path = pretrain(drawings, tmp_path / "clip", steps=1, batch_size=4, progress=False)
    before = weights(path)
    fit = small_clip._fit
    monkeypatch.setattr(small_clip, "_fit", lambda *args: pytest.fail("trained again"))
    assert pretrain(drawings, path, steps=1, batch_size=4, progress=False) == path
    monkeypatch.setattr(small_clip, "_fit", fit)
    pretrain(drawings, path, steps=2, batch_size=4, progress=False)
    assert not torch.equal(weights(path)["visual.proj"], before["visual.proj"])
    assert sorted(file.name for file in path.iterdir()) == [
        "open_clip_config.json",
        "open_clip_model.safetensors",
        "pretraining.json",
    ]
    marker = json.loads((path / "pretraining.json").read_text())
    assert marker["steps"] == 2
    assert marker["class_names"] == ["lying", "standing up", "cross"]


def test_other_images_or_recipe_change_the_hash(drawings, tmp_path, monkeypatch):
    def settings_hash(out: str) -> str:
        path = pretrain(drawings, tmp_path / out, steps=1, batch_size=2, progress=False)
        return json.loads((path / "pretraining.json").read_text())["hash"]

    monkeypatch.setattr(small_clip, "_fit", lambda *args: None)
    first = settings_hash("a")
    read = small_clip._read_images
    monkeypatch.setattr(small_clip, "_read_images", lambda path: (read(path)[0] // 2, *read(path)[1:]))
    assert settings_hash("b") != first
    monkeypatch.setattr(small_clip, "_read_images", read)
    assert settings_hash("c") == first
    monkeypatch.setattr(small_clip, "RECIPE", -1)
    assert settings_hash("d") != first


def test_stopped_training_leaves_nothing(drawings, tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(small_clip, "contrastive_loss", stop)
    with pytest.raises(KeyboardInterrupt):
        pretrain(drawings, tmp_path / "clip", steps=1, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_contrastive_loss_is_clips_own_for_distinct_classes_and_merges_equal_captions():
    logits = torch.randn(3, 3)
    clip_loss = (
        torch.nn.functional.cross_entropy(logits, torch.arange(3))
        + torch.nn.functional.cross_entropy(logits.T, torch.arange(3))
    ) / 2
    torch.testing.assert_close(contrastive_loss(logits, torch.arange(3)), clip_loss)
    # Two images of class 1 and one of class 0; class 2 is in no image and so asks for none.
    labels = torch.tensor([1, 1, 0])
    log_images = logits.log_softmax(0)
    to_images = -((log_images[0, 1] + log_images[1, 1]) / 2 + log_images[2, 0]) / 2
    expected = (torch.nn.functional.cross_entropy(logits, labels) + to_images) / 2
    torch.testing.assert_close(contrastive_loss(logits, labels), expected)


def test_distort_inverts_most_and_stays_in_range():
    generator = torch.Generator().manual_seed(0)
    drawings = torch.zeros(200, 1, 48, 48, dtype=torch.uint8)
    drawings[:, :, 20:28, 20:28] = 255
    images = distort(drawings, generator)
    assert images.shape == (200, 3, 48, 48)
    assert images.min() >= -1
    assert images.max() <= 1
    assert images.std(dim=(0, 2, 3)).min() > 0.3
    light_ground = images[:, :, :4, :4].mean((1, 2, 3)) > 0
    assert 0.7 < light_ground.float().mean() < 0.9


def test_progress_without_a_terminal_is_a_line_now_and_then(drawings, tmp_path, capsys):
    pretrain(drawings, tmp_path / "loud", steps=2, batch_size=2)
    assert "small CLIP: step 2 of 2, loss" in capsys.readouterr().err
    pretrain(drawings, tmp_path / "silent", steps=2, batch_size=2, progress=False)
    assert capsys.readouterr().err == ""


def test_bad_input_is_named(drawings, folder, tmp_path):
    with pytest.raises(InputError, match="steps is 0"):
        pretrain(drawings, tmp_path / "out", steps=0)
    with pytest.raises(InputError, match=r"images is .*nowhere.* no readable image folder"):
        pretrain(tmp_path / "nowhere", tmp_path / "out")
    one = tmp_path / "one" / "only"
    one.mkdir(parents=True)
    Image.new("L", (8, 8)).save(one / "0.png")
    with pytest.raises(InputError, match="holds one class"):
        pretrain(one.parent, tmp_path / "out")
    with pytest.raises(InputError, match="was not made by rmadapter"):
        pretrain(drawings, one.parent)
    assert (one / "0.png").exists()
    assert not (tmp_path / "out").exists()


def test_command_line(drawings, tmp_path, capsys):
    out = tmp_path / "clip"
    assert main(["--images", str(drawings), "--out", str(out), "--steps", "1", "--seed", "3"]) == 0
    assert f"local-dir:{out}" in capsys.readouterr().out
    assert json.loads((out / "pretraining.json").read_text())["seed"] == 3
    assert main(["--images", str(tmp_path / "nowhere"), "--out", str(out)]) == 2
    assert "error: images is" in capsys.readouterr().err
