"""``--image-cache``: decoded images kept on disk, so that a file is decoded once and not at every epoch.

    CACHE/images/HASH.npy    uint8 [height, width, 3], mapped into memory where it is read

HASH is that of the file's absolute path, size and time of change, so that a changed file is another one. What comes out
is what ``read_image`` gives, bit by bit, whatever the transform after it. One thread, least of 200: a JPEG file of
1200 x 800 takes 3.3 ms to decode and 0.6 to read from here, one of 500 x 375 0.75 and 0.3; what comes after it, crop
and flip, 1.0 to 1.7. So it pays for large files, where a GPU waits for them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from rmadapter.errors import InputError
from rmadapter.files import write_atomic

HEADER = 128  # bytes that numpy puts before the pixels


class DecodedImages:
    """Reads images by path below ``root``, from the cache where they are in it.

    Args:
        read: path -> image, which decodes.
        root: folder that paths are relative to.
        folder: of the cache; made where it is missing.
        limit: bytes that the cache may hold. Images that this run has not read are deleted for new ones, the longest
            unused first; where all of it is this run's, further images are decoded each time.

    Attributes:
        bytes: size of the whole cache.
        full: whether an image was left out for ``limit``.
    """

    def __init__(self, read: Callable[[str], Image.Image], root: Path, folder: Path, limit: int):
        self.decode, self.root, self.folder, self.limit = read, root.absolute(), folder, limit
        self._keeps, self._process = True, os.getpid()
        self._lock = threading.Lock()  # images are checked in threads
        try:
            folder.mkdir(parents=True, exist_ok=True)
            files = [(path, path.stat()) for path in folder.glob("*.npy")]
        except OSError as error:
            raise InputError(
                f"cache_dir: images cannot be kept in {folder}: {error.strerror}; valid: a folder that can be written"
            ) from error
        # The longest unused at the end. What this run reads is taken out, and so never deleted by it.
        self._old = {p: s.st_size for p, s in sorted(files, key=lambda file: -file[1].st_mtime)}
        self.bytes = sum(self._old.values())
        self._own: set[Path] = set()
        self.full = False

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_keeps": False, "_old": {}, "_own": set(), "_lock": None}

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
        return len(self._own)

    def __call__(self, path: str) -> Image.Image:
        """The image of ``path`` as ``read`` gives it; InputError as that raises it."""
        file = self._file(path)
        if file is None:
            return self.decode(path)
        with contextlib.suppress(OSError, ValueError, EOFError):  # missing, or torn
            found = Image.fromarray(np.load(file, mmap_mode="r", allow_pickle=False))
            if self.keeps:
                self._use(file)
            return found
        image = self.decode(path)
        if self.keeps:
            self._keep(file, np.asarray(image))
        return image

    def _file(self, path: str) -> Path | None:
        """Where the image of ``path`` is kept; None where there is no such file."""
        source = self.root / path
        try:
            state = source.stat()
        except OSError:
            return None
        key = f"{source}\0{state.st_size}\0{state.st_mtime_ns}"
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"

    def _use(self, file: Path) -> None:
        """What this run reads is deleted by it no more."""
        with self._lock:
            if file not in self._own:
                self._own.add(file)
                self._old.pop(file, None)
                file.touch()

    def _make_room(self, file: Path, size: int) -> bool:
        """Whether ``size`` bytes more may lie in the cache, older images deleted for them; then they are counted."""
        with self._lock:
            self.bytes -= self._old.pop(file, 0)
            while self.bytes + size > self.limit and self._old:
                other, freed = self._old.popitem()
                other.unlink(missing_ok=True)
                self.bytes -= freed
            if self.bytes + size > self.limit:
                self.full = True
                return False
            self.bytes += size
            self._own.add(file)
            return True

    def _keep(self, file: Path, pixels: np.ndarray) -> None:
        if not self._make_room(file, pixels.nbytes + HEADER):
            return

        def write(temporary: Path) -> None:
            with temporary.open("wb") as open_file:
                np.save(open_file, pixels, allow_pickle=False)

        write_atomic(file, write)
