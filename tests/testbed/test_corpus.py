"""The broad corpus: which icons are taken, and that none looks like a drawing that is tested."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest

from rmadapter.data.emoji.atlas import drawings
from rmadapter.errors import InputError
from rmadapter.testbed import corpus
from rmadapter.testbed.corpus_files import read_corpus


def info(licence="MIT", category="UI 24px", palette=False):
    license = {"title": licence, "spdx": licence}
    return {"name": "A set", "author": {"name": "A"}, "license": license, "category": category, "palette": palette}


def body(colour, size=10):
    return f'<rect x="{12 - size / 2}" y="4" width="{size}" height="16" fill="{colour}"/>'


def icons(**bodies):
    found = {key.replace("_", "-"): {"body": value} for key, value in bodies.items()}
    return {"icons": found, "width": 24, "height": 24}


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("house-chimney-outline-24", "house chimney"),
        ("Acorn", "acorn"),
        ("bell-o", "bell"),
        ("filled-20-round", ""),
        ("low-temperature-fill", "low temperature"),
        ("line-chart", "chart"),
        ("outliner", "outliner"),
    ],
)
def test_a_name_is_what_a_key_says_of_the_thing(key, name):
    assert corpus.words(key) == name


def test_licences_brands_emoji_and_held_out_sets_decide():
    listed = {
        "free": info(),
        "by": info("CC-BY-4.0"),
        "share-alike": info("CC-BY-SA-4.0"),
        "no-sale": info("CC-BY-NC-4.0"),
        "copyleft": info("GPL-3.0"),
        "unknown": {**info(), "license": {"title": "mine"}},
        "brands": info(category="Logos"),
        "flags": info(category="Flags / Maps"),
        "emoji": info(category="Emoji"),
        "fluent-emoji": info(),
        "meteocons": info(),
        "maki": info(category="Flags / Maps"),
    }
    assert set(corpus.sets_taken(listed)) == {"free", "by"}
    assert set(corpus.sets_taken(listed, held_out=True)) == {"meteocons", "maki"}


def test_of_a_name_a_few_drawings_are_taken_the_coloured_first_and_one_a_set():
    listed = {f"set{number}": info(palette=number == 5) for number in range(7)}
    sets = {name: icons(bear=body("red"), bear_outline=body("blue"), flag_of_chad=body("red")) for name in listed}
    sets["set0"]["icons"] |= {"acme": {"body": ""}, "cat": {"body": "", "hidden": True}, "acme-shop": {"body": ""}}
    found = corpus.choose(sets, listed, {"acme"})
    assert [icon.name for icon in found] == ["bear", "acme shop", *["bear"] * (corpus.MOST_OF_A_NAME - 1)]
    bears = [icon for icon in found if icon.name == "bear"]
    assert (bears[0].set, bears[0].coloured) == ("set5", True)
    assert len({icon.set for icon in bears}) == corpus.MOST_OF_A_NAME
    assert {icon.key for icon in bears} == {"bear"}


def test_a_drawing_that_looks_like_a_tested_one_is_seen():
    tested = corpus.signatures(np.stack([drawings("emojione")[code] for code in ("1F436", "1F354")]))
    burger = drawings("emojione")["1F354"].copy()
    burger[:4] = 0  # hardly changed
    others = np.stack([burger, drawings("twemoji")["1F354"], drawings("fluent")["1F41C"]])
    assert corpus.unlike_tested(others, tested).tolist() == [False, True, True]


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A package of four sets: one of shapes, one with colours, one of brands, and one that is held out."""
    listed = {
        "mono": info(),
        "many": info("CC-BY-4.0", palette=True),
        "logos": info("CC0-1.0", "Logos"),
        "simple-icons": info("CC0-1.0", "Logos"),
        "maki": info("CC0-1.0"),
    }
    sets = {
        "mono": icons(bear=body("currentColor"), empty="<g/>", cat=body("currentColor", 4)),
        "many": icons(bear=body("red"), acme=body("blue")),
        "logos": icons(acme=body("blue")),
        "simple-icons": icons(other=body("blue")),
        "maki": icons(bear=body("currentColor", 8)),
    }
    path = tmp_path / "source.tgz"
    files = {"collections": listed, **{f"json/{name}": values for name, values in sets.items()}}
    with tarfile.open(path, "w:gz") as tar:
        for name, values in files.items():
            content = json.dumps(values).encode()
            member = tarfile.TarInfo(f"package/{name}.json")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(corpus, "tested_signatures", lambda: np.zeros((1, 432), np.float32))
    return path


def test_the_corpus_is_made_from_an_archive_and_says_from_what(archive, tmp_path):
    out = tmp_path / "out"
    counts = corpus.build(archive, out)
    assert counts == {"drawings": 3, "names": 2, "coloured": 1, "sets": 2, "held out": 1}
    made = read_corpus(out)
    assert [(icon.set, icon.name) for icon in made.icons] == [("many", "bear"), ("mono", "bear"), ("mono", "cat")]
    assert [(icon.set, icon.name) for icon in made.held_out_icons] == [("maki", "bear")]
    described = json.loads((out / "corpus.json").read_text())
    assert described["sets"]["many"]["license"]["spdx"] == "CC-BY-4.0"
    assert "maki" in described["sets"]
    assert (made.coloured.shape, made.shapes.shape, made.held_out.shape) == (
        (1, 48, 48, 4),
        (2, 48, 48),
        (1, 48, 48, 4),
    )
    assert made.coloured[0, 24, 24].tolist() == [255, 0, 0, 255]
    assert (made.shapes[0] > 0).mean() > (made.shapes[1] > 0).mean() > 0
    assert made.identity["sha256"].keys() == {"coloured.npy", "shapes.npy", "held_out.npy", "corpus.json"}
    before = (out / "corpus.json").read_bytes()
    corpus.build(archive, out)
    assert (out / "corpus.json").read_bytes() == before


def test_a_corpus_that_is_missing_or_damaged_is_refused(archive, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"corpus has '.*out', where no manifest\.json is"):
        read_corpus(out)
    corpus.build(archive, out)
    (out / "shapes.npy").write_bytes(b"other")
    with pytest.raises(InputError, match=r"shapes\.npy is damaged: SHA-256 \w+, expected \w+; make the corpus again"):
        read_corpus(out)
    (out / "shapes.npy").unlink()
    with pytest.raises(InputError, match=r"shapes\.npy is damaged: SHA-256 none, it is missing"):
        read_corpus(out)


def test_without_the_sets_that_name_brands_no_corpus_is_made(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "BRAND_SETS", ("logos", "brand-marks"))
    with pytest.raises(InputError, match="lacks the sets brand-marks; valid: @iconify/json"):
        corpus.build(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()
