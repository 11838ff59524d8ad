"""Shared by all tests: small models of open_clip's own kind, small image folders, no network."""

from __future__ import annotations

import copy
import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, which open_clip does
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start, as below for this one

# The tests write 38,000 files. Where a disk is told of every file that goes, deleting them took 120 s; in memory 0.4 s.
MEMORY = Path("/dev/shm")
if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 2**30:  # they take 80 MB; containers often have 64 MB
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import settings
from method_runs import training_of
from PIL import Image
from safetensors.torch import save_file
from torch.utils._python_dispatch import _disable_current_modes

from rmadapter import LossConfig, RMAdapterConfig, TrainConfig
from rmadapter.cli import main
from rmadapter.clip import known_bases
from rmadapter.data.emoji import drawings_data, emoji_data
from rmadapter.training.adapter_run import train
from rmadapter_kernels import cpu

# The models here are so small that a second thread costs more than it gives, most of all on a busy machine:
# a step of the small CLIP took 160 to 600 ms with two threads beside another process.
torch.set_num_threads(1)

# What a test writes need not outlive the machine: a file waits 10 ms for its disk, in all a tenth of the suite's time.
os.fsync = lambda file: None

# A tokenizer takes 0.15 s to make, a quarter of a training run here, and is the same whoever uses it.
open_clip.get_tokenizer = functools.cache(open_clip.get_tokenizer)

# An example may take as long as a busy machine lets it; pytest bounds the whole.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")

SMALL_CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 64, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3},
}


def small_clip(seed: int = 0, **changes) -> torch.nn.Module:
    """A CLIP with three blocks a tower and random weights from ``seed``; ``changes`` are arguments of CLIP."""
    return copied_once(_drawn, seed, {**SMALL_CONFIG, **changes})


def _drawn(seed: int, config: dict) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return open_clip.CLIP(**config).eval()


_MADE: dict[str, torch.nn.Module] = {}
MOST_MADE = 8  # up to 7 MB each


def copied_once(make: Callable[..., torch.nn.Module], *arguments: object) -> torch.nn.Module:
    """A copy of ``make(*arguments)``, which is kept for the next test that asks for it.

    Most of making one goes into random numbers, and tests of the step alone ask for a thousand. ``arguments`` are told
    apart by what they look like.
    """
    key = repr((make, arguments))
    if key not in _MADE:
        if len(_MADE) == MOST_MADE:
            del _MADE[next(iter(_MADE))]
        with _disable_current_modes():  # whatever is loaded inside rmadapter.clip.undrawn.built
            _MADE[key] = make(*copy.deepcopy(arguments))
    return copy.deepcopy(_MADE[key])


@pytest.fixture(autouse=True, scope="session")
def chosen_bases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Which base models were chosen is kept here, and not in the user's own cache folder."""
    folder = tmp_path_factory.mktemp("chosen_bases")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known_bases, "cache_folder", lambda cache_dir, kind: folder)
        yield folder


def _kernels_in_use() -> tuple[str, bytes | None]:
    """As the module says, and as the library has them, which a second copy of the module may set."""
    return cpu.reason(), cpu._library and cpu._library.rmadapter_cpu_chosen()


@pytest.fixture(autouse=True)
def same_kernels() -> Iterator[None]:
    """No test leaves kernels asked for by name: `auto` would take another backend in all that come after it."""
    before = _kernels_in_use()
    yield
    assert _kernels_in_use() == before


