"""Renders a page from sections; each has a template of its name in the package that asks for the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Section:
    """A part of the page, rendered by the template with its name."""

    name: str
    title: str
    content: Any


@dataclass(frozen=True)
class Table:
    """A caption, the names of the columns, and rows of text whose first entry names the row."""

    caption: str
    columns: list[str]
    rows: list[list[str]]


def render(
    package: str,
    title: str,
    lead: str,
    sections: Sequence[Section],
    *,
    tone: Callable[[str], str] = lambda entry: "",
    script: str | None = None,
) -> str:
    """The page; sections without content are left out. Jinja escapes every text.

    Args:
        package: package whose `templates` has a template for each section.
        title: title of the page.
        lead: line below the title.
        sections: parts of the page in order.
        tone: the CSS class of an entry of a table, or an empty text.
        script: name of a template with JavaScript. None: there is none.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("ahm_gym.pages")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["tone"] = tone
    shown = [one for one in sections if one.content]
    return environment.get_template("page.html.jinja").render(
        title=title, lead=lead, sections=shown, script=script
    )


def embedded(figure: Figure) -> Markup:
    """A figure as the address of an image inside the page."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return Markup("data:image/png;base64," + base64.b64encode(picture.getvalue()).decode())
