"""Makes the bundled drawings from the vendors' packages, and the manifest of all bundled files.

    python -m rmadapter.testbed.build --sources DIR            # write files/
    python -m rmadapter.testbed.build --sources DIR --check    # compare files/ with what the sources give

The packages' archives are taken from DIR and fetched into it with npm where they are missing. SVG is drawn by
resvg-py, which nothing else here needs: ``pip install 'rmadapter[testbed]'``.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rmadapter.config.arguments import run_module
from rmadapter.config.paths import PathText
from rmadapter.data.emoji import GROUPS
from rmadapter.data.emoji.atlas import CATALOGUE, FILES, MANIFEST, ONE_DRAWING, STYLES, paste
from rmadapter.errors import InputError
from rmadapter.files import write_bytes, write_json
from rmadapter.testbed.vendors import NAMES, PACKAGES, Datasource, Iconify, fetch, open_style, read_names

UNICODE_GROUPS = {
    "Animals & Nature": "animals",
    "Food & Drink": "food",
    "Objects": "objects",
    "Travel & Places": "travel",
    "Activities": "activities",
    "Smileys & Emotion": "people",
    "People & Body": "people",
    "Symbols": "symbols",
}
# What a name alone hardly tells apart, or a drawing of 48 pixels does not: hands of a clock, phases of the moon, ...
LEFT_OUT = re.compile(
    r"o’clock$|-thirty$|\bmoon( face)?$|\barrow\b|arrows\b|^Japanese “|facing right$",
    re.IGNORECASE,
)
# Names above that are things all the same.
KEPT = {"crescent moon", "heart with arrow", "bow and arrow"}
QUALITY = 90  # of lossy WebP; the atlases together are then under half of what lossless would take


def make_catalogue(names: list[dict[str, str]], styles: dict[str, Datasource | Iconify]) -> list[dict[str, Any]]:
    """The emoji that both pretraining styles draw, by group and lower-case name; without those left out."""
    kept: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    for entry in names:
        group = UNICODE_GROUPS.get(entry["group"])
        if group is None or (LEFT_OUT.search(entry["name"]) and entry["name"] not in KEPT):
            continue
        drawn = {style: styles[style].has(entry["code"], entry["name"]) for style in STYLES}
        if all(drawn[style] for style in STYLES if STYLES[style].pretrained):
            everywhere = all(drawn[style] for style in ONE_DRAWING)
            kept.append({**entry, "group": group, "everywhere": everywhere, "several": all(drawn.values())})
            seen[entry["name"].lower()] = seen.get(entry["name"].lower(), 0) + 1
    kept = [entry for entry in kept if seen[entry["name"].lower()] == 1]
    return sorted(kept, key=lambda entry: (GROUPS.index(entry["group"]), entry["name"].lower()))


def make_atlas(style: str, source: Datasource | Iconify, catalogue: list[dict[str, Any]]) -> np.ndarray:
    """The style's drawings of its part of the catalogue, pasted."""
    drawn = [entry for entry in catalogue if STYLES[style].draws(entry["everywhere"], entry["several"])]
    tiles = np.stack([source.draw(entry["code"], entry["name"]) for entry in drawn])
    tiles[tiles[..., 3] == 0] = 0  # colours nobody sees; they would cost bytes
    return paste(tiles)


def encode(atlas: np.ndarray) -> bytes:
    """Lossy WebP with exact transparency."""
    file = io.BytesIO()
    Image.fromarray(atlas).save(file, "WEBP", quality=QUALITY, alpha_quality=100, method=6)
    return file.getvalue()


def build(sources: Path) -> dict[str, bytes]:
    """File name -> content of everything that is made from the sources.

    Raises:
        InputError: a source or resvg-py is missing, or a source is another version.
    """
    try:
        import resvg_py  # noqa: F401
    except ImportError:
        raise InputError("resvg-py is missing, which draws the SVG sources; pip install 'rmadapter[testbed]'") from None
    names = read_names(fetch(NAMES, sources))
    styles = {style: open_style(style, fetch(PACKAGES[style], sources)) for style in STYLES}
    catalogue = make_catalogue(names, styles)
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in catalogue)
    made = {CATALOGUE: f"[\n{lines}\n]\n".encode()}
    for style in STYLES:
        made[f"{style}.webp"] = encode(make_atlas(style, styles[style], catalogue))
        print(f"{style}: {len(made[f'{style}.webp']):,} bytes")
    return made


def write_manifest() -> None:
    """Hash every bundled file but the manifest itself and texts for people."""
    files = sorted(path for path in FILES.rglob("*") if path.suffix in (".json", ".webp", ".safetensors"))
    hashes = {
        path.relative_to(FILES).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name != MANIFEST
    }
    packages = {"names": NAMES, **PACKAGES}
    sources = {role: {"package": p.name, "version": p.version, "sha512": p.integrity} for role, p in packages.items()}
    write_json(FILES / MANIFEST, {"sources": sources, "sha256": hashes})


def differences(made: dict[str, bytes], folder: Path = FILES) -> list[str]:
    """One sentence for each file in ``folder`` that is not what was made; pictures are compared by their pixels."""
    found = []
    for name, content in made.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif path.read_bytes() != content and not (path.suffix == ".webp" and _same_pixels(path.read_bytes(), content)):
            found.append(f"{name} differs")
    return found


def _same_pixels(first: bytes, second: bytes) -> bool:
    """Equal transparency, and colours where anything is to be seen: encoders of other versions write other bytes."""
    one, other = (np.asarray(Image.open(io.BytesIO(content)).convert("RGBA")) for content in (first, second))
    if one.shape != other.shape or (one[..., 3] != other[..., 3]).any():
        return False
    return bool((one == other)[one[..., 3] > 0].all())


@dataclass
class BuildConfig:
    """The bundled drawings, catalogue and manifest, made from the sources or compared with them.

    Args:
        sources: folder of the npm archives
        check: compare instead of writing
    """

    sources: PathText = "testbed-sources"
    check: bool = False


def run_build(config: BuildConfig) -> int:
    """Write the bundled files, or print how they differ; the exit status is 1 where ``check`` finds a difference."""
    made = build(Path(config.sources))
    if config.check:
        found = differences(made)
        print("\n".join(found) or f"{len(made)} bundled files equal what the sources give")
        return 1 if found else 0
    for name, content in made.items():
        write_bytes(FILES / name, content)
    write_manifest()
    print(f"written: {FILES}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """The command line; the exit status is what ``commands.guarded`` says and, with --check, 1 for a difference."""
    return run_module(BuildConfig, run_build, argv, prog="python -m rmadapter.testbed.build")


if __name__ == "__main__":
    sys.exit(main())
