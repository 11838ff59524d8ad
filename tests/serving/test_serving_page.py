"""The page in headless Chromium: a picture is dropped, and the numbers that it shows are the endpoint's."""

from __future__ import annotations

import base64
import json
import shutil
import urllib.request

import pytest
from served_cases import FORM, NAMES, app_of, form_of, picture, running, served_model

from rmadapter.serving.served_model import NO_ADAPTER

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1300,900"),
)
# A file dropped from outside cannot be had in a page; this is the event that it makes.
DROP = """
const bytes = Uint8Array.from(atob(arguments[0]), (letter) => letter.charCodeAt(0));
const dropped = new DataTransfer();
dropped.items.add(new File([bytes], "dropped.png"));
document.getElementById("drop").dispatchEvent(new DragEvent("drop", {dataTransfer: dropped, bubbles: true}));
"""
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def address(base_run):
    with running(app_of(served_model(base_run / "adapter"))) as url:
        yield url


def wait(browser, script, *arguments):
    """What the page gives for ``script``, once that is something."""
    from selenium.webdriver.support.wait import WebDriverWait

    return WebDriverWait(browser, 30).until(lambda driver: driver.execute_script(f"return {script}", *arguments))


def opened(browser, address):
    browser.get(address)
    wait(browser, "document.body.dataset.ready")


def fill(browser, name, value):
    """What a person's typing or sliding does."""
    browser.execute_script(
        "const field = document.getElementById(arguments[0]); field.value = arguments[1];"
        "field.dispatchEvent(new Event('input', {bubbles: true}));",
        name,
        value,
    )


def shown(browser):
    """Class -> probabilities, zero-shot and adapted, as the table has them."""
    rows = wait(
        browser,
        "[...document.querySelectorAll('#results tbody tr')].map((row) => [row.cells[0].textContent,"
        " ...[...row.cells].slice(1).map((cell) => Number(cell.dataset.probability))])",
    )
    return {name: found for name, *found in rows}


def asked(address, image, **fields):
    """The endpoint's own answer."""
    request = urllib.request.Request(f"{address}api/predict", form_of(image, **fields), FORM)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def pixels(browser):
    return browser.execute_script("return document.getElementById('picture').toDataURL()")


def test_a_dropped_picture_is_answered(browser, address):
    opened(browser, address)
    assert browser.execute_script("return document.getElementById('classes').value") == "ant\nbee"
    fill(browser, "classes", "\n".join(NAMES))
    empty = pixels(browser)
    browser.execute_script(DROP, base64.b64encode(picture(3)).decode())
    wait(browser, "document.querySelectorAll('#results tbody tr').length === 4 && !document.querySelector('.busy')")
    own = asked(address, picture(3), classes="\n".join(NAMES), errors="true")
    found = shown(browser)
    for name, *both in zip(own["classes"], own["zeroshot"], own["adapted"], strict=True):
        assert found[name] == pytest.approx(both, abs=1e-6)
    assert list(found) == sorted(found, key=lambda name: -max(found[name]))

    # The map: over the picture, of the layer that is chosen.
    mean = pixels(browser)
    assert mean != empty
    values = [value for row in own["reconstruction"][1]["errors"] for value in row]
    fill(browser, "layer", "3")
    assert pixels(browser) != mean
    least, largest = (wait(browser, f"document.getElementById('{end}').textContent") for end in ("least", "largest"))
    assert float(least) == pytest.approx(min(values), rel=5e-3)
    assert float(largest) == pytest.approx(max(values), rel=5e-3)

    # The knob.
    fill(browser, "strength", "0")
    wait(browser, "document.getElementById('more').textContent.startsWith('Strength 0.00')")
    for zeroshot, adapted in shown(browser).values():
        assert adapted == pytest.approx(zeroshot, abs=1e-6)
    assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]


def test_a_refusal_is_shown(browser, address):
    opened(browser, address)
    browser.execute_script(DROP, base64.b64encode(b"no image").decode())
    said = wait(browser, "document.getElementById('error').textContent")
    assert said == "image dropped.png cannot be read: it is no image of a format that is read"
    fill(browser, "classes", "ant\nbee")
    browser.execute_script(DROP, base64.b64encode(picture()).decode())
    wait(browser, "document.getElementById('error').hidden && document.querySelectorAll('#results tbody tr').length")


def test_what_a_model_has_not_is_said(browser, clip_folder):
    with running(app_of(served_model(None, model=f"local-dir:{clip_folder}"))) as url:
        opened(browser, url)
        note = wait(browser, "document.getElementById('map-note').textContent")
        assert note == f"There is no map of the reconstruction error: {NO_ADAPTER}."
        assert browser.execute_script("return document.getElementById('strength').disabled")
        fill(browser, "classes", "<b>ant</b>\nbee")
        browser.execute_script(DROP, base64.b64encode(picture()).decode())
        wait(browser, "document.querySelectorAll('#results tbody tr').length === 2")
        assert set(shown(browser)) == {"<b>ant</b>", "bee"}
        assert all(len(found) == 1 for found in shown(browser).values())