@pytest.fixture
def few_emoji(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight classes of each bundled group, two test images of each, where accuracies are not what is tested."""
    all_classes = emoji_data.classes
    for module in (emoji_data, drawings_data):
        monkeypatch.setattr(module, "classes", lambda group, **which: all_classes(group, **which)[:8])
    monkeypatch.setattr(emoji_data, "COUNTS", {**emoji_data.COUNTS, "val": 2, "test": 2})


@pytest.fixture
def clip() -> torch.nn.Module:
    """A fresh small CLIP."""
    return small_clip()


@pytest.fixture
def tokenizer() -> open_clip.SimpleTokenizer:
    """The tokenizer of open_clip's CLIP models."""
    return open_clip.get_tokenizer("ViT-B-32")


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small CLIP as a folder that ``--model local-dir:FOLDER`` takes."""
    folder = tmp_path_factory.mktemp("small_clip")
    config = {"model_cfg": SMALL_CONFIG, "preprocess_cfg": {"size": [32, 32]}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(small_clip().state_dict(), folder / "open_clip_model.safetensors")
    return folder


def write_images(folder: Path, classes: list[str], count: int, seed: int = 0) -> Path:
    """``count`` PNG files a class, each of the class's colour with noise, so that classes can be learned."""
    random = np.random.default_rng(seed)
    colours = random.integers(0, 256, size=(len(classes), 3))
    for name, colour in zip(classes, colours, strict=True):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.clip(colour + random.normal(0, 40, size=(36, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02}.png")
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of four classes with ten images each."""
    return write_images(tmp_path / "animals", ["ant", "bee", "cat", "dog"], 10)


@pytest.fixture(scope="session")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``images`` has, for tests that change nothing in it."""
    return write_images(tmp_path_factory.mktemp("data") / "animals", ["ant", "bee", "cat", "dog"], 10)


def run_config(images: Path, clip_folder: Path, out: Path, **changes) -> TrainConfig:
    """Two epochs of four steps on the base half of four classes."""
    values = {
        "data": str(images),
        "model": f"local-dir:{clip_folder}",
        "classes": "base",
        "shots": 4,
        "batch_size": 2,
        "epochs": 2,
        "lr": 0.05,
        "precision": "fp32",
        "workers": 0,
        "log_every": 2,
        "checkpoint_every": 3,
        "grad_norm_every": 4,
        "out": str(out),
        "adapter": RMAdapterConfig(layers="2-3", bottleneck=8, scale=0.1),
        "loss": LossConfig(1, 1, 1, 1),
    }
    return TrainConfig(**{**values, **changes})


@pytest.fixture(scope="session")
def base_run(animals, clip_folder, tmp_path_factory) -> Path:
    """The folder of the finished run of ``run_config``, to be read alone: what others are compared with."""
    folder = tmp_path_factory.mktemp("base") / "run"
    train(run_config(animals, clip_folder, folder))
    return folder


@pytest.fixture
def config(images, clip_folder, tmp_path):
    """``run_config`` on ``images``, into the folder ``run``."""
    return functools.partial(run_config, images=images, clip_folder=clip_folder, out=tmp_path / "run")


@pytest.fixture
def sweep_words(tmp_path, clip_folder):
    """The options of a small sweep; two data sets of four classes."""
    for seed, name in enumerate(("animals", "plants")):
        write_images(tmp_path / name, ["ant", "bee", "cat", "dog"], 8, seed)

    def make(protocol="base2new", out="s", data="animals,plants", **options):
        values = {
            "data": ",".join(str(tmp_path / name) for name in data.split(",")),
            "methods": "zeroshot,single",
            "seeds": "1",
            "out": str(tmp_path / out),
            "model": f"local-dir:{clip_folder}",
            "shots": 2,
            "epochs": 1,
            "workers": 0,
            "adapter.layers": "2-3",
            **options,
        }
        return [protocol, *(word for name, value in values.items() for word in (f"--{name}", str(value)))]

    return make


@pytest.fixture(scope="session")
def options(animals, clip_folder) -> list[str]:
    """Options of ``rmadapter train`` for the small model on ``animals``."""
    return ["--data", str(animals), "--model", f"local-dir:{clip_folder}", "--workers", "0"]


@pytest.fixture(scope="session")
def trained(options, tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a finished run of a method, made once and to be read alone; ``copied`` is one to write in."""
    folder = tmp_path_factory.mktemp("trained")

    @functools.cache
    def make(name: str) -> Path:
        assert main(["train", "--method", name, *options, *training_of(name), "--out", str(folder / name)]) == 0
        return folder / name

    return make


@pytest.fixture
def copied(trained, tmp_path, capsys) -> Callable[[str], Path]:
    """The folder of a finished run of a method, in ``tmp_path``."""

    def make(name: str) -> Path:
        shutil.copytree(trained(name), tmp_path / "run")
        capsys.readouterr()
        return tmp_path / "run"

    return make


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """In tests of reports a figure is made but saved as one pixel (a second less for each), unless ``drawn``.

    Here, since a second conftest would be found by tests that import from this one.
    """
    if "reports" not in request.path.parts or request.node.get_closest_marker("drawn"):
        return
    from rmadapter.reports import run_plots
    from rmadapter.reports.sweep import figures, shots_figure

    def save(figure, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (1, 1)).save(path)
        return path

    for module in (run_plots, figures, shots_figure):
        monkeypatch.setattr(module, "save_figure", save)
