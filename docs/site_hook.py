"""Takes files of the repository that a page links to into the site, so that mkdocs checks and keeps these links.

A page links to ``../bench/results/step.md`` as it lies in the repository; in the site that file is
``repository/bench/results/step.md``. A link to a file that is not there is left as it is, and mkdocs reports it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
DOCUMENTS = "docs/"
COPIES = "repository/"
# The target of ](target#anchor), but no address with a scheme and no anchor alone.
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")


def targets(path: str) -> list[str]:
    """The files that the page at ``path`` links to; all paths are relative to the repository."""
    found = LINK.findall((ROOT / path).read_text(encoding="utf-8"))
    return [os.path.normpath(os.path.join(os.path.dirname(path), target)) for target in found]


def place(path: str) -> str:
    """Where the repository's file ``path`` is in the site."""
    return path.removeprefix(DOCUMENTS) if path.startswith(DOCUMENTS) else COPIES + path


def origin(place: str) -> str:
    """The inverse of ``place``."""
    return place.removeprefix(COPIES) if place.startswith(COPIES) else DOCUMENTS + place


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every file outside docs/ that a page links to, and those that such a page links to in turn."""
    waiting = [origin(file.src_uri) for file in files.documentation_pages()]
    while waiting:
        for path in targets(waiting.pop()):
            inside = not path.startswith(("../", DOCUMENTS))
            if inside and (ROOT / path).is_file() and files.get_file_from_path(place(path)) is None:
                files.append(File.generated(config, place(path), abs_src_path=str(ROOT / path)))
                if path.endswith(".md"):
                    waiting.append(path)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between files of the site."""
    source = page.file.src_uri
    folder = os.path.dirname(origin(source))

    def moved(match: re.Match[str]) -> str:
        target = place(os.path.normpath(os.path.join(folder, match[1])))
        known = files.get_file_from_path(target) is not None
        return os.path.relpath(target, os.path.dirname(source) or ".") if known else match[1]

    return LINK.sub(moved, markdown)
