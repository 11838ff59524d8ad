"""``classnames.txt``: what the classes of a folder of images are called.

One ``folder name<TAB>class name`` a line; a blank in place of the TAB where the folder's name has none. A line ``#`` or
``# ...`` is a comment. Below the line ``# one name a line`` each line is a class name alone, in the order of the sorted
folders.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from rmadapter.errors import InputError, nearest
from rmadapter.files import read_text

CLASS_NAMES_FILE = "classnames.txt"
IN_ORDER = "# one name a line"
FORM = "'folder name<TAB>class name' a line"


def class_names(root: Path, folders: Sequence[str]) -> dict[str, str]:
    """Class folder -> class name: from ``classnames.txt`` in ``root``, else its own with spaces for underscores.

    Raises:
        InputError: a folder that is not named or named twice, a line whose folder is not there or that has no class
            name, another number of lines than folders below ``# one name a line``; a name that is empty or no text.
    """
    path = root / CLASS_NAMES_FILE
    if path.is_file():
        names = _named(path, folders)
    else:
        names = {folder: folder.replace("_", " ") for folder in folders}
    for folder, name in names.items():
        check_class_name(f"class folder {str(root / folder)!r}", name)
    return names


def check_class_name(where: str, name: str) -> None:
    """Raise InputError unless ``name`` can stand in a prompt; ``where`` begins the message."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: the class name {name!r} is not UTF-8; valid: a folder or file with another"
        ) from error
    if not name.strip():
        raise InputError(f"{where}: the class name is {name!r}; valid: a text that is not empty")


def read_lines(path: Path, what: str) -> list[tuple[int, str]]:
    """Number and text of each line of a text file, without blanks around it, empty lines and comments (``# ...``).

    Raises:
        InputError: what ``files.read_text`` raises.
    """
    return _text_lines(read_text(path, what))


def _text_lines(text: str) -> list[tuple[int, str]]:
    lines = enumerate((line.strip() for line in text.split("\n")), start=1)
    return [(number, line) for number, line in lines if line and not _is_comment(line)]


def by_number(names: Iterable[str]) -> list[str]:
    """Sorted as a reader expects it: "2" before "10"."""

    def key(name: str) -> list[tuple[bool, int, str]]:
        parts = re.split("([0-9]+)", name)
        return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts if part]

    return sorted(names, key=key)


def some(names: Iterable[str]) -> str:
    """The first few of ``names`` for a message, numbers in their order."""
    ordered = by_number(names)
    return ", ".join(map(repr, ordered[:5])) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "")


def _is_comment(line: str) -> bool:
    return line == "#" or line.startswith("# ")


def _named(path: Path, folders: Sequence[str]) -> dict[str, str]:
    text = read_text(path, "class names file")
    lines = _text_lines(text)
    if not lines:
        raise InputError(f"{path} names no class; valid: {FORM}, or no such file")
    if " ".join(text.strip().partition("\n")[0].lower().split()) == IN_ORDER:
        return _in_order(path, [line for _, line in lines], folders)
    known = {_composed(folder): folder for folder in folders}
    found: dict[str, tuple[int, str]] = {}
    for number, line in lines:
        tab = "\t" in line
        folder, *name = (word.strip() for word in (line.split("\t", 1) if tab else line.split(maxsplit=1)))
        if not name or not name[0]:
            raise InputError(
                f"{path}, line {number}: {line!r} has no class name; valid: {FORM}, or {IN_ORDER!r} as the first line"
            )
        if _composed(folder) not in known:
            blanks = [other for other in folders if " " in other and line.startswith(f"{other} ")]
            hint = f"; a TAB must stand behind {blanks[0]!r}" if blanks and not tab else nearest(folder, folders)
            raise InputError(f"{path}, line {number}: there is no class folder {folder!r}{hint}; valid: {FORM}")
        folder = known[_composed(folder)]
        if folder in found:
            raise InputError(f"{path} names class folder {folder!r} twice, in lines {found[folder][0]} and {number}")
        found[folder] = number, name[0]
    if missing := set(folders) - set(found):
        raise InputError(f"{path} has no line for {len(missing)} class folders: {some(missing)}; valid: {FORM}")
    return {folder: found[folder][1] for folder in folders}


def _in_order(path: Path, names: Sequence[str], folders: Sequence[str]) -> dict[str, str]:
    if len(names) != len(folders):
        raise InputError(
            f"{path} has {len(names)} names for {len(folders)} class folders; valid: one for each, or {FORM}"
        )
    if list(folders) != by_number(folders):
        # Whoever wrote the names has counted the folders, and classes are in the order of their names as text.
        raise InputError(
            f"{path} has one name a line, but the class folders are numbers, whose order as text is another "
            f"({', '.join(folders[:4])}, ...); valid: {FORM}"
        )
    return dict(zip(folders, names, strict=True))


def _composed(name: str) -> str:
    """One form of letters with accents: a Mac stores them taken apart, and editors write them in one."""
    return unicodedata.normalize("NFC", name)
