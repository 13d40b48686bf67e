"""What the names of labels and of their folders say."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from ahm_gym.data.listing import SPLIT_WORDS, Found, role_of_folder, split_of, words_of
from ahm_gym.data.modalities import without_modality

ENDINGS = "masks?|msks?|segmentations?|labels?|labelmaps?|d?seg|gt|ground[-_ ]?truth|annotations?|anno"
WEAK_ENDINGS = "lesions?|manual|roi|truth"
LABEL_NAME = re.compile(rf"(.+)[-_ .]({ENDINGS})((?:[-_ ]?\d+)?)", re.IGNORECASE)
"""The name of an image, an ending, and optionally a number: that of the image, or of one of its labels."""
WEAK_LABEL = re.compile(rf"(.+)[-_ ]({WEAK_ENDINGS})()", re.IGNORECASE)
"""An ending that names a label only beside an image without it."""
NUMBERED_LABEL = re.compile(rf"(?:{ENDINGS})[-_ ]?(\d+)", re.IGNORECASE)
"""A name that only numbers a label and does not name an image."""
PREFIXED_LABEL = re.compile(rf"(?:{ENDINGS})[-_ .](.+)", re.IGNORECASE)
"""A name that begins with a word for label counts beside an image of the rest of it."""
ITK_LABEL = re.compile(r"(.+)\.(OT)((?:\.\d+)?)")
"""The observers' truth of ITK's challenges, `VSD.Brain.XX.O.OT.54517`; its image has another number."""
CLASS_ENDING = re.compile(rf"(.+)[-_ .](?!(?:{ENDINGS})$)[A-Za-z]+", re.IGNORECASE)
"""The name of an image and that of a class."""
BARE_LABEL = re.compile(ENDINGS, re.IGNORECASE)
OBSERVER = re.compile(
    r"(.+?)[-_ ]?(?:(1st|2nd|3rd)[-_ ]?(?:HO|observer|manual|reader|rater)"
    r"|(?:manual|observer|reader|rater|expert|annotator)[-_ ]?(\d))",
    re.IGNORECASE,
)
OBSERVER_FOLDER = re.compile(
    r"(\d)(?:st|nd|rd)[-_ ]?(?:manual|observer|reader|rater)|"
    r"(?:manual|observer|reader|rater|expert|annotator)[-_ ]?(\d)",
    re.IGNORECASE,
)
WORD = re.compile(r"[A-Za-z]{3}")
"""What the name of a class has, and the number of a part has not."""
NUMBER = re.compile(r"[-_ ]\d+$")
NUMBERED_IMAGE = re.compile(r"[A-Za-z]+[-_ ]?(\d+)")
ENTITY = re.compile(r"_(?:desc|label|space|res|seg)-[^_]+")
"""What BIDS says of a derived file beyond the scan that it belongs to."""
DERIVED_NAME = re.compile(r"(.+)[-_ ](?:superpixels?|probseg|overlay|preview|heatmap)", re.IGNORECASE)
"""A name that says that the file was made from an image."""
WHOLE_SERIES = re.compile(r"(.+)[-_](?:4d|cine)", re.IGNORECASE)
IMAGE_ENDING = re.compile(
    r"[-_ ](?:images?|img|orig|original|raw|input|volume|scan|training|test)$", re.IGNORECASE
)

Place = tuple[str | None, tuple[str, ...]]
"""A split and the folders above a file, without those that only say what it holds."""


@dataclass(frozen=True)
class LabelName:
    """What the name of a label says."""

    bases: tuple[str, ...] = ()
    """Names that its image may have, the best first."""
    kind: str = ""
    number: str = ""
    observer: int = 0
    """The number of the observer who drew it; 0 if none is named."""


def read_name(label: Found) -> LabelName:
    """What the names of a label and its folders say."""
    stem = label.stem
    folder = next((int(m[1] or m[2]) for part in label.parts if (m := OBSERVER_FOLDER.fullmatch(part))), 0)
    if match := OBSERVER.fullmatch(stem):
        return LabelName((match[1],), "observer", observer=int((match[2] or match[3])[0]))
    match = LABEL_NAME.fullmatch(stem) or WEAK_LABEL.fullmatch(stem) or ITK_LABEL.fullmatch(stem)
    if match is None:
        rest = PREFIXED_LABEL.fullmatch(stem)
        return LabelName(() if rest is None or rest[1].isdecimal() else (rest[1],), observer=folder)
    base, kind, number = match.groups()
    bases = (base + number, base) if number else (base,)
    return LabelName(bases, kind.lower(), number, observer=folder)


def looks_like_label(stem: str) -> bool:
    """Whether the name of a file is that of a label."""
    return any(form.fullmatch(stem) for form in (LABEL_NAME, NUMBERED_LABEL, BARE_LABEL, ITK_LABEL))


def expected_image(stem: str) -> str:
    """The image that a label with this name should have, for a message."""
    if NUMBERED_LABEL.fullmatch(stem):
        return f"an image named {stem}, or a label with the name of its image,"
    match = LABEL_NAME.fullmatch(stem)
    return f"an image named {match[1] + match[3] if match else stem}"


@functools.cache
def place_of(parts: tuple[str, ...]) -> Place:
    """The split and the folders of a file, without folders that only name a split or say what they hold."""

    def says_something(part: str) -> bool:
        only_split = all(word in SPLIT_WORDS or word.isdecimal() for word in words_of(part))
        return role_of_folder(part) is None and not (only_split and split_of((part,)))

    return split_of(parts), tuple(part for part in parts if says_something(part))


def in_label_folder(file: Found) -> bool:
    """Whether the nearest folder that says what it holds says labels."""
    roles = (role_of_folder(part) for part in reversed(file.parts))
    return next((role for role in roles if role in ("label", "image")), None) == "label"


def reduced(name: str) -> str:
    """A name in lower case, without BIDS entities of derived files, a modality or a word for image at its end."""
    bare = IMAGE_ENDING.sub("", without_modality(ENTITY.sub("", name)) or name)
    return bare.lower()
