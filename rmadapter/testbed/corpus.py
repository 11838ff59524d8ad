"""A broad corpus of named drawings for pretraining: the icons of ``@iconify/json`` whose licences allow it.

    python -m rmadapter.testbed.corpus --sources testbed-sources --out runs/corpus

Taken are the sets under licences that ask for no more than attribution, without brands, flags and emoji: the emoji
sets hold the styles that pretraining knows already and those that the data sets test. A few sets are held out whole, to
test on. Of one name at most ``MOST_OF_A_NAME`` drawings are taken, the coloured first, each from another set; a drawing
that looks like one of a tested style is left out too, since vendors take over each other's.

``corpus_files`` says how the folder is laid out and reads it.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rmadapter.config.arguments import run_module
from rmadapter.config.paths import PathText
from rmadapter.data.emoji.atlas import STYLES, drawings
from rmadapter.errors import InputError
from rmadapter.testbed.corpus_files import Icon, write_corpus
from rmadapter.testbed.vendors import Package, draw_icon, fetch, read_member

SOURCE = Package(
    "@iconify/json",
    "2.2.535",
    "nAV60ACUSHwnsb6fsp+letHlNkrwO4vzBtcC6B4EDHErQQfezk7E3nJdnwJjve6OCfMNO0uVT5Vrgna9/NCmXw==",
)
LICENCES = {
    *("MIT", "Apache-2.0", "CC0-1.0", "OFL-1.1", "ISC", "BSD-3-Clause", "Unlicense"),
    *("CC-BY-4.0", "CC-BY-3.0"),  # corpus.json names their authors
}
CATEGORIES_LEFT_OUT = {"Logos", "Programming", "Flags / Maps", "Emoji"}
# Brands, emoji and moving pictures outside these categories.
SETS_LEFT_OUT = {"fluent-emoji", "fa6-brands", "fa-brands", "svg-spinners", "line-md"}
BRAND_SETS = ("simple-icons", "logos")  # what is called like one of these is left out of every set
HELD_OUT = ("flat-color-icons", "streamline-kameleon-color", "meteocons", "maki", "game-icons")
MOST_OF_A_NAME = 4
# How a drawing is made, which says nothing of what it shows.
LOOKS = re.compile(
    r"^(outlined?|fill|filled|solid|bold|thin|light|regular|duotone|twotone|two|tone|line|linear|linebold|broken|rounded|round"
    r"|sharp|small|large|mini|micro|variant|alt|color|colou?red|flat|o|s|l|m|b|f|\d+|\d+px|16|20|24|28|32|48|icon|remix"
    r"|flex|plump|freehand|ultimate|black|white)$"
)
FLAG = re.compile(r"\b(flags?|logo|brand)\b")
ALIKE = 0.97  # cosine of two pictures of 12 x 12
SMALL = 12


def words(key: str) -> str:
    """What an icon's key says of what it shows: ``house-chimney-outline-24`` is "house chimney"; empty for nothing."""
    return " ".join(word for word in re.split(r"[-_]+", key.lower()) if not LOOKS.match(word))


def sets_taken(collections: dict[str, dict[str, Any]], *, held_out: bool = False) -> dict[str, dict[str, Any]]:
    """The sets of Iconify's list that are taken, or those that are held out."""
    return {
        name: info
        for name, info in collections.items()
        if info["license"].get("spdx") in LICENCES
        and (name in HELD_OUT) == held_out
        and (held_out or (info.get("category") not in CATEGORIES_LEFT_OUT and name not in SETS_LEFT_OUT))
    }


def choose(sets: dict[str, dict[str, Any]], collections: dict[str, dict[str, Any]], brands: set[str]) -> list[Icon]:
    """The drawings to take from ``sets``, by name and set.

    Args:
        sets: icon sets in Iconify's format by name.
        collections: Iconify's list of them.
        brands: keys that name brands.
    """
    by_name: dict[str, list[Icon]] = {}
    for name, content in sets.items():
        coloured = bool(collections[name].get("palette"))
        seen = set()  # of one set one drawing of a name: its others are the same in other weights
        for key, icon in sorted(content["icons"].items()):
            shown = words(key)
            plain = shown and key not in brands and shown.replace(" ", "") not in brands
            if plain and not icon.get("hidden") and not FLAG.search(shown) and shown not in seen:
                seen.add(shown)
                by_name.setdefault(shown, []).append(Icon(name, key, shown, coloured))
    chosen = []
    for icons in by_name.values():
        # In an order that is no set's own, so that the first sets do not have all common names.
        order = sorted(icons, key=lambda icon: (not icon.coloured, _digest(icon.set + icon.name)))
        chosen += order[:MOST_OF_A_NAME]
    return sorted(chosen, key=lambda icon: (not icon.coloured, icon.name, icon.set))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def signatures(tiles: np.ndarray) -> np.ndarray:
    """float32 [n, 12 * 12 * 3] of unit length from tiles [n, 48, 48, 4]: on grey, made smaller, without their mean."""
    values = tiles.astype(np.float32) / 255
    shown = values[..., :3] * values[..., 3:] + 0.5 * (1 - values[..., 3:])
    step = tiles.shape[1] // SMALL
    small = shown.reshape(len(tiles), SMALL, step, SMALL, step, 3).mean((2, 4)).reshape(len(tiles), -1)
    small -= small.mean(1, keepdims=True)
    return small / np.maximum(np.linalg.norm(small, axis=1, keepdims=True), 1e-6)


