"""The bundled files: whole, within their size, licensed, and what the catalogue says they are."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from rmadapter.data.emoji import GROUPS, atlas
from rmadapter.errors import InputError
from rmadapter.testbed import vendors as sources
from rmadapter.testbed.build import LEFT_OUT, UNICODE_GROUPS, differences, encode, make_catalogue


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the bundled files that a test may damage."""
    folder = tmp_path / "files"
    shutil.copytree(atlas.FILES, folder)
    monkeypatch.setattr(atlas, "FILES", folder)
    for cached in (atlas.catalogue, atlas.drawings):
        cached.cache_clear()
    yield folder
    for cached in (atlas.catalogue, atlas.drawings):
        cached.cache_clear()


def test_bundled_binary_files_take_at_most_12_mb():
    binary = [path for path in atlas.FILES.iterdir() if path.suffix in (".webp", ".safetensors")]
    assert {path.stem for path in binary} == {*atlas.STYLES, "emoji-clip"}
    assert sum(path.stat().st_size for path in binary) <= 12_000_000


def test_every_bundled_file_has_the_manifests_hash():
    names = json.loads((atlas.FILES / atlas.MANIFEST).read_text())["sha256"]
    bundled = {p.name for p in atlas.FILES.iterdir() if p.is_file() and p.name != atlas.MANIFEST}
    assert bundled == set(names)
    for name in names:
        assert atlas.read_bundled(name)


@pytest.mark.parametrize("style", atlas.STYLES)
def test_each_style_has_its_licence_beside_it_and_its_package_pinned(style):
    package = sources.PACKAGES[style]
    text = (atlas.FILES / "licenses" / f"{style}.txt").read_text(encoding="utf-8")
    assert text.startswith(f"../{style}.webp")
    assert f"{package.name} {package.version}" in " ".join(text.split())
    assert f"`{style}.webp`" in (atlas.FILES / "licenses" / "README.md").read_text(encoding="utf-8")
    assert len(package.integrity) == 88


@pytest.mark.parametrize("style", atlas.STYLES)
def test_a_style_draws_every_class_and_a_pretraining_style_the_whole_catalogue(style):
    drawn = atlas.drawings(style)
    if atlas.STYLES[style].pretrained:
        wanted = {e.code for e in atlas.catalogue()}
    else:
        wanted = {e.code for e in atlas.catalogue() if (e.several if atlas.STYLES[style].several else e.everywhere)}
    assert drawn.keys() == wanted
    for tile in drawn.values():
        assert tile.shape == (48, 48, 4)
        assert (tile[..., 3] > 0).mean() > 0.01  # not an empty tile, as one from the wrong place may be


def test_the_same_emoji_looks_more_like_itself_than_like_others_in_another_style():
    """Atlases that were pasted in another order than the catalogue's would fail this."""
    codes = [emoji.code for emoji in atlas.classes("food")]

    def flat(style):
        tiles = np.stack([atlas.drawings(style)[code] for code in codes]).astype(np.float32) / 255
        flat = (tiles[..., :3] * tiles[..., 3:]).reshape(len(codes), -1)
        flat = flat - flat.mean(0)
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)

    for style in ("twemoji", "fluent", "emojione", "fluent-color"):
        nearest = (flat("noto") @ flat(style).T).argmax(1)
        assert (nearest == np.arange(len(codes))).mean() > 0.2  # by chance 0.01


def test_classes_are_in_alphabetical_order_and_told_apart_by_their_names():
    for group in GROUPS:
        names = [emoji.name.lower() for emoji in atlas.classes(group)]
        assert names == sorted(set(names))
        assert len(names) >= 50
    everything = [emoji.name.lower() for emoji in atlas.catalogue()]
    assert len(everything) == len(set(everything))


def test_what_cannot_be_told_apart_is_left_out():
    names = {emoji.name for emoji in atlas.catalogue()}
    assert not names & {
        "one o’clock",
        "two-thirty",
        "full moon",
        "new moon face",
        "up arrow",
        "Japanese “reserved” button",
    }
    assert names >= {"crescent moon", "moon cake", "bow and arrow", "grapes", "alarm clock"}
    assert not any(name.startswith("flag") for name in names - {"flag in hole"})
    assert LEFT_OUT.search("last quarter moon face")
    assert not LEFT_OUT.search("moon viewing ceremony")


