"""Options that name files and folders: the types that tell them, and what a leading ``~`` in them becomes.

A shell expands ``~`` before a bare word alone: ``--out ~/x`` comes as a path, ``--out=~/x``, ``local-dir:~/x`` and a
line of YAML do not. ``expanded`` is the one place where it is done; the commands' dataclasses only say which of their
fields are paths.
"""

from __future__ import annotations

import functools
import os
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from rmadapter.errors import InputError


@dataclass(frozen=True)
class PathForm:
    """How paths stand in an option's text: ``parts`` expands those in it by the function that it is given."""

    parts: Callable[[str, Callable[[str], str]], str]


def _model_parts(text: str, expand: Callable[[str], str]) -> str:
    scheme, colon, folder = text.partition(":")
    return f"{scheme}:{expand(folder)}" if colon and scheme == "local-dir" else text


def _list_parts(text: str, expand: Callable[[str], str]) -> str:
    if not text.strip():
        return expand(text)
    return ",".join(expand(part.strip()) if part.strip() else part for part in text.split(","))


# A file or folder, or a name in its place (of a data set, of a tag).
PathText = Annotated[str, PathForm(lambda text, expand: expand(text))]
# Several of them between commas.
PathList = Annotated[str, PathForm(_list_parts)]
# open_clip's name of a model, which may hold a folder: local-dir:FOLDER.
ModelText = Annotated[str, PathForm(_model_parts)]


@functools.cache
def path_fields(config: type) -> Mapping[str, PathForm]:
    """Name -> form of every field of the dataclass ``config`` itself that is a path, or a list of paths."""
    hints = typing.get_type_hints(config, include_extras=True)
    found = {name: next(_forms(kind), None) for name, kind in hints.items()}
    return {name: form for name, form in found.items() if form is not None}


def _forms(kind: Any) -> typing.Iterator[PathForm]:
    if typing.get_origin(kind) is Annotated:
        yield from (extra for extra in kind.__metadata__ if isinstance(extra, PathForm))
    else:
        for part in typing.get_args(kind):
            yield from _forms(part)


def expanded(name: str, value: str | list[str], form: PathForm) -> str | list[str]:
    """``value`` of the option ``name`` with the home folder in place of each leading ``~`` or ``~user``.

    Raises:
        InputError: an empty path, a user who is not known here, what no file can be called.
    """
    if isinstance(value, list):
        return [form.parts(part, lambda path: expand(path, name)) for part in value]
    return form.parts(value, lambda path: expand(path, name))


def expand(path: str, name: str = "path") -> str:
    """``path`` with the home folder in place of a leading ``~`` or ``~user``; ``name`` is what messages call it.

    Raises:
        InputError: see ``expanded``.
    """
    if not path.strip():
        raise InputError(f"{name} is {path!r}; valid: a path, or no {name} at all")
    try:
        writable = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        writable = False
    if not writable:
        raise InputError(f"{name} is {path!r}, which no file can be called; valid: a path without such characters")
    full = os.path.expanduser(path)
    if full.startswith("~"):
        user = path.partition("/")[0]
        raise InputError(
            f"{name} is {path!r}, and there is no home folder {user}; valid: another path, ./{path} for a folder that "
            "is called so"
        )
    return full
