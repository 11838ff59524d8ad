"""Which images a command is to read: files, folders, patterns, and lists of paths from a file or standard input."""

from __future__ import annotations

import codecs
import glob
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rmadapter.data.image_files import describe_left_out, is_hidden, is_image_name, list_images
from rmadapter.data.splits import OWN_FILE
from rmadapter.errors import InputError
from rmadapter.files import read_bytes

STANDARD_INPUT = "-"
IMAGE_FORMS = "valid: an image, a folder, a pattern such as 'photos/**/*.jpg' in quotes, or --images-from FILE"


def named_images(words: Sequence[str], images_from: str | None = None) -> list[str]:
    """Paths of all images that ``words`` and the list ``images_from`` name, in their order, each one once as it is
    spelt first.

    A word is a file, taken whatever it is called; a folder, of which all images are taken, those of its folders too,
    sorted; or a pattern with ``*``, ``?``, ``[...]`` or ``**``. ``images_from`` is a text file with one path a line, or
    "-" for standard input; whether those files are there is found when they are read.

    Raises:
        InputError: a word that is nothing of these; a folder, a pattern or a list without images; a list that cannot be
            read.
    """
    found = [path for word in words for path in _of_word(word)]
    if images_from is not None:
        found += _listed(images_from)
    if not found:
        raise InputError(f"images_from {images_from} names no image; valid: one path a line")
    first: dict[str, str] = {}
    for path in found:
        first.setdefault(_place(path), path)
    return list(first.values())


def _place(path: str) -> str:
    """One text for all ways to spell ``path``."""
    if f"{os.sep}.." in path:  # behind a link it leads elsewhere than the text says
        path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    return os.path.abspath(path)


def _of_word(word: str) -> Iterable[str]:
    path = Path(word)
    if path.is_file():
        return [word]
    if path.is_dir():
        return _in_folder(word)
    if glob.has_magic(word):
        return _matching(word)
    wrong = "it is no regular file" if path.exists() else "there is no such file"
    raise InputError(f"image {word} cannot be read: {wrong}; {IMAGE_FORMS}")


def _in_folder(folder: str) -> list[str]:
    listing = list_images(Path(folder))
    if not listing.images:
        results = ", but results of this package, which are left out" if listing.outputs else ""
        raise InputError(f"folder {folder} has no images{results}; {IMAGE_FORMS}")
    # A split file that training put beside the images is no file of the user's to speak of.
    left_out = [name for name in listing.left_out if os.path.basename(name) != OWN_FILE]
    if left_out:
        warnings.warn(describe_left_out(Path(folder), left_out), stacklevel=4)
    return [os.path.join(folder, name) for name in listing.images]


def _matching(pattern: str) -> list[str]:
    """Files that ``pattern`` finds and that are images by their names, and the images of folders that it finds."""
    matches = [path for path in sorted(glob.glob(pattern, recursive=True)) if not is_hidden(os.path.basename(path))]
    found = list(_images_among(matches))
    if not found:
        what = f"{len(matches)} files and folders, but no images" if matches else "nothing"
        raise InputError(f"pattern {pattern!r} finds {what}; {IMAGE_FORMS}")
    return found


def _images_among(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        if os.path.isdir(path):
            yield from (os.path.join(path, name) for name in list_images(Path(path)).images)
        elif is_image_name(path):
            yield path


def _listed(images_from: str) -> list[str]:
    """The lines of a list; of one with NUL bytes, as ``find -print0`` writes it, what stands between those."""
    if images_from == STANDARD_INPUT:
        content = sys.stdin.buffer.read()
    else:
        content = read_bytes(Path(images_from), "images_from")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            text = content.decode("utf-16")
        except UnicodeDecodeError as error:
            raise InputError(f"images_from {images_from} cannot be read: it is no UTF-16; valid: UTF-8") from error
    else:
        text = os.fsdecode(content.removeprefix(codecs.BOM_UTF8))  # names of files need not be text
    if "\0" in text:
        return [path for path in text.split("\0") if path]
    return [line for line in text.replace("\r\n", "\n").split("\n") if line.strip()]
