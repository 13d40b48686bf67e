"""Checks the pages of the site against the repository."""

import re

import pytest
import yaml
from programs import ROOT

import ahm_gym

DOCS = ROOT / "docs"
PAGES = ("index", "getting-started", "concepts", "data", "environments", "mask-policies", "run-folder")
PATH = re.compile(r"`((?:ahm_gym|agents|envs|examples|benchmarks|constraints)/[\w./-]*)`")


@pytest.mark.parametrize("page", [*(f"docs/{page}.md" for page in PAGES), "README.md"])
def test_every_file_that_a_page_names_exists(page):
    named = PATH.findall((ROOT / page).read_text())
    assert [path for path in named if not (ROOT / path.split("NAME")[0]).exists()] == []


def test_every_page_is_in_the_navigation():
    def pages(entry):
        if isinstance(entry, str):
            return [entry]
        return [
            page for part in (entry.values() if isinstance(entry, dict) else entry) for page in pages(part)
        ]

    nav = re.search(r"^nav:\n(?:[ ].*\n)+", (ROOT / "mkdocs.yml").read_text(), re.M)
    listed = pages(yaml.safe_load(nav[0])["nav"])
    assert sorted(listed) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def test_the_citation_file_has_what_the_format_requires():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert (cited["version"], cited["license"]) == (ahm_gym.__version__, "Apache-2.0")
    (paper,) = cited["references"]
    assert {"type", "title", "authors"} <= paper.keys()
    assert [author["family-names"] for author in paper["authors"]] == ["Xu", "Liu", "Xu", "Lukasiewicz"]


def test_the_site_fetches_nothing():
    settings = (ROOT / "mkdocs.yml").read_text()
    assert "font: false" in settings
    assert "extra_javascript" not in settings
    assert not re.search(r"https?://", (DOCS / "stylesheets" / "extra.css").read_text())
