"""``rmadapter datasets``: what is there against what was published, downloads into the field's layout, mistakes."""

from __future__ import annotations

import dataclasses
import errno
import http.client
import inspect
import os
import re
import shutil
import sys
import tarfile
import types
from itertools import pairwise
from pathlib import Path

import pytest
import torchvision
from miniatures import build, folders

from rmadapter.cli import main
from rmadapter.data import load_data
from rmadapter.data.catalog import CATALOG
from rmadapter.data.checking import check
from rmadapter.data.download import steps
from rmadapter.data.sources import SOURCES


def datasets(*words, root):
    return main(["datasets", *words, "--data-root", str(root)])


def test_check_of_everything(tmp_path, capsys):
    build(tmp_path, "dtd")
    build(tmp_path, "fgvc_aircraft")
    assert datasets("check", root=tmp_path) == 0
    out = capsys.readouterr().out
    assert "caltech101: not there (caltech-101/101_ObjectCategories)" in out
    assert "dtd: differs from what was published" in out
    assert "train 15 (published 2,820)" in out
    assert "split_zhou_DescribableTextures.json is missing" in out
    assert "fgvc_aircraft: differs" in out
    assert "split: its own lists and folders" in out
    assert datasets("check", "dtd", root=tmp_path) == 0
    assert "split: split_rmadapter.json, SHA-256 " in capsys.readouterr().out


def test_check_says_that_a_split_was_made_and_not_kept(tmp_path, monkeypatch, capsys):
    build(tmp_path, "dtd")

    def read_only(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "touch", read_only)
    assert datasets("check", "dtd", root=tmp_path) == 0
    assert "split: made here and not kept\n" in capsys.readouterr().out


def test_check_says_what_is_as_published(tmp_path, monkeypatch):
    import dataclasses

    build(tmp_path, "eurosat")
    small = dataclasses.replace(CATALOG["eurosat"], classes=3, train=15, val=6, test=9, base_new_test=(6, 3))
    monkeypatch.setitem(CATALOG, "eurosat", small)
    (found,) = check(["eurosat"], tmp_path)
    assert found.differences == {}
    assert found.found == {"classes": 3, "train": 15, "val": 6, "test": 9, "test base": 6, "test new": 3}


def test_check_of_a_damaged_one_names_the_missing_images(tmp_path, capsys):
    folder = build(tmp_path, "dtd")
    load_data("dtd", str(tmp_path))
    for number in range(10):
        (folder / "images" / "banded" / f"{number:02}.jpg").unlink()
    (folder / "images" / "zigzagged" / "00.jpg").unlink()
    assert datasets("check", root=tmp_path) == 2
    captured = capsys.readouterr()
    assert "names 11 images that are not in" in captured.out
    assert captured.out.count(".jpg") == 10
    assert "  classes 3 (published 47), train 15 (published 2,820)" in captured.out
    assert "split: split_rmadapter.json, SHA-256 " in captured.out
    assert "cannot be used: dtd" in captured.err
    assert datasets("check", "eurosat", root=tmp_path) == 2
    assert "cannot be used: eurosat" in capsys.readouterr().err


def test_check_of_annotations_that_name_missing_images_counts_them(tmp_path, capsys):
    folder = build(tmp_path, "oxford_pets")
    (folder / "images" / "Bengal_7.jpg").unlink()
    assert datasets("check", "oxford_pets", root=tmp_path) == 2
    out = capsys.readouterr().out
    assert "cannot be used: the annotation files in" in out
    assert "test 15 (published 3,669)" in out
    assert "split: made here and not kept" in out
    (folder / "annotations" / "test.txt").unlink()
    assert datasets("check", "oxford_pets", root=tmp_path) == 2
    assert "split:" not in capsys.readouterr().out


class Downloader:
    """Stands for a class of torchvision.datasets: unpacks a miniature where that class would, or fails."""

    def __init__(self, layout, error=None):
        self.layout, self.error, self.calls = layout, error, 0

    def __call__(self, root, download, **_):
        assert download
        self.calls += 1
        if self.error:
            raise self.error
        self.layout(Path(root))


def pets(scratch):
    build(scratch, "oxford_pets").rename(scratch / "oxford-iiit-pet")
    (scratch / "oxford-iiit-pet" / "images.tar.gz").write_bytes(b"archive")


def sun(scratch):
    folders(scratch / "SUN397", ["a/abbey", "b/bar"], 4)
    (scratch / "SUN397" / "ClassName.txt").write_text("/a/abbey\n/b/bar\n")


