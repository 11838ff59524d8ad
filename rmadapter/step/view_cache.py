"""``--views N``: N augmented views an image, and what the frozen model makes of each, kept on disk.

    CACHE/KEY/key.json           what the records depend on; KEY is its hash
    CACHE/KEY/view-000.records   one record an image: adapter input, block output, frozen features, one after the other
    CACHE/KEY/view-000.index     one 64-bit number an image: 0 for no record, else 2^32 + CRC-32 of the record

A record is written first and its number after it, so a kill in between leaves no record, and a torn one does not fit
its number: both are computed again. Whatever changes a record changes the key.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from rmadapter.config import TrainConfig
from rmadapter.config.sizes import parse_bytes, shown_bytes
from rmadapter.data.reading import RULES
from rmadapter.errors import InputError
from rmadapter.files import cache_folder, clear_temporaries, reserve, write_json
from rmadapter.locks import NO_LOCKS
from rmadapter.step.distributed import Ranks
from rmadapter.step.train_step import TrainStep, Views
from rmadapter.tuners.encoder import Entry

FORMAT = 2
WRITTEN = 1 << 32


@dataclass(frozen=True)
class Record:
    """Shapes and dtypes of what is kept of one image; ``target`` is [] without frozen features."""

    adapter_input: tuple[int, ...]
    output: tuple[int, ...]
    target: tuple[int, ...]
    dtype: torch.dtype
    stream: torch.dtype

    @classmethod
    def of(cls, views: Views) -> Record:
        """The layout of the records of ``views``."""
        entry, target = views
        shape = () if target is None else tuple(target.shape[1:])
        return cls(
            tuple(entry.adapter_input.shape[1:]),
            tuple(entry.output.shape[1:]),
            shape,
            entry.adapter_input.dtype,
            entry.output.dtype,
        )

    @property
    def parts(self) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each part, in the order in which they lie."""
        found = [(self.adapter_input, self.dtype), (self.output, self.stream)]
        return [*found, (self.target, self.dtype)] if self.target else found

    @property
    def bytes(self) -> int:
        """Size of a record."""
        return sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in self.parts)

    def pack(self, views: Views, row: int) -> np.ndarray:
        """One row of ``views``, which are on the CPU, as bytes."""
        tensors = list(views.entry)
        if self.target:
            assert views.target is not None  # the record was laid out for it
            tensors.append(views.target)
        pieces = [t[row].detach().contiguous().view(-1).view(torch.uint8).numpy() for t in tensors]
        return np.concatenate(pieces)

    def unpack(self, rows: np.ndarray) -> Views:
        """``views`` of records [n, bytes]."""
        tensors, start = [], 0
        for shape, dtype in self.parts:
            stop = start + int(np.prod(shape)) * dtype.itemsize
            piece = torch.from_numpy(np.ascontiguousarray(rows[:, start:stop]))
            tensors.append(piece.view(dtype).view(len(rows), *shape))
            start = stop
        return Views(Entry(tensors[0], tensors[1]), tensors[2] if self.target else None)


class ViewCache:
    """The records of one run's images.

    Args:
        folder: CACHE; made where it is missing.
        key: everything that a record depends on, as plain values.
        record: their layout.
        images, views: how many there are.
        limit: bytes that CACHE may hold. As many views are kept as that has room for. Caches of other keys that no run
            has open are deleted for them, the longest unused first.

    Attributes:
        views: how many are kept; 0 where not one fits.

    Raises:
        InputError: the folder cannot be written, the disk is full, or what other runs have open leaves no room: fewer
            views would be another training, and which would hang on what else is running.
    """

    def __init__(self, folder: Path, key: dict[str, Any], record: Record, images: int, views: int, limit: int):
        own = {"format": FORMAT, "record_bytes": record.bytes, "count": images}
        assert not own.keys() & key.keys(), "one fact would hide another"
        text = json.dumps({**key, **own}, sort_keys=True)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:32]
        self.record, self.images = record, images
        self._maps: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        view_bytes = images * (record.bytes + 8)
        self.views = min(views, limit // view_bytes)
        if self.views == 0:
            return
        needed = self.views * view_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "lock").open("a") as gate:  # one run at a time opens, counts and takes
                fcntl.flock(gate, fcntl.LOCK_EX)
                self._open_folder(json.loads(text), limit, needed)
        except OSError as error:
            if error.errno in NO_LOCKS:
                raise InputError(
                    f"cache_dir {folder} is on a file system without locks, which keep runs apart in it; valid: "
                    "--cache-dir with a folder on a disk of this machine"
                ) from error
            raise InputError(
                f"cache_dir {folder} cannot hold {shown_bytes(needed)} of views: {error.strerror or error}; valid: a "
                "folder on a disk with room (--cache-dir; this alone with --resume), fewer --views, or a smaller "
                "--cache-limit"
            ) from error

    def _open_folder(self, key: dict[str, Any], limit: int, needed: int) -> None:
        """Make room, and the files that are not there or were not finished; what a kill has left goes."""
        self.folder.mkdir(exist_ok=True)
        self._lock = (self.folder / "lock").open("a")
        alone = _locked(self._lock)
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        os.utime(self.folder)
        clear_temporaries(self.folder)
        wanted = {self._path(view, kind) for view in range(self.views) for kind in ("records", "index")}
        unused = [path for path in self.folder.glob("view-*") if path not in wanted]
        _make_room(self.folder, limit, needed, unused, alone)
        if not (self.folder / "key.json").exists():
            write_json(self.folder / "key.json", key)
        made: list[Path] = []
        try:
            for view in range(self.views):
                for kind, width in (("records", self.record.bytes), ("index", 8)):
                    path, size = self._path(view, kind), self.images * width
                    if not path.exists() or path.stat().st_size != size:  # another size: left by a kill
                        made.append(path)
                        with path.open("wb") as file:
                            # Mapped without its place on the disk, it would end the process where that is full.
                            reserve(file, size)
        except OSError:
            for path in made:
                path.unlink(missing_ok=True)
            raise

    def __getstate__(self) -> dict[str, Any]:
        # A worker opens the files itself; the parent's lock stands for it.
        return {**self.__dict__, "_maps": {}, "_lock": None}

    def _path(self, view: int, kind: str) -> Path:
        return self.folder / f"view-{view:03}.{kind}"

    def _open(self, view: int) -> tuple[np.ndarray, np.ndarray]:
        """Records [images, bytes] and numbers [images] of one view, mapped into memory."""
        if view not in self._maps:
            shape = (self.images, self.record.bytes)
            self._maps[view] = (
                np.memmap(self._path(view, "records"), np.uint8, "r+", shape=shape),
                np.memmap(self._path(view, "index"), np.uint64, "r+", shape=(self.images,)),
            )
        return self._maps[view]

    def read(self, view: int, images: Sequence[int]) -> Views | None:
        """The records of ``images`` by their number, or None where one of them is missing or torn."""
        records, index = self._open(view)
        if not all(index[image] for image in images):
            return None
        rows = records[list(images)]
        if any(WRITTEN + zlib.crc32(row) != int(index[image]) for row, image in zip(rows, images, strict=True)):
            return None
        return self.record.unpack(rows)

    def write(self, view: int, images: Sequence[int], views: Views) -> None:
        """Keep the rows of ``views`` as the records of ``images``."""
        records, index = self._open(view)
        target = None if views.target is None else views.target.cpu()
        views = Views(Entry(*(tensor.cpu() for tensor in views.entry)), target)  # in one piece, not row by row
        for row, image in enumerate(images):
            packed = self.record.pack(views, row)
            index[image] = 0
            records[image] = packed
            index[image] = WRITTEN + zlib.crc32(packed.data)


