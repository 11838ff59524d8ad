"""Which files are images, and what is found in a folder and left out of it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image

from rmadapter.config import RUN_CONFIG_FILE
from rmadapter.errors import InputError

# What Pillow decodes itself. Not EPS, for which it starts another program on the file; not what it only identifies
# (GRIB, HDF5, MPEG, ...), and not what is no picture of its own (WMF). The last ones are told by no signature.
FORMATS = (
    *("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "ICNS", "CUR", "DIB"),
    *("QOI", "PSD", "DDS", "BLP", "FTEX", "SGI", "SUN", "FITS", "FLI", "GBR", "XBM", "XPM", "MSP", "DCX"),
    *("PIXAR", "PCX", "TGA"),
)
# Folders that operating systems, network storage and Python put beside what is a user's.
JUNK_FOLDERS = {
    *("__macosx", "@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "system volume information"),
    *("lost+found", "__pycache__"),
}
JUNK_FILES = {"thumbs.db", "desktop.ini"}
# A folder with one of these sets of files in it holds what a command of this package has written.
REPORT = {"report.md", "report.csv"}
OUTPUTS = (
    {RUN_CONFIG_FILE, "environment.json"},
    {"results.json"},
    {"run.json"},
    {"results.jsonl"},
    {"adapter_config.json"},
    {"sweep.json"},
    {"search.json"},
)


@cache
def endings() -> tuple[str, ...]:
    """How the names of images end, in small letters, sorted: what the installed Pillow knows of ``FORMATS``."""
    Image.init()
    return tuple(sorted(ending for ending, format in Image.registered_extensions().items() if format in FORMATS))


def is_image_name(name: str) -> bool:
    """Whether a file called ``name`` is taken for an image."""
    return name.lower().endswith(endings())


def is_hidden(name: str) -> bool:
    """Whether a folder called ``name`` is none of the user's: hidden, or a system's own."""
    return name.startswith(".") or name.lower() in JUNK_FOLDERS


def no_images(folder: Path, left_out: Sequence[str] = ()) -> InputError:
    """What to raise where the class folder ``folder`` has no images, but maybe ``left_out``, other files."""
    others = f", but {_kinds(left_out)}" if left_out else ""
    return InputError(
        f"class folder {folder} has no images{others}; valid endings: .jpg .png .webp .gif .tif .bmp and others that "
        "Pillow decodes"
    )


@dataclass
class Listing:
    """What is in a folder and below it; all paths are relative to the root of the listing, in posix form.

    Attributes:
        images: sorted; links are followed.
        own: how many of them lie in the folder itself, and not in one of its folders.
        left_out: other files, and folders that are called like an image, which are not looked into; nothing hidden.
        outputs: folders that a command of this package has written, which are not looked into.
    """

    images: list[str] = field(default_factory=list)
    own: int = 0
    left_out: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


def scan(folder: Path | str) -> list[os.DirEntry]:
    """What is in ``folder``, sorted by name, without what is hidden and what an operating system has put there.

    Raises:
        InputError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"folder {folder} cannot be read: {error.strerror or error}") from error
    return [entry for entry in found if not is_hidden(entry.name) and entry.name.lower() not in JUNK_FILES]


def folders_in(folder: Path) -> list[str]:
    """Names of the folders in ``folder``, sorted; neither hidden ones nor those called like an image."""
    return [entry.name for entry in scan(folder) if is_folder(entry) and not is_image_name(entry.name)]


def list_images(root: Path, name: str = "") -> Listing:
    """The images of the folder ``name`` of ``root`` and of all folders below it.

    Raises:
        InputError: a folder that cannot be read.
    """
    found = Listing()
    left, entered = [name], set[str]()
    while left:
        where = left.pop()
        entries = scan(root / where)
        if _is_output({entry.name for entry in entries}):
            found.outputs.append(where)
            continue
        for entry in entries:
            path = f"{where}/{entry.name}" if where else entry.name
            if is_folder(entry):
                if is_image_name(entry.name):
                    found.left_out.append(f"{path}/")
                elif not entry.is_symlink() or _is_new(entry.path, entered):
                    left.append(path)
            # A pipe or a device is no image. A link that leads nowhere is one, which cannot be read.
            elif is_image_name(entry.name) and (entry.is_symlink() or entry.is_file()):
                found.images.append(path)
                found.own += where == name
            else:
                found.left_out.append(path)
    found.images.sort()
    return found


def is_folder(entry: os.DirEntry) -> bool:
    """Whether it is a folder, or a link that leads to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself, or to where nobody may look
        return False


def _is_new(link: str, entered: set[str]) -> bool:
    """Whether ``link`` leads neither to a folder that it is in itself nor to one that a link has led to before."""
    target, home = Path(link).resolve(), Path(link).parent.resolve()
    if str(target) in entered or target == home or target in home.parents:
        return False
    entered.add(str(target))
    return True


def is_output(folder: Path) -> bool:
    """Whether a command of this package has written what is in ``folder``."""
    marks = {mark for mark in REPORT.union(*OUTPUTS) if (folder / mark).is_file()}
    return bool(marks) and _is_output({entry.name for entry in scan(folder)})


def _is_output(names: set[str]) -> bool:
    """Whether a folder of these files is what a command has written; images lie directly in none but a report's."""
    return names >= REPORT or (any(names >= marks for marks in OUTPUTS) and not any(map(is_image_name, names)))


def describe_left_out(root: Path, paths: Sequence[str]) -> str:
    """A sentence on ``paths``, one or more, that are no images by their names; folders end in a slash."""
    return f"{root}: left out what is no image by its name: {_kinds(paths)}, such as {min(paths)}"


def _kinds(paths: Sequence[str]) -> str:
    """How many of ``paths`` have which ending, the most frequent five."""
    kinds = ("folders" if path.endswith("/") else Path(path).suffix.lower() or "without ending" for path in paths)
    counts = Counter(kinds)
    more = f" and {len(counts) - 5} other endings" if len(counts) > 5 else ""
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common(5)) + more