LAYOUTS = {
    "oxford_pets": ("OxfordIIITPet", pets),
    "eurosat": ("EuroSAT", lambda scratch: build(scratch, "eurosat")),
    "sun397": ("SUN397", sun),
    "dtd": ("DTD", lambda scratch: shutil.move(build(scratch / "x", "dtd"), scratch / "dtd" / "dtd")),
    "fgvc_aircraft": (
        "FGVCAircraft",
        lambda scratch: shutil.move(build(scratch, "fgvc_aircraft"), scratch / "fgvc-aircraft-2013b" / "data"),
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_download_with_torchvision(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setitem(sys.modules, "gdown", None)  # not installed
    class_name, layout = LAYOUTS[name]
    assert SOURCES[name].torchvision == class_name
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=100e9))
    stand_in = Downloader(layout)
    monkeypatch.setattr(torchvision.datasets, class_name, stand_in)
    assert datasets("download", name, root=tmp_path) == 0
    record = CATALOG[name]
    assert (tmp_path / record.folder / record.images).is_dir()
    assert not list(tmp_path.rglob("*.gz"))
    assert [path.name for path in tmp_path.iterdir()] == [record.folder]
    out = capsys.readouterr().out
    assert (f"fetch {record.split_file}" in out) == (record.split_file is not None)
    assert load_data(name, str(tmp_path)).train
    assert datasets("download", name, root=tmp_path) == 0
    assert stand_in.calls == 1


def test_a_download_that_was_stopped_while_unpacking_unpacks_anew(tmp_path, monkeypatch):
    """torchvision's classes go on where the folder is there, and return at once: half of it would pass for whole."""
    scratch = tmp_path / ".download-sun397"
    folders(scratch / "SUN397", ["a/abbey"], 1)
    (scratch / "SUN397.tar.gz").write_bytes(b"archive")

    def checks_for_a_folder(root):
        assert (root / "SUN397.tar.gz").is_file()
        if not (root / "SUN397").is_dir():
            sun(root)

    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=100e9))
    monkeypatch.setattr(torchvision.datasets, "SUN397", Downloader(checks_for_a_folder))
    assert datasets("download", "sun397", root=tmp_path) == 0
    assert load_data("sun397", str(tmp_path)).class_names == ["abbey", "bar"]


def test_split_files_come_from_google_drive_where_gdown_is_installed(tmp_path, monkeypatch, capsys):
    build(tmp_path, "eurosat")
    content = '{"train": [], "val": [], "test": []}'
    gdown = types.SimpleNamespace(download=lambda id, output, quiet: Path(output).write_text(content))
    monkeypatch.setitem(sys.modules, "gdown", gdown)
    assert datasets("download", "eurosat", root=tmp_path) == 0
    assert (tmp_path / "eurosat" / "split_zhou_EuroSAT.json").read_text() == content

    assert (
        "split_zhou_EuroSAT.json is not verified: the published file's hash is not known here"
        in capsys.readouterr().out
    )

    def refused(**_):
        raise RuntimeError("too many users")

    (tmp_path / "eurosat" / "split_zhou_EuroSAT.json").unlink()
    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=refused))
    assert datasets("download", "eurosat", root=tmp_path) == 0
    out = capsys.readouterr().out
    assert "too many users" in out
    assert "1. fetch split_zhou_EuroSAT.json (under 10 MB) from https://drive.google.com/file/d/1Ip7" in out
    assert not list((tmp_path / "eurosat").glob(".*"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<!DOCTYPE html><title>Quota exceeded</title>", "split file .* cannot be read"),
        ('{"error": "quota"}', "what came has no list train and no list val and no list test; valid: "),
        ('{"train": [], "val": [], "test": []}', "what came has SHA-256 [0-9a-f]{64}, and the published file 00"),
    ],
)
def test_what_comes_from_google_drive_is_checked_before_it_is_kept(tmp_path, monkeypatch, capsys, content, message):
    build(tmp_path, "eurosat")
    gdown = types.SimpleNamespace(download=lambda id, output, quiet: Path(output).write_text(content))
    monkeypatch.setitem(sys.modules, "gdown", gdown)
    monkeypatch.setitem(CATALOG, "eurosat", dataclasses.replace(CATALOG["eurosat"], split_sha256="00" * 32))
    assert datasets("download", "eurosat", root=tmp_path) == 0
    out = capsys.readouterr().out
    assert re.search(rf"split_zhou_EuroSAT\.json could not be fetched from Google Drive: {message}", out)
    assert "1. fetch split_zhou_EuroSAT.json" in out
    assert not (tmp_path / "eurosat" / "split_zhou_EuroSAT.json").exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("no route to host"), "could not be downloaded by torchvision.datasets.DTD: no route to host"),
        (RuntimeError("File not found or corrupted."), "corrupted"),
        (http.client.IncompleteRead(b"half"), "could not be downloaded by torchvision.datasets.DTD: IncompleteRead"),
        (tarfile.ReadError("truncated"), "damaged (truncated) and has been deleted"),
    ],
)
def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch, capsys, error, message):
    monkeypatch.setattr(torchvision.datasets, "DTD", Downloader(None, error))
    assert datasets("download", "dtd", root=tmp_path) == 2
    err = capsys.readouterr().err
    assert message in err
    assert f"dtd, by hand, in {tmp_path}:\n  1. fetch dtd-r1.0.1.tar.gz (0.63 GB) from https://www.robots.ox" in err
    assert "\n  2. fetch split_zhou_DescribableTextures.json" in err
    assert not (tmp_path / "dtd").exists()


def test_a_download_of_another_layout_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torchvision.datasets, "DTD", Downloader(lambda scratch: (scratch / "dtd").mkdir()))
    assert datasets("download", "dtd", root=tmp_path) == 2
    assert "its layout has changed\ndtd, by hand, in" in capsys.readouterr().err


