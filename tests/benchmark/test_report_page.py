"""The page of a report: self-contained, legible, and usable in a browser by keyboard."""

import re
from html.parser import HTMLParser
from importlib.resources import files

import numpy as np
import pytest
from benchmark_rows import write_benchmark
from browser import LEFT, TAB, headless_chromium

from ahm_gym.benchmark.report import write_report


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A finished benchmark with its report."""
    folder = write_benchmark(tmp_path_factory.mktemp("benchmark"))
    write_report(folder)
    return folder


class Outline(HTMLParser):
    """Collects the tags of a page with their attributes, and counts those that are left open."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_the_page_asks_for_nothing_from_outside_and_names_everything(out):
    page = (out / "report.html").read_text()
    assert len(page) < 15_000_000
    tags = Outline(page).tags
    addresses = [attributes[name] for _, attributes in tags for name in ("src", "href") if name in attributes]
    assert addresses and all(address.startswith(("data:", "#")) for address in addresses)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest", page)
    assert ("html", {"lang": "en"}) in tags
    assert all(attributes.get("alt") for tag, attributes in tags if tag == "img")
    named = {attributes["for"] for tag, attributes in tags if tag == "label"}
    controls = [attributes["id"] for tag, attributes in tags if tag in ("input", "select")]
    assert controls and set(controls) <= named and len(set(controls)) == len(controls)
    anchors = {address[1:] for address in addresses if address.startswith("#")}
    assert anchors <= {attributes.get("id") for _, attributes in tags}
    assert "0123abc" in page and "python examples/benchmark.py" in page and "Intel Xeon" in page


def test_text_and_marks_have_enough_contrast_in_light_and_dark():
    style = files("ahm_gym.pages").joinpath("templates", "page.css").read_text()
    light, dark = (dict(re.findall(r"--(\w+): (#\w{6});", part)) for part in style.split("@media", 2)[:2])

    def luminance(colour):
        values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722))

    for colours in (light, dark):
        assert len(colours) == 17
        for name, colour in colours.items():
            if name not in ("page", "raised", "line"):
                high, low = sorted((luminance(colour), luminance(colours["page"])), reverse=True)
                assert (high + 0.05) / (low + 0.05) >= (3 if name == "strong" else 4.5), name


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with headless_chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def test_the_page_raises_nothing_and_fits_its_window(browser, out):
    for width in (1280, 390):
        browser.open(out / "report.html", width=width)
        assert browser.console() == []
        assert browser.run("return document.documentElement.scrollWidth") <= width
        broken = "return [...document.images].filter(image => image.complete && !image.naturalWidth).length"
        assert browser.run(broken) == 0


def test_the_slider_moves_the_masks_of_all_policies_by_keyboard(browser, out):
    browser.open(out / "report.html")
    shown = """return [...document.querySelector('.gallery').querySelectorAll('figure')].map(
        figure => [...figure.querySelectorAll('img')].filter(image => image.checkVisibility())
            .map(image => image.dataset.step).join())"""
    assert browser.run(shown) == ["100"] * 3
    browser.press("#step-0", LEFT)
    assert browser.run(shown) == ["50"] * 3
    assert browser.run("return document.querySelector('output').value") == "50"
    assert browser.run("return document.activeElement.getAttribute('aria-valuetext')") == "step 50"
    browser.press("#step-0", LEFT + LEFT)
    assert browser.run(shown) == ["1"] * 3
    assert browser.console() == []


def test_the_choice_of_scores_changes_tables_and_charts(browser, out):
    browser.open(out / "report.html")
    shown = "return [...document.querySelectorAll('.view')].filter(v => v.checkVisibility()).map(v => v.dataset.view)"
    assert browser.run(shown) == ["0"]
    browser.press("#view", "probe, 50")
    assert browser.run(shown) == ["5"]
    assert "patch Dice" in browser.run("return document.querySelector('.view:not([hidden])').innerText")


def test_segmentations_of_two_policies_are_shown_at_the_chosen_number_of_labels(browser, out):
    browser.open(out / "report.html")
    shown = """return [...document.querySelector('.chooser').querySelectorAll('figure')]
        .filter(f => f.checkVisibility()).map(f => f.dataset.policy + ' ' + f.dataset.labels)"""
    assert sorted(browser.run(shown)) == ["a3c 10", "random 10"]
    browser.press("#first-0", "grid")
    browser.press("#labels-0", "50")
    assert sorted(browser.run(shown)) == ["grid 50", "random 50"]


def test_the_focus_is_visible_and_reaches_the_controls(browser, out):
    browser.open(out / "report.html")
    browser.press("body", TAB)
    assert browser.run("return document.activeElement.textContent") == "Skip to the content"
    browser.press("#view", TAB)
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert browser.run(outline) == "solid"


def test_the_page_follows_the_dark_scheme(browser, out):
    background = "return getComputedStyle(document.body).backgroundColor"
    colours = []
    for dark in (False, True):
        browser.open(out / "report.html", dark=dark)
        colours.append(browser.run(background))
    assert colours == ["rgb(252, 252, 251)", "rgb(21, 24, 27)"]
