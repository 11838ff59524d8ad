"""Every command and every piece of Python in README.md and docs/ runs, and every file and name given there exists.

Models from the hub are stood in for by a small one with as many blocks, images by small ones, the bundled emoji by a
few of each group, long training by one epoch; every option is the documented one. A training that several pages show
is done once. Commands too long for a test are held against the Makefile, or against the options that the module's
--help lists.

``make docs`` runs what is marked slow here, and .ci/run calls it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import itertools
import json
import pkgutil
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import open_clip
import pytest
from conftest import SMALL_CONFIG, small_clip, write_images
from miniatures import build as write_miniature
from mkdocs.commands import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort
from safetensors.torch import save_file

import rmadapter
import rmadapter_kernels
from rmadapter.cli import main
from rmadapter.config.arguments import parse_arguments
from rmadapter.data.catalog import CATALOG
from rmadapter.export.export_command import ExportConfig
from rmadapter.methods import METHODS, naming
from rmadapter.serving.serve_command import ServeConfig
from rmadapter.sweeps.optuna_search import parse_search

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
OPTIONS_ALONE = {"export": ExportConfig, "serve": ServeConfig}
TWELVE = {tower: {**SMALL_CONFIG[tower], "layers": 12} for tower in ("vision_cfg", "text_cfg")}


def blocks(document: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(block: str) -> list[list[str]]:
    """The words of what stands behind ``$`` in a console block, in order, continued lines joined."""
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line.removeprefix("$ ")) for line in lines if line.startswith("$ ")]


def scripts(document: Path) -> list[list[list[str]]]:
    """The commands of the console blocks, each after the earlier ones whose folders or files it names."""
    found: list[list[list[str]]] = []
    for command in (command for block in blocks(document, "console") for command in commands(block)):
        # Without the command's own name, which folders may have too: rmadapter sweep base2new --out base2new.
        words = command[3 if command[1:2] == ["sweep"] else 2 :]
        needed = [script for script in found if any(related(made, word) for made in makes(script) for word in words)]
        found = [script for script in found if script not in needed]
        found.append([*(earlier for script in needed for earlier in script), command])
    return found


def makes(script: list[list[str]]) -> list[str]:
    """The folders and files that the commands write, as far as they name them."""
    return [after for command in script for word, after in itertools.pairwise(command) if word in ("--out", ">")]


def related(made: str, word: str) -> bool:
    """Whether one of two paths is the other, or in it."""
    return made == word or made.startswith(f"{word}/") or word.startswith(f"{made}/")


def name_of(document: Path) -> str:
    return str(document.relative_to(ROOT))


SCRIPTS = [
    pytest.param(script, id=f"{name_of(document)}, {' '.join(script[0][:5])}")
    for document in DOCUMENTS
    for script in scripts(document)
]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of twelve narrow blocks a tower, in open_clip's folder format."""
    folder = tmp_path_factory.mktemp("clip")
    config = {"model_cfg": {**SMALL_CONFIG, **TWELVE}, "preprocess_cfg": {"size": [32, 32]}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(small_clip(**TWELVE).state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """flowers/ and zoo/, two folders of small images."""
    folder = tmp_path_factory.mktemp("pictures")
    write_images(folder / "flowers", ["dandelion", "lily", "rose", "tulip"], 10)
    write_images(folder / "zoo", ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen"], 10)
    return folder


@pytest.fixture
def place(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the documents speak from, with flowers/ and zoo/ in it; it is HOME too."""
    shutil.copytree(pictures, tmp_path, dirs_exist_ok=True)  # a copy: commands write split files beside the images
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def field_data(place: Path, script: list[list[str]]) -> None:
    """~/data with the field's sets in miniature, for commands that speak of it."""
    if any("~/data" in command for command in script):
        for name in CATALOG:
            write_miniature(place / "data", name)


class Trainer:
    """``rmadapter train``, but that the same options on another page, or to another folder, are given what is there."""

    def __init__(self, kept: Path):
        self.kept = kept
        self.done: dict[tuple[str, ...], Path] = {}

    def __call__(self, words: list[str]) -> int:
        folder = self.done.get(self.key(words))
        out = Path(words[words.index("--out") + 1]) if "--out" in words else None
        if folder is not None:
            shutil.copytree(folder, out)
            return 0
        status = main(words)
        # A resumed run speaks of the folder that it began in; the two others leave no run.
        if status == 0 and out is not None and not {"--resume", "--explain", "--print_config"} & set(words):
            self.done[self.key(words)] = self.kept / str(len(self.done))
            shutil.copytree(out, self.done[self.key(words)])
        return status

    @staticmethod
    def key(words: list[str]) -> tuple[str, ...]:
        """The options in the order of their names, but for where the run goes."""
        starts = [number for number, word in enumerate(words) if word.startswith("--")]
        options = sorted(tuple(words[a:b]) for a, b in itertools.pairwise([*starts, len(words)]))
        return tuple(word for option in options if option[0] != "--out" for word in option)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    return Trainer(tmp_path_factory.mktemp("trained"))


def run_rmadapter(words: list[str], model: Path, trainer: Trainer) -> None:
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
    # Their options are read: tests/export traces models of fewer blocks, and in tests/serving a server has an end.
    if words[0] in OPTIONS_ALONE:
        parse_arguments(OPTIONS_ALONE[words[0]], words[1:], prog=f"rmadapter {words[0]}")
        return
    quick = {"train": once, "sweep": once, "search": once, "eval": ["--workers", "0"]}.get(words[0], [])
    run = trainer if words[0] == "train" else main
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        try:
            status = run([*words, *(quick if "--print_config" not in words else [])])
        except SystemExit as stop:  # --print_config, --help
            status = stop.code
    assert not status, words
    if target:
        target.write_text(output.getvalue())


def help_of(words: list[str]) -> str:
    """What ``python -m MODULE --help`` or ``python FILE --help`` prints, in this process, which has torch already."""
    output = io.StringIO()

    def called() -> None:
        if words[0] == "-m":
            sys.exit(importlib.import_module(words[1]).main())
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.syspath_prepend(str(ROOT))
        patch.setattr(sys, "argv", [words[-1], "--help"])
        with pytest.raises(SystemExit) as stopped:
            called()
    assert not stopped.value.code, words
    return output.getvalue()


def check_options(words: list[str]) -> None:
    """``python -m MODULE`` or ``python FILE``: its help lists every option that the command has."""
    target, options = (words[1:3], words[3:]) if words[1] == "-m" else (words[1:2], words[2:])
    listed = help_of(target).replace("-", "_")
    for word in options:
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


def check_pytest(words: list[str], config: pytest.Config) -> None:
    """The paths exist and the options are pytest's, or a plugin's that is installed."""
    for word in words[1:]:
        if word.startswith("-"):
            config.getoption(word.partition("=")[0])
        else:
            assert (ROOT / word).exists(), word


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_command_runs(script, place, field_data, few_emoji, model_folder, trainer, pytestconfig):
    for command in script:
        words = [str(Path(word).expanduser()) if word.startswith("~") else word for word in command]
        while "=" in words[0]:  # variables of the environment
            words = words[1:]
        if words[:3] == ["python", "-m", "rmadapter.train"]:
            words = ["rmadapter", "train", *words[3:]]
        if words[0] == "torchrun":  # as one process; tests/step/test_distributed.py has several
            words = ["rmadapter", "train", *words[words.index("rmadapter.train") + 1 :]]
        if words[0] == "rmadapter":
            run_rmadapter(words[1:], model_folder, trainer)
        elif words[0] == "pytest":
            check_pytest(words, pytestconfig)
        else:
            {"python": check_options, "make": check_make, "pip": check_pip}[words[0]](words)


@pytest.mark.parametrize("document", [one for one in DOCUMENTS if blocks(one, "python")], ids=name_of)
def test_every_piece_of_python_runs(document, place, monkeypatch, capsys):
    monkeypatch.setattr(open_clip, "create_model_and_transforms", lambda *_, **__: (small_clip(**TWELVE), None, None))
    path = place / "document.py"
    path.write_text("\n".join(blocks(document, "python")))
    registered = dict(METHODS)
    try:
        runpy.run_path(str(path))
    finally:  # a page adds a method
        METHODS.clear()
        METHODS.update(registered)
        naming._registered.cache_clear()


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_files_and_names_exist(document):
    text = document.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (document.parent / link).exists(), link
    for path in re.findall(r"`((?:rmadapter|rmadapter_kernels|tests|bench|docs|csrc)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"(?:`|^::: |python -m )(rmadapter(?:_kernels)?(?:\.\w+)+)(?:`|\(|\s)", text, re.MULTILINE):
        pkgutil.resolve_name(name)


def test_the_reference_has_every_public_name():
    for package in (rmadapter, rmadapter_kernels):
        page = (ROOT / "docs" / "api" / f"{package.__name__}.md").read_text(encoding="utf-8")
        shown = {line.rpartition(".")[2] for line in page.splitlines() if line.startswith("::: ")}
        assert set(package.__all__) <= shown, package.__name__


def build_site(source: Path, site: Path) -> None:
    """``make docs`` of ``source``, to another folder and in this process; Abort where there is a warning."""
    build.build(load_config(str(source / "mkdocs.yml"), strict=True, site_dir=str(site)))


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    build_site(ROOT, tmp_path)
    pages = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.html")}
    assert {"index.html", "api/rmadapter.html", "repository/bench/results/step.html"} <= pages
    assert "rmadapter.tuners.injection.inject" in (tmp_path / "api" / "rmadapter.html").read_text()


@pytest.mark.parametrize("link", ["missing.md", "step.md#missing", "../bench/missing.md"])
def test_a_broken_link_is_found(tmp_path, monkeypatch, caplog, link):
    """On a site of two pages, with the settings and the hook of ours."""
    monkeypatch.chdir(tmp_path)
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    Path("mkdocs.yml").write_text(re.sub(r"(?ms)^(nav|not_in_nav|plugins|theme):.*?(?=^\S)", "", settings))
    docs = Path("docs")
    docs.mkdir()
    shutil.copy(ROOT / "docs" / "site_hook.py", docs)
    (docs / "step.md").write_text("# The step\n\n[settings](../mkdocs.yml)\n")
    (docs / "index.md").write_text("# Index\n\n[the step](step.md#the-step)\n")
    build_site(tmp_path, tmp_path / "site")
    (docs / "index.md").write_text(f"# Index\n\n[there]({link})\n")
    with pytest.raises(Abort):
        build_site(tmp_path, tmp_path / "site")
    assert link in caplog.text
