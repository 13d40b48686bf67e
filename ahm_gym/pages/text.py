"""Formats numbers and texts for reports."""

from __future__ import annotations

import math
import re
from typing import TypeAlias

Number: TypeAlias = float | int

NOTHING = "\u2013"
MINUS = "\u2212"


def decimals(value: Number | None, places: int = 3) -> str:
    """The value with `places` decimals; a dash for None and NaN."""
    if value is None or math.isnan(value):
        return NOTHING
    return f"{value:.{places}f}".replace("-", MINUS)


def signed(value: Number | None, places: int = 3) -> str:
    """The value with its sign, unless it rounds to 0; a dash for None and NaN."""
    if value is None or math.isnan(value) or not round(value, places):
        return decimals(None if value is None else abs(value), places)
    return f"{value:+.{places}f}".replace("-", MINUS)


def percent(share: Number | None) -> str:
    """The share, 0 to 1, in whole percent; a dash for None."""
    return NOTHING if share is None else f"{100 * share:.0f} %"


def p_value(value: Number | None) -> str:
    """The p value with three decimals below 0.1 and two from there on; a dash for None."""
    if value is None:
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def duration(seconds: Number | None) -> str:
    """The time in seconds, minutes or hours; a dash for None."""
    if seconds is None:
        return NOTHING
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def plural(num: int, word: str) -> str:
    """The number with the word, which gets an s unless the number is 1."""
    return f"{num} {word}{'s' * (num != 1)}"


def markdown_line(text: str) -> str:
    """The text as one line of Markdown, with tags, links and pictures in it made inactive."""
    text = re.sub(r"[\r\n]+", " ", text)
    return re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", text).replace("](", "]\\(").replace("][", "]\\[")
