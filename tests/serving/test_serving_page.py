"""The page in headless Chromium: a picture is dropped, and the numbers that it shows are the endpoint's."""

from __future__ import annotations

import base64
import json
import shutil
import time
import urllib.request

import pytest
from served_cases import FORM, NAMES, app_of, form_of, picture, running, served_model

from rmadapter.serving.served_model import NO_ADAPTER

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update"]
# A file dropped from outside cannot be had in a page; this is the event that it makes.
DROP = """
(encoded) => {
  const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
  const dropped = new DataTransfer();
  dropped.items.add(new File([bytes], "dropped.png"));
  document.getElementById("drop").dispatchEvent(new DragEvent("drop", {dataTransfer: dropped, bubbles: true}));
}
"""
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


@pytest.fixture(scope="module")
def browser():
    # Playwright speaks to the browser itself: no driver has to be installed beside it, of the version that fits.
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, chromium_sandbox=False)
        yield launched
        launched.close()


@pytest.fixture
def page(browser):
    """An empty tab; what it threw, and what it wrote to the console as an error, is in ``page.errors``."""
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda line: page.errors.append(line.text) if line.type == "error" else None)
    yield page
    page.close()


@pytest.fixture(scope="module")
def address(base_run):
    with running(app_of(served_model(base_run / "adapter"))) as url:
        yield url


def wait(page, script):
    """What the page gives for ``script``, once that is something."""
    # Not page.wait_for_function, which the page's own Content-Security-Policy forbids to evaluate a text.
    end = time.monotonic() + 30
    while not (found := page.evaluate(script)):
        assert time.monotonic() < end, f"nothing within 30 s: {script}"
        page.wait_for_timeout(20)
    return found


def opened(page, address):
    page.goto(address)
    wait(page, "document.body.dataset.ready")


def drop(page, content):
    page.evaluate(DROP, base64.b64encode(content).decode())


def shown(page):
    """Class -> probabilities, zero-shot and adapted, as the table has them."""
    rows = wait(
        page,
        "[...document.querySelectorAll('#results tbody tr')].map((row) => [row.cells[0].textContent,"
        " ...[...row.cells].slice(1).map((cell) => Number(cell.dataset.probability))])",
    )
    return {name: found for name, *found in rows}


def asked(address, image, **fields):
    """The endpoint's own answer."""
    request = urllib.request.Request(f"{address}api/predict", form_of(image, **fields), FORM)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def pixels(page):
    return page.evaluate("document.getElementById('picture').toDataURL()")


def test_a_dropped_picture_is_answered(page, address):
    opened(page, address)
    assert page.input_value("#classes") == "ant\nbee"
    page.fill("#classes", "\n".join(NAMES))
    empty = pixels(page)
    drop(page, picture(3))
    wait(page, "document.querySelectorAll('#results tbody tr').length === 4 && !document.querySelector('.busy')")
    own = asked(address, picture(3), classes="\n".join(NAMES), errors="true")
    found = shown(page)
    for name, *both in zip(own["classes"], own["zeroshot"], own["adapted"], strict=True):
        assert found[name] == pytest.approx(both, abs=1e-6)
    assert list(found) == sorted(found, key=lambda name: -max(found[name]))

    # The map: over the picture, of the layer that is chosen.
    mean = pixels(page)
    assert mean != empty
    values = [value for row in own["reconstruction"][1]["errors"] for value in row]
    page.select_option("#layer", "3")
    assert pixels(page) != mean
    least, largest = (wait(page, f"document.getElementById('{end}').textContent") for end in ("least", "largest"))
    assert float(least) == pytest.approx(min(values), rel=5e-3)
    assert float(largest) == pytest.approx(max(values), rel=5e-3)

    # The knob.
    page.fill("#strength", "0")
    wait(page, "document.getElementById('more').textContent.startsWith('Strength 0.00')")
    for zeroshot, adapted in shown(page).values():
        assert adapted == pytest.approx(zeroshot, abs=1e-6)
    assert not page.errors


def test_a_refusal_is_shown(page, address):
    opened(page, address)
    drop(page, b"no image")
    said = wait(page, "document.getElementById('error').textContent")
    assert said == "image dropped.png cannot be read: it is no image of a format that is read"
    page.fill("#classes", "ant\nbee")
    drop(page, picture())
    wait(page, "document.getElementById('error').hidden && document.querySelectorAll('#results tbody tr').length")


def test_what_a_model_has_not_is_said(page, clip_folder):
    with running(app_of(served_model(None, model=f"local-dir:{clip_folder}"))) as url:
        opened(page, url)
        note = wait(page, "document.getElementById('map-note').textContent")
        assert note == f"There is no map of the reconstruction error: {NO_ADAPTER}."
        assert page.is_disabled("#strength")
        page.fill("#classes", "<b>ant</b>\nbee")
        drop(page, picture())
        wait(page, "document.querySelectorAll('#results tbody tr').length === 2")
        assert set(shown(page)) == {"<b>ant</b>", "bee"}
        assert all(len(found) == 1 for found in shown(page).values())
