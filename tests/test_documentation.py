"""Every command and every piece of Python in README.md and docs/ runs, and every file and link named there exists.

Models from the hub are stood in for by a small one with as many blocks, images by small ones, long training by one
epoch; every option is the documented one. Commands too long for a test are held against the Makefile, or against the
options that the module's --help lists.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
from conftest import SMALL_CONFIG, small_clip, write_images
from miniatures import build
from PIL import Image
from safetensors.torch import save_file

from rmadapter.cli import main
from rmadapter.data.catalog import CATALOG
from rmadapter.sweeps.optuna_search import parse_search

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TWELVE = {tower: {**SMALL_CONFIG[tower], "layers": 12} for tower in ("vision_cfg", "text_cfg")}


def blocks(document: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(document: Path) -> list[str]:
    """What stands behind ``$`` in console blocks, in order, continued lines joined."""
    lines = "\n".join(blocks(document, "console")).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of twelve narrow blocks a tower, in open_clip's folder format."""
    folder = tmp_path_factory.mktemp("clip")
    config = {"model_cfg": {**SMALL_CONFIG, **TWELVE}, "preprocess_cfg": {"size": [32, 32]}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(small_clip(**TWELVE).state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the documents speak from: flowers/, what make demo leaves, and ~/data with the field's sets."""
    write_images(tmp_path / "flowers", ["dandelion", "lily", "rose", "tulip"], 10)
    write_images(tmp_path / "zoo", ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen"], 10)
    write_images(tmp_path / "demo" / "data" / "digits", ["0", "1", "3", "7"], 10)
    Image.new("RGB", (48, 48)).save(tmp_path / "demo" / "data" / "digits" / "3" / "0879.png")
    for name in CATALOG:
        build(tmp_path / "data", name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def run_rmadapter(words: list[str], model: Path) -> None:
    """The command line itself, with the small model in the place of the one named."""
    if "--model" in words:
        words[words.index("--model") + 1] = f"local-dir:{model}"
    if "--pretrained" in words:
        where = words.index("--pretrained")
        del words[where : where + 2]
    target = Path(words[words.index(">") + 1]) if ">" in words else None
    words = words[: words.index(">")] if target else words
    once = ["--epochs", "1", "--workers", "0"]
    if words[0] == "search" and importlib.util.find_spec("optuna") is None:
        # An extra; where it is not installed the command's options are read, and what it leaves is stood in for.
        out = Path(parse_search(words[1:]).out)
        out.mkdir()
        (out / "best.yaml").write_text("lr: 0.001\n")
        return
    quick = {"train": once, "sweep": once, "search": once, "eval": ["--workers", "0"]}.get(words[0], [])
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        try:
            status = main([*words, *(quick if "--print_config" not in words else [])])
        except SystemExit as stop:  # --print_config
            status = stop.code
    assert not status, words
    if target:
        target.write_text(output.getvalue())


@functools.cache  # importing torch takes seconds, and documents name the same modules again and again
def help_of(*target: str) -> str:
    done = subprocess.run(
        [sys.executable, *target, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.replace("-", "_")


def check_options(words: list[str]) -> None:
    """``python -m MODULE`` or ``python FILE``: its help lists every option that the command has."""
    listed = help_of(*(words[1:3] if words[1] == "-m" else [str(ROOT / words[1])]))
    for word in words:
        if word.startswith("--"):
            assert word.partition("=")[0].replace("-", "_") in listed, word


def check_make(words: list[str]) -> None:
    """The Makefile has the target."""
    makefile = (ROOT / "Makefile").read_text()
    for target in (word for word in words[1:] if "=" not in word):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def check_pip(words: list[str]) -> None:
    """The extras are those of setup.py."""
    text = (ROOT / "setup.py").read_text()
    for extra in re.findall(r"\[(\w+)\]", " ".join(words)):
        assert f'"{extra}"' in text, extra


def check_pytest(words: list[str]) -> None:
    """The paths exist and the options are taken."""
    subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", *words[1:]], cwd=ROOT, capture_output=True, check=True
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_runs(document, place, model_folder):
    for line in commands(document):
        words = [str(Path(word).expanduser()) if word.startswith("~") else word for word in shlex.split(line)]
        while "=" in words[0]:  # variables of the environment
            words = words[1:]
        if words[:3] == ["python", "-m", "rmadapter.train"]:
            words = ["rmadapter", "train", *words[3:]]
        if words[0] == "torchrun":  # as one process; tests/test_distributed.py has several
            words = ["rmadapter", "train", *words[words.index("rmadapter.train") + 1 :]]
        if words[0] == "rmadapter":
            run_rmadapter(words[1:], model_folder)
        else:
            {"python": check_options, "make": check_make, "pip": check_pip, "pytest": check_pytest}[words[0]](words)
        if words[:2] == ["make", "demo"]:
            train = ["train", "--data", "demo/data/digits", "--model", "any", "--out", "demo/runs/rmadapter-seed1"]
            run_rmadapter(train, model_folder)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_piece_of_python_runs(document, place, monkeypatch, capsys):
    monkeypatch.setattr(open_clip, "create_model_and_transforms", lambda *_, **__: (small_clip(**TWELVE), None, None))
    script = place / "document.py"
    script.write_text("\n".join(blocks(document, "python")))
    runpy.run_path(str(script))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_files_exist(document):
    text = document.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (document.parent / link).exists(), link
    for path in re.findall(r"`((?:rmadapter|rmadapter_kernels|tests|bench|docs|csrc)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path
