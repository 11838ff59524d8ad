"""Base models that this user has chosen on this machine, which an adapter file may name without a question.

open_clip's tags and the bundled model are as safe as the installed packages. A folder, a hub repository or a weights
file is what somebody else may have made, so one that only an adapter file names is loaded when the user says so, and
from then on. What was said is kept in the user's own cache folder: nothing inside an adapter's folder can forge it.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import open_clip

from rmadapter.clip.identity import ModelSource
from rmadapter.clip.names import HUB, LOCAL, RANDOM
from rmadapter.errors import InputError
from rmadapter.files import cache_folder, write_text


def check_known(source: ModelSource, named_by: str) -> None:
    """Raise InputError unless ``source``, which only ``named_by`` names, may be loaded without the user's word."""
    base = _foreign(source)
    if base is not None and not _is_kept(base):
        raise InputError(
            f"{named_by} names the base model {str(source)!r}, which was not chosen on this machine before; others may "
            "have made it. Valid: --trust-base to load it, now and from now on, or --model (and --pretrained) with the "
            "base model to load"
        )


def remember(source: ModelSource) -> None:
    """Keep that the user has chosen ``source``; where the cache cannot be written, nothing is kept."""
    base = _foreign(source)
    if base is not None and not _is_kept(base):
        with contextlib.suppress(InputError):
            write_text(_record(base), base)


def _is_kept(base: str) -> bool:
    """Whether the user has said it before; not for a user without a home folder, who says it each time."""
    with contextlib.suppress(InputError, OSError):
        return _record(base).is_file()
    return False


def _record(base: str) -> Path:
    return cache_folder(None, "bases") / hashlib.sha256(base.encode(errors="surrogateescape")).hexdigest()[:32]


def _foreign(source: ModelSource) -> str | None:
    """What is to be trusted of ``source``, with whole paths; None for what comes with open_clip or this package."""
    if source.name.startswith(HUB):
        return source.name
    if source.name.startswith(LOCAL):
        return LOCAL + str(Path(source.name.removeprefix(LOCAL)).resolve())
    if source.pretrained in (None, RANDOM):
        return None
    if source.pretrained in open_clip.list_pretrained_tags_by_model(source.name.replace("/", "-")):
        return None
    return f"{source.name} {Path(source.pretrained).resolve()}"