def test_what_has_no_download_is_explained(tmp_path, capsys):
    assert datasets("download", "stanford_cars", "imagenet_a", root=tmp_path) == 0
    out = capsys.readouterr().out
    for text in (
        "cars_train.tgz (934 MB)",
        "unpack it in stanford_cars (it makes cars_train)",
        "put it into stanford_cars/",
        "unpack it in imagenet-adversarial (it makes imagenet-a)",
    ):
        assert text in out


def test_too_little_room(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=10e9))
    assert datasets("download", "sun397", root=tmp_path) == 2
    assert "has 10.0 GB free; sun397 needs about 78.0 GB" in capsys.readouterr().err


def test_mistakes(tmp_path, capsys):
    cases = {
        "datasets needs a word after it": [],
        "valid: 'check', 'download'; did you mean 'check'": ["chek", "--data-root", str(tmp_path)],
        "data_root is missing": ["check"],
        "did you mean 'dtd'": ["check", "ddt", "--data-root", str(tmp_path)],
        "download needs a name": ["download", "--data-root", str(tmp_path)],
        "which is no folder": ["check", "--data-root", str(tmp_path / "nowhere")],
    }
    for message, argv in cases.items():
        assert main(["datasets", *argv]) == 2, argv
        assert message in capsys.readouterr().err


def test_every_data_set_has_a_source():
    assert set(SOURCES) == set(CATALOG)
    for name, source in SOURCES.items():
        assert source.torchvision is None or hasattr(torchvision.datasets, source.torchvision)
        names = [file.name for file in source.files]
        assert CATALOG[name].split_file is None or CATALOG[name].split_file in names


# What lies at the top of each archive; "" for many files or folders.
TOPS = {
    "ILSVRC2012_img_train.tar": "",
    "ILSVRC2012_img_val.tar": "",
    "caltech-101.zip": "caltech-101",
    "101_ObjectCategories.tar.gz": "101_ObjectCategories",
    "images.tar.gz": "images",
    "annotations.tar.gz": "annotations",
    "cars_train.tgz": "cars_train",
    "cars_test.tgz": "cars_test",
    "car_devkit.tgz": "devkit",
    "102flowers.tgz": "jpg",
    "food-101.tar.gz": "food-101",
    "fgvc-aircraft-2013b.tar.gz": "fgvc-aircraft-2013b",
    "SUN397.tar.gz": "SUN397",
    "dtd-r1.0.1.tar.gz": "dtd",
    "EuroSAT.zip": "2750",
    "UCF-101-midframes.zip": "UCF-101-midframes",
    "imagenetv2-matched-frequency.tar.gz": "imagenetv2-matched-frequency-format-val",
    "ImageNet-Sketch.zip": "sketch",
    "imagenet-a.tar": "imagenet-a",
    "imagenet-r.tar": "imagenet-r",
}


def followed(step: str) -> str:
    """The folder below the data root that is there once an archive's step has been followed to the letter."""
    archive = re.match(r"fetch (\S+) ", step)[1]
    _, _, sentence = step.partition(" and unpack ")
    if found := re.fullmatch(
        r"(?:it|(\S+), which is in it,) in (.+) \(it makes (\S+?)(?:, to be renamed to (\S+))?\)", sentence
    ):
        inner, where, makes, renamed = found.groups()
        assert makes == TOPS[inner or archive]
        return f"{where}/{renamed or makes}".removeprefix("the data root/")
    where, _, content = re.fullmatch(r"its content into ([^,]+)(, (.+))?", sentence).groups()
    assert not TOPS[archive] or "what is in its folder" in content
    return where


@pytest.mark.parametrize("name", SOURCES)
def test_every_data_set_has_steps_that_lead_to_its_layout(name):
    source, record = SOURCES[name], CATALOG[name]
    assert bool(source.archives) == bool(source.torchvision)
    files = [*source.archives, *source.files]
    for file in files:
        assert re.fullmatch(r"(under |about )?[\d.]+ [kMG]B", file.size), file
        assert (file.url is None) != (file.drive is None)
        assert (file.unpack is None) != (file.folder is None)
        assert (file.folder or file.unpacked).split("/")[0] == record.folder
        if file.unpack is not None:
            assert followed(file.step()) == file.unpacked
            assert all(one != other for one, other in pairwise(file.unpacked.split("/")))
    # The folder of the images itself, one in it, or one that has it: the data set's own.
    images = f"{record.folder}/{record.layout_marker}"
    made = [file.unpacked for file in files if file.unpack is not None]
    assert any(folder == record.folder or f"{folder}/".startswith(f"{images}/") for folder in made)
    assert len(made) == len([step for step in steps(name) if " and unpack " in step])
    if source.torchvision:
        code = inspect.getsource(inspect.getmodule(getattr(torchvision.datasets, source.torchvision)))
        for file in source.archives:
            folder, _, name = file.url.rpartition("/")
            assert name == file.name
            assert name in code  # what torchvision itself fetches, and from there
            assert folder in code
