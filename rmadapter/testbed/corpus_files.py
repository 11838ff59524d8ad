"""The folder of a broad corpus, as ``testbed.corpus`` writes it and pretraining reads it.

coloured.npy      uint8 [n, 48, 48, 4], straight alpha
shapes.npy        uint8 [m, 48, 48], the alpha of drawings in one colour
held_out.npy      uint8 [k, 48, 48, 4], drawings of the sets that are held out
corpus.json       of every drawing, in the order of the arrays, set and name; of every set, licence and author
manifest.json     what it was made from, and the SHA-256 of these files
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rmadapter.data.emoji.atlas import SIDE
from rmadapter.errors import InputError
from rmadapter.files import read_json, write_atomic, write_json

COLOURED, SHAPES, HELD_OUT = "coloured.npy", "shapes.npy", "held_out.npy"
DESCRIPTION, MANIFEST = "corpus.json", "manifest.json"


@dataclass(frozen=True)
class Icon:
    """One drawing: its set, its key there, and the words that say what it shows."""

    set: str
    key: str
    name: str
    coloured: bool


@dataclass(frozen=True)
class Corpus:
    """A corpus that is read.

    Attributes:
        coloured: uint8 [n, 48, 48, 4], straight alpha; shapes: uint8 [m, 48, 48], alpha.
        icons: of the coloured drawings and then of the shapes.
        held_out: uint8 [k, 48, 48, 4], and ``held_out_icons`` of them.
        identity: what names it: its source and the SHA-256 of its files.
    """

    coloured: np.ndarray
    shapes: np.ndarray
    icons: tuple[Icon, ...]
    held_out: np.ndarray
    held_out_icons: tuple[Icon, ...]
    identity: dict[str, Any]


def write_corpus(
    out: Path,
    taken: Sequence[tuple[Icon, np.ndarray]],
    held_out: Sequence[tuple[Icon, np.ndarray]],
    sets: Mapping[str, Any],
    source: Mapping[str, str],
) -> None:
    """Write the folder.

    Args:
        taken: drawings uint8 [48, 48, 4], the coloured ones first.
        held_out: those of the sets that are held out.
        sets: licence and author of each set by name.
        source: the package that they are from.
    """
    out.mkdir(parents=True, exist_ok=True)
    arrays = {
        COLOURED: ([tile for icon, tile in taken if icon.coloured], (SIDE, SIDE, 4)),
        SHAPES: ([tile[..., 3] for icon, tile in taken if not icon.coloured], (SIDE, SIDE)),
        HELD_OUT: ([tile for _, tile in held_out], (SIDE, SIDE, 4)),
    }
    for name, (tiles, shape) in arrays.items():
        write_atomic(out / name, partial(_save, np.array(tiles, np.uint8).reshape(-1, *shape)))
    described = {
        part: [asdict(icon) for icon, _ in some] for part, some in (("drawings", taken), ("held_out", held_out))
    }
    write_json(out / DESCRIPTION, {"sets": dict(sets), **described})
    hashes = {name: _digest(out / name) for name in (*arrays, DESCRIPTION)}
    write_json(out / MANIFEST, {"source": dict(source), "sha256": hashes})


def _save(array: np.ndarray, path: Path) -> None:
    with path.open("wb") as file:  # given a name, numpy would add its own ending
        np.save(file, array)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_corpus(folder: Path) -> Corpus:
    """The corpus in ``folder``.

    Raises:
        InputError: a file is missing or is not the one that the manifest names.
    """
    if not (folder / MANIFEST).is_file():
        raise InputError(
            f"corpus has {str(folder)!r}, where no {MANIFEST} is; python -m rmadapter.testbed.corpus makes one"
        )
    manifest = read_json(folder / MANIFEST, "corpus manifest")
    hashes = manifest.get("sha256", {})
    if hashes.keys() != {COLOURED, SHAPES, HELD_OUT, DESCRIPTION}:
        raise InputError(f"{folder / MANIFEST} is damaged: sha256 has {sorted(hashes)}; make the corpus again")
    for name, expected in hashes.items():
        path = folder / name
        found = _digest(path) if path.is_file() else "none, it is missing"
        if found != expected:
            raise InputError(f"{path} is damaged: SHA-256 {found}, expected {expected}; make the corpus again")
    description = read_json(folder / DESCRIPTION, "corpus")
    arrays = (np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in (COLOURED, SHAPES, HELD_OUT))
    coloured, shapes, held_out = arrays
    icons, kept_back = (tuple(Icon(**entry) for entry in description[part]) for part in ("drawings", "held_out"))
    return Corpus(coloured, shapes, icons, held_out, kept_back, manifest)
