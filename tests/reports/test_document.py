"""One document as Markdown and as a page: the same words in both, whatever characters they have."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest
from fake_sweeps import cells, fake
from PIL import Image

from rmadapter.reports.document import Document, Picture
from rmadapter.reports.escape import markdown
from rmadapter.reports.sweep.page import sweep_report
from rmadapter.reports.tables import Table, compact_heading, compact_row

NASTY = """<b>&"'</b>"""
METHODS = Table(
    "Means",
    ("method", "style", "data sets", "empty", "base", "remark"),
    (("single", "fluent", "11", "", "9.50", "slow"), ("rmadapter", "", "4", "", "84.52 ± 0.10", "")),
    words=(0, 1, 5),
    note="Percent.",
)


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, and the text in each."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))

    def handle_data(self, data):
        if self.elements and data.strip():
            self.elements[-1][2].append(data)

    def texts(self, *tags: str) -> list[str]:
        return ["".join(text) for tag, _, text in self.elements if tag in tags]


@pytest.fixture
def document(tmp_path) -> Document:
    Image.new("RGB", (4, 4)).save(tmp_path / "cost.png")
    pictures = [Picture(tmp_path / "cost.png", "What it costs.")]
    return Document("Ablation", "12 runs", (METHODS, "HM: harmonic mean."), ["One run failed."], pictures)


def test_markdown(document):
    assert document.markdown() == (
        "# Ablation\n\n12 runs\n\n## Means\n\n"
        "| method    | style  | data sets |         base | remark |\n"
        "| --------- | ------ | --------: | -----------: | ------ |\n"
        "| single    | fluent |        11 |         9.50 | slow   |\n"
        "| rmadapter |        |         4 | 84.52 ± 0.10 |        |\n\n"
        "Percent.\n\nHM: harmonic mean.\n\n- One run failed.\n\n![cost](cost.png)\n"
    )


def test_markdown_has_no_place_for_what_is_not_there():
    assert Document("", "", ("Nothing more.",)).markdown() == "Nothing more.\n"
    assert Table("Means", ("method",), ()).markdown() == "## Means"


def test_the_page_shows_what_markdown_shows(document):
    page = Page(document.page())
    assert page.texts("title", "h1", "h2") == ["Ablation", "Ablation", "Means"]
    assert page.texts("p") == ["12 runs", "Percent.", "HM: harmonic mean."]
    assert page.texts("li") == ["One run failed."]
    assert page.texts("th") == ["method", "style", "data sets", "base", "remark"]
    assert page.texts("td") == ["single", "fluent", "11", "9.50", "slow", "rmadapter", "", "4", "84.52 ± 0.10", ""]
    assert page.texts("figcaption") == ["What it costs."]
    right = [attributes.get("class") == "number" for tag, attributes, _ in page.elements if tag in ("th", "td")]
    assert right == [False, False, True, True, False] * 3


def test_the_page_needs_nothing_else(document):
    page = Page(document.page())
    assert not {"script", "link", "iframe"} & {tag for tag, _, _ in page.elements}
    addresses = [found for _, attributes, _ in page.elements for found in map(attributes.get, ("src", "href")) if found]
    assert [address.partition(",")[0] for address in addresses] == ["data:image/png;base64"]


def test_pictures_stand_behind_the_first_block_of_a_page(document):
    tags = [tag for tag, _, _ in Page(document.page()).elements]
    assert tags.index("section") < tags.index("figure") < len(tags) - tags[::-1].index("p")


def test_a_page_escapes_every_text(document):
    table = Table(NASTY, (NASTY, "new"), ((NASTY, NASTY),), note=NASTY)
    picture = Picture(document.pictures[0].path, NASTY)
    text = Document(NASTY, NASTY, (table, NASTY), [NASTY], [picture]).page()
    page = Page(text)
    assert page.texts("b") == []
    for tag, count in {"title": 1, "h1": 1, "h2": 1, "td": 2, "p": 3, "li": 1, "figcaption": 1}.items():
        assert page.texts(tag) == [NASTY] * count
    assert page.texts("th") == [NASTY, "new"]
    assert [attributes["alt"] for tag, attributes, _ in page.elements if tag == "img"] == [NASTY]


def test_a_sweep_s_page_shows_a_label_of_any_characters(tmp_path):
    name = '<b>&"'
    folder = fake(tmp_path / "s", "base2new", ["dtd"], ["zeroshot", "mma"])
    for file in (folder / "runs" / "mma").rglob("results.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "method": name}))
    text = sweep_report(folder, tmp_path / "out")
    assert dict(cells(text, "dtd", markdown(name)))["seeds"] == "3"
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert page.texts("td").count(name) == 1
    assert f"{name} - zeroshot" in page.texts("td")
    assert "b" not in {tag for tag, _, _ in page.elements}


def test_a_cell_ends_where_it_ends():
    """A bar or a new line in a name would begin a cell or a line of its own."""
    table = Table("", ("method", "base|new"), (("a|b\nc", "1"),))
    assert table.markdown() == "| method | base\\|new |\n| ------ | --------: |\n| a\\|b c |         1 |"


def test_without_padding_a_row_does_not_depend_on_the_others():
    rows = [("single", "", "9.50", "yes"), ("single+consistency", "", "84.52", "")]
    table = Table("", ("", "empty", "base", "met"), rows, words=(0, 3), aligned=False)
    assert table.markdown().splitlines() == [
        "| | base | met |",
        "|---|--:|---|",
        "| single | 9.50 | yes |",
        "| single+consistency | 84.52 | |",
    ]
    lines = [compact_heading(("", "base", "met"), words=(0, 2)), compact_row(("single", "9.50", "yes"))]
    assert table.markdown().startswith("\n".join(lines) + "\n")