def unlike_tested(tiles: np.ndarray, tested: np.ndarray) -> np.ndarray:
    """bool [n]: which of ``tiles`` look like none of the ``tested`` signatures."""
    return (signatures(tiles) @ tested.T).max(1, initial=-1.0) < ALIKE


def tested_signatures() -> np.ndarray:
    """Of every drawing of the styles that pretraining has not seen."""
    tiles = [np.stack(list(drawings(name).values())) for name, style in STYLES.items() if not style.pretrained]
    return signatures(np.concatenate(tiles))


def read_sets(archive: Path, names: set[str]) -> dict[str, dict[str, Any]]:
    """The sets of the package by name."""
    found = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            name = Path(member.name).stem
            if member.name == f"package/json/{name}.json" and name in names:
                file = tar.extractfile(member)
                assert file is not None, f"{member.name} is no file"
                found[name] = json.loads(file.read())
    return found


def draw(
    icons: list[Icon], sets: dict[str, dict[str, Any]], tested: np.ndarray | None
) -> Iterator[tuple[Icon, np.ndarray]]:
    """The drawings that show something and, where signatures of ``tested`` ones are given, look like none of them."""
    for start in range(0, len(icons), 512):
        some = icons[start : start + 512]
        tiles = np.stack([draw_icon(sets[icon.set]["icons"][icon.key], sets[icon.set]) for icon in some])
        kept = (tiles[..., 3] > 0).mean((1, 2)) > 0.01
        if tested is not None:
            kept &= unlike_tested(tiles, tested)
        yield from ((icon, tile) for icon, tile, keep in zip(some, tiles, kept, strict=True) if keep)


def build(archive: Path, out: Path) -> dict[str, int]:
    """Write the corpus; returns how many drawings of how many names there are, and how many are coloured."""
    collections = json.loads(read_member(archive, "collections.json"))
    taken, kept_back = sets_taken(collections), sets_taken(collections, held_out=True)
    sets = read_sets(archive, {*taken, *kept_back, *BRAND_SETS})
    missing = sorted({*taken, *kept_back, *BRAND_SETS} - sets.keys())
    if missing:
        raise InputError(f"{archive} lacks the sets {', '.join(missing)}; valid: {SOURCE.name} {SOURCE.version} whole")
    brands = {key for name in BRAND_SETS for key in sets[name]["icons"]}
    chosen = {
        part: choose({name: sets[name] for name in names}, collections, brands)
        for part, names in (("taken", taken), ("held_out", kept_back))
    }
    kept = list(draw(chosen["taken"], sets, tested_signatures()))
    held_out = list(draw(chosen["held_out"], sets, None))
    authors = {
        name: {"name": info["name"], "author": info["author"], "license": info["license"]}
        for name, info in {**taken, **kept_back}.items()
    }
    source = {"package": SOURCE.name, "version": SOURCE.version, "sha512": SOURCE.integrity}
    write_corpus(out, kept, held_out, authors, source)
    names = {icon.name for icon, _ in kept}
    coloured = sum(icon.coloured for icon, _ in kept)
    counts = {"drawings": len(kept), "names": len(names), "coloured": coloured, "sets": len(taken)}
    return {**counts, "held out": len(held_out)}


@dataclass
class CorpusConfig:
    """The broad corpus for pretraining, made from Iconify's icons.

    Args:
        sources: folder of the npm archives; what is missing is fetched
        out: folder for the corpus
    """

    sources: PathText = "testbed-sources"
    out: PathText = "runs/corpus"


def run_corpus(config: CorpusConfig) -> None:
    """Make the corpus and say how large it is.

    Raises:
        InputError: the source or resvg-py is missing, or the source is another version.
    """
    try:
        import resvg_py  # noqa: F401
    except ImportError:
        raise InputError("resvg-py is missing, which draws the SVG sources; pip install 'rmadapter[testbed]'") from None
    found = build(fetch(SOURCE, Path(config.sources)), Path(config.out))
    print(", ".join(f"{count:,} {what}" for what, count in found.items()) + f": {config.out}")


def main(argv: list[str] | None = None) -> int:
    """The command line; the exit status is what ``commands.guarded`` says."""
    return run_module(CorpusConfig, run_corpus, argv, prog="python -m rmadapter.testbed.corpus")


if __name__ == "__main__":
    sys.exit(main())