def test_a_damaged_atlas_is_named_with_both_hashes(copy):
    content = bytearray((copy / "fluent.webp").read_bytes())
    content[5000] ^= 1
    (copy / "fluent.webp").write_bytes(content)
    with pytest.raises(InputError, match=r"fluent\.webp is damaged: SHA-256 [0-9a-f]{64}, expected [0-9a-f]{64}"):
        atlas.drawings("fluent")
    atlas.drawings("emojione")


@pytest.mark.parametrize("name", ["fluent.webp", "catalogue.json", "manifest.json"])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
        atlas.drawings("fluent")


def test_unknown_groups_and_styles_are_answered_with_the_list_and_the_nearest():
    with pytest.raises(InputError, match=r"style is 'fluemt'.*'noto'.*did you mean 'fluent'"):
        atlas.drawings("fluemt")
    with pytest.raises(InputError, match=r"group is 'anmals'.*did you mean 'animals'"):
        atlas.classes("anmals")


def test_paste_and_cut_are_inverse():
    tiles = np.random.default_rng(0).integers(0, 256, (83, 48, 48, 4), dtype=np.uint8)
    pasted = atlas.paste(tiles)
    assert pasted.shape == (3 * 48, 40 * 48, 4)
    assert np.array_equal(pasted[48:96, :48], tiles[40])
    assert np.array_equal(atlas.cut(pasted, 83), tiles)


class Vendor:
    def __init__(self, *codes):
        self.codes = codes

    def has(self, code, name):
        return code in self.codes


def test_the_catalogue_holds_what_both_pretraining_styles_draw():
    names = [
        {"code": code, "name": name, "group": group}
        for code, name, group in (
            ("3", "Zebra", "Animals & Nature"),
            ("1", "ant", "Animals & Nature"),
            ("2", "bee", "Animals & Nature"),
            ("4", "full moon", "Travel & Places"),
            ("5", "flag of Chad", "Flags"),
            ("6", "Bird", "Animals & Nature"),
            ("7", "bird", "Animals & Nature"),
        )
    ]
    both = Vendor("1", "3", "4", "5", "6", "7")
    styles = dict.fromkeys(atlas.STYLES, both) | {"fluent": Vendor("1", "2", "8"), "noto-v1": Vendor("1", "3")}
    names.append({"code": "8", "name": "yak", "group": "Animals & Nature"})
    both.codes += ("8",)
    found = make_catalogue(names, styles)
    assert [(entry["name"], entry["group"], entry["everywhere"], entry["several"]) for entry in found] == [
        ("ant", "animals", True, True),
        ("yak", "animals", True, False),
        ("Zebra", "animals", False, False),
    ]
    assert set(UNICODE_GROUPS.values()) == set(GROUPS)


def test_check_sees_a_changed_pixel_and_a_missing_file(tmp_path):
    tiles = np.zeros((3, 48, 48, 4), np.uint8)
    tiles[..., 3] = 255
    made = {"noto.webp": encode(atlas.paste(tiles)), "catalogue.json": b"[]"}
    for name, content in made.items():
        (tmp_path / name).write_bytes(content)
    assert differences(made, tmp_path) == []
    tiles[1, 10:20, 10:20] = 255
    (tmp_path / "noto.webp").write_bytes(encode(atlas.paste(tiles)))
    (tmp_path / "catalogue.json").unlink()
    assert differences(made, tmp_path) == ["noto.webp differs", "catalogue.json is missing"]


def test_a_source_of_another_version_is_refused(tmp_path):
    package = sources.PACKAGES["emojione"]
    (tmp_path / package.archive).write_bytes(b"something else")
    with pytest.raises(InputError, match=r"is not @iconify-json/emojione 1\.2\.3: SHA-512 .*, expected T9\+T"):
        sources.fetch(package, tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("piñata", "pinata"), ("woman’s hat", "womans-hat"), ("UP! button", "up-button"), ("T-Rex", "t-rex")],
)
def test_names_are_written_as_iconify_writes_them(name, expected):
    assert sources.slug(name) == expected
