"""``--image-cache``: decoded images kept on disk, so that a file is decoded once and not at every epoch.

    CACHE/images/HASH.npy    uint8 [height, width, 3], mapped into memory where it is read

HASH is that of the file's absolute path, size and time of change, and of the rules by which files are read, so that a
changed file is another one. What comes out is what ``read_image`` gives, bit by bit, whatever the transform after it.
One thread, least of 200: a JPEG file of 1200 x 800 takes 3.3 ms to decode and 0.6 to read from here, one of 500 x 375
0.75 and 0.3; what comes after it, crop and flip, 1.0 to 1.7. So it pays for large files, where a GPU waits for them.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from rmadapter.data.cache_room import CacheRoom
from rmadapter.data.reading import RULES
from rmadapter.errors import InputError
from rmadapter.files import write_atomic

HEADER = 128  # bytes that numpy puts before the pixels


class DecodedImages:
    """Reads images by path below ``root``, from the cache where they are in it.

    Where the cache cannot be written any more (the disk is full), a warning says so once and images are decoded.

    Args:
        read: path -> image, which decodes.
        root: folder that paths are relative to.
        folder: of the cache; made where it is missing.
        limit: bytes that the cache may hold, together with what other processes write there. Images that no process has
            begun to read since this one began are deleted for new ones, the longest unused first; where none are left,
            further images are decoded each time.

    Attributes:
        full: whether an image was left out for ``limit``.

    Raises:
        InputError: ``folder`` cannot be made or written.
    """

    def __init__(self, read: Callable[[str], Image.Image], root: Path, folder: Path, limit: int):
        self.decode, self.root, self.folder = read, root.absolute(), folder
        self._keeps, self._process = True, os.getpid()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._room: CacheRoom | None = CacheRoom(folder, limit)
        except OSError as error:
            raise InputError(
                f"cache_dir: images cannot be kept in {folder}: {error.strerror or error}; valid: a folder that can be "
                "written"
            ) from error
        self.full = False

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_keeps": False, "_room": None}

    @property
    def keeps(self) -> bool:
        """Whether what is decoded is kept: not in a worker, whether it was forked or got this object pickled."""
        return self._keeps and self._process == os.getpid()

    @keeps.setter
    def keeps(self, value: bool) -> None:
        self._keeps = value

    @property
    def kept(self) -> int:
        """Images of this run that are in the cache."""
        return len(self._room.own) if self._room else 0

    @property
    def bytes(self) -> int:
        """Size of the whole cache."""
        return self._room.bytes if self._room else 0

    def __call__(self, path: str) -> Image.Image:
        """The image of ``path`` as ``read`` gives it; InputError as that raises it."""
        file = self._file(path)
        if file is None:
            return self.decode(path)
        found = _read(file)
        if found is not None:
            if self.keeps and self._room:
                self._room.use(file)
            return found
        image = self.decode(path)
        if self.keeps and self._room:
            self._keep(self._room, file, np.asarray(image))
        return image

    def _file(self, path: str) -> Path | None:
        """Where the image of ``path`` is kept; None where there is no such file."""
        source = self.root / path
        try:
            state = source.stat()
        except OSError:
            return None
        key = os.fsencode(f"{source}\0{state.st_size}\0{state.st_mtime_ns}\0{RULES}")
        return self.folder / f"{hashlib.sha256(key).hexdigest()[:32]}.npy"

    def _keep(self, room: CacheRoom, file: Path, pixels: np.ndarray) -> None:
        size = pixels.nbytes + HEADER
        taken = False

        def write(temporary: Path) -> None:
            nonlocal taken
            taken = room.take(temporary, size, file)
            if not taken:
                raise _NotKept
            with temporary.open("r+b") as open_file:
                np.save(open_file, pixels, allow_pickle=False)
            if file.exists():  # another process was faster
                raise _NotKept

        try:
            write_atomic(file, write)
            room.own.add(file)
            return
        except _NotKept:
            if taken:
                room.use(file)
            else:
                self.full = True
        except (InputError, OSError) as error:
            if self._keeps:
                self._keeps = False
                warnings.warn(f"image cache: what is decoded is not kept any more: {error}", stacklevel=2)
        if taken:
            room.give_back(size)


class _NotKept(Exception):
    """There is no room for an image, or no need for it."""


def _read(file: Path) -> Image.Image | None:
    """The image in ``file``; None where there is none, or it is torn or of another kind."""
    try:
        pixels = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception:  # whatever numpy makes of a damaged header: ValueError, TokenError, BadZipFile, ...
        return None
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        return None
    return Image.fromarray(pixels)