def _locked(file: IO[str]) -> bool:
    """Whether ``file`` is now locked for this process alone, as it can be where no other has it open."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _make_room(own: Path, limit: int, needed: int, unused: list[Path], alone: bool) -> None:
    """Delete until ``needed`` bytes fit too: ``unused`` files of ``own``, if this run has it ``alone``, then caches
    beside it that nobody has open, the longest unused first.
    """
    cache = own.parent
    others = sorted(
        (path for path in cache.iterdir() if path != own and path.is_dir()), key=lambda p: p.stat().st_mtime
    )
    sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in others}
    sizes |= {path: path.stat().st_size for path in unused}
    for path in [*unused, *others]:
        if sum(sizes.values()) + needed <= limit:
            return
        if path in unused:
            if alone:
                path.unlink()
                del sizes[path]
            continue
        with (path / "lock").open("a") as lock:
            if _locked(lock):
                shutil.rmtree(path)
                del sizes[path]
    if sum(sizes.values()) + needed > limit:
        raise InputError(
            f"cache_limit is {shown_bytes(limit)}, but other runs have {shown_bytes(sum(sizes.values()))} of views "
            f"open in {cache} and this one needs {shown_bytes(needed)}; valid: another --cache-dir, or after those "
            "have ended (these two with --resume), a larger --cache-limit, or fewer --views"
        )


def cache_key(step: TrainStep, base_hash: str, transform: object, contents: Iterable[bytes], seed: int) -> dict:
    """What a record depends on: base model, precision, layer, transform, seed, and the images byte by byte."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(hashlib.sha256(content).digest())
    return {
        "base": base_hash,
        "dtype": str(step.image.dtype),
        "stream": str(step.image.stream),
        "first": step.image.first,
        "pre_ln": step.image.pre_ln,
        "by_token": step.image.by_token,
        "targets": "second view" if step.model.loss.reads_two_views else step.keeps_target,
        "transform": repr(transform),
        "seed": seed,
        "images": digest.hexdigest(),
        "reading": RULES,
    }


def open_cache(step: TrainStep, config: TrainConfig, images: int, key: dict, ranks: Ranks) -> ViewCache:
    """The cache of a run over so many ``images``, made by its main process; prints how much of it fits.

    Raises:
        InputError: as ``ViewCache``; also where not even one view fits in ``cache_limit``.
    """
    folder = cache_folder(config.cache_dir, "views")
    size = step.model.clip.visual.image_size[0]
    device = step.model.prompts.tokens.device
    views = (2,) if step.model.loss.reads_two_views else ()
    record = Record.of(step.views(torch.zeros(1, *views, 3, size, size, device=device)))
    limit = parse_bytes("cache_limit", config.cache_limit)
    if not ranks.main:
        ranks.barrier()
    cache = ViewCache(folder, key, record, images, config.views, limit)
    if ranks.main:
        ranks.barrier()
    one = images * record.bytes
    if not cache.views:
        raise InputError(
            f"cache_limit is {config.cache_limit!r}, but one view of {images} images takes {shown_bytes(one)}; "
            "valid: that much or more, or --views 0"
        )
    fewer = f", all that --cache-limit {config.cache_limit} has room for" if cache.views < config.views else ""
    print(f"views: {cache.views} an image{fewer}, {shown_bytes(cache.views * one)} in {cache.folder}")
    return cache
