"""A report as one document, written as Markdown and as an HTML page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from rmadapter.reports.escape import markdown, paragraph, readable
from rmadapter.reports.tables import Table


@dataclass(frozen=True)
class Picture:
    """A PNG file, and a sentence on what it shows, which stands under it on a page."""

    path: Path
    caption: str = ""

    @property
    def data_uri(self) -> str:
        """The picture itself as an address, so that a page needs no other file."""
        return "data:image/png;base64," + base64.b64encode(self.path.read_bytes()).decode()


@dataclass(frozen=True)
class Document:
    """What a report says, in plain text: what is Markdown or HTML in it, is shown and not obeyed.

    Args:
        title: its name; empty for none
        lead: the paragraph under the title; empty for none
        blocks: tables and paragraphs, in their order
        notes: sentences on what is missing, left out or does not compare
        pictures: in Markdown named by their files, which are expected beside it
    """

    title: str
    lead: str
    blocks: Sequence[Table | str]
    notes: Sequence[str] = ()
    pictures: Sequence[Picture] = ()

    def markdown(self) -> str:
        """Title, lead, blocks, notes, pictures: what a terminal shows last is what has to be heeded."""
        texts = [paragraph(block) if isinstance(block, str) else block.markdown() for block in self.blocks]
        parts = [f"# {markdown(self.title)}" if self.title else "", paragraph(self.lead), *texts]
        parts.append("\n".join(f"- {paragraph(note)}" for note in self.notes))
        parts += [f"![{picture.path.stem}]({picture.path.name})" for picture in self.pictures]
        return "\n\n".join(part for part in parts if part) + "\n"

    def page(self) -> str:
        """One page of HTML without script or anything to fetch: notes at its top, pictures after the first block."""
        return rendered("page.html.jinja", document=self)


def rendered(template: str, **values: Any) -> str:
    """The page that one of this room's templates makes of ``values``.

    Names and messages are whatever run folders and data sets hold: every text is escaped.
    """
    environment = Environment(
        loader=PackageLoader("rmadapter.reports", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: readable(value) if type(value) is str else value,  # markup is the template's own
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values) + "\n"
