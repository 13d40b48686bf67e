"""Numbers as people read them."""

from __future__ import annotations

import math
import re
from typing import TypeAlias

Number: TypeAlias = float | int

NOTHING = "\u2013"
MINUS = "\u2212"


def decimals(value: Number | None, places: int = 3) -> str:
    """The value with so many decimals; a dash where there is none."""
    if value is None or math.isnan(value):
        return NOTHING
    return f"{value:.{places}f}".replace("-", MINUS)


def signed(value: Number | None, places: int = 3) -> str:
    """Likewise with its sign, unless it is rounded to 0."""
    if value is None or math.isnan(value) or not round(value, places):
        return decimals(None if value is None else abs(value), places)
    return f"{value:+.{places}f}".replace("-", MINUS)


def percent(share: Number | None) -> str:
    """The share in whole hundredths."""
    return NOTHING if share is None else f"{100 * share:.0f} %"


def p_value(value: Number | None) -> str:
    """With three decimals, or two from 0.1 on."""
    if value is None:
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def duration(seconds: Number | None) -> str:
    """In seconds, minutes or hours."""
    if seconds is None:
        return NOTHING
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def plural(num: int, word: str) -> str:
    return f"{num} {word}{'s' * (num != 1)}"


def markdown_line(text: str) -> str:
    """The text as one line of Markdown in which no tag, link or picture of its own is live."""
    text = re.sub(r"[\r\n]+", " ", text)
    return re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", text).replace("](", "]\\(").replace("][", "]\\[")
