"""Finds the patient of every image of a data set, says by which rule and how sure, and what is doubtful."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace

from ahm_gym.data.name_words import CLASSES, DATE, WITHIN
from ahm_gym.data.names import (
    ENOUGH,
    MIN_GROUPS,
    Certainty,
    Grouping,
    group_names,
    normalised,
    parts_of,
)
from ahm_gym.data.sample import Record
from ahm_gym.data.wording import counted
from ahm_gym.errors import InputError

REMEDY: str = "--patient-regex or a split.csv settles it"
REMEDY_STATED: str = "--patient-regex settles it, while the splits stay as the data states them"
BIDS = re.compile(r"(?:^|[/_\-. ])sub-([A-Za-z0-9]+)")
SESSIONS = re.compile(
    r"(?:ses|session|visit|run|scan|series|study|frame|phase|time|images?)[-_ ]?\w*", re.IGNORECASE
)
PATIENTS_OF_A_SITE = 10
"""Folders with at least so many folders each, on average, are sites, and those inside are patients: a guess."""
PLACEHOLDER = re.compile(
    r"anon[a-z]*|0*|[x?]+|(\w)\1{3,}|unknown|none|na|nan|null|nil|no(id|name)|deid[a-z]*|removed|hidden|default|"
    r"(patient|subject|case)?(id|name)?|phantom|test|dummy|12345+6*7*8*9*0?",
    re.IGNORECASE,
)
"""What `PatientID` holds, apart from punctuation, where it was removed."""


@dataclass(frozen=True)
class Evidence:
    """What is known about the patient of an image."""

    place: str
    """Path relative to the folder of the data, without suffix, with `/` between its parts; or a name."""
    stated: str | None = None
    """The patient that the file itself names, as DICOM does."""
    volume: str | None = None
    """The volume of which the image is a slice."""

    @classmethod
    def of(cls, record: Record) -> Evidence:
        """What a record tells."""
        return cls(record.place or record.volume or record.id, record.patient, record.volume)


@dataclass(frozen=True)
class Patients:
    """The patient of every image, and how they were found."""

    of_images: list[str]
    rule: str
    """The rule in words."""
    certainty: Certainty
    doubts: tuple[str, ...] = ()
    """Sentences on what may be wrong, each with the way to settle it."""
    alone: bool = False
    """Nothing tells which images belong together: every image, or volume, counts as a patient of its own."""
    series: bool = False
    """The same, and the names are running numbers, so that neighbours may show one patient."""
    examples: tuple[tuple[str, str], ...] = ()
    """A few places, and the patient of each."""

    def __str__(self) -> str:
        examples = ", ".join(f"{place} → {patient}" for place, patient in self.examples)
        return f"{self.rule}{'' if self.alone else f': {examples}'}; {self.certainty}"


def find_patients(
    evidence: Sequence[Evidence], pattern: str | None = None, *, splits_stated: bool = False
) -> Patients:
    """Finds the patient of every image from all that is known about all of them.

    The first of these rules that applies is used: `pattern`; patients that the files state, without placeholders such
    as ANON; BIDS's `sub-XX`; a folder for each patient; names (see `group_names`). Slices of one volume always have
    the same patient.

    Args:
        evidence: of each image.
        pattern: regular expression that is searched in each place. Its first group, or else its match, is the patient.
        splits_stated: a table, or the data itself, gives every image its split.

    Raises:
        InputError: if the pattern is not valid, or does not match a place.
    """
    places = list(dict.fromkeys(one.place for one in evidence))
    if pattern is not None:
        grouping = _by_pattern(places, pattern)
        found = _spread(grouping, places, evidence)
    else:
        grouping = _by_bids(places) or _by_folder(places) or group_names(places)
        found = _with_stated(_spread(grouping, places, evidence), grouping, evidence)
    volumes = [one.volume or index for index, one in enumerate(evidence)]
    found = replace(found, of_images=_joined(found.of_images, volumes))
    shown = dict.fromkeys((0, len(evidence) // 2, len(evidence) - 1))
    examples = tuple((evidence[at].place, found.of_images[at]) for at in shown if at >= 0)
    if found.alone and len(set(volumes)) == 1:
        what = "image" if evidence[0].volume is None else "volume"
        only = f"there is only one {what}, so that all of it is for training and nothing for val and test; add others"
        return replace(found, examples=examples, rule=f"a single {what}", certainty="sure", doubts=(only,))
    remedy = REMEDY_STATED if splits_stated else REMEDY
    doubts = [*found.doubts, *_doubts(found, evidence, grouping)]
    return replace(found, examples=examples, doubts=tuple(f"{doubt}, {remedy}" for doubt in doubts))


def _spread(grouping: Grouping, places: list[str], evidence: Sequence[Evidence]) -> Patients:
    """The groups of different places as those of images."""
    of_place = dict(zip(places, grouping.groups, strict=True))
    return Patients(
        [of_place[one.place] for one in evidence],
        grouping.rule,
        grouping.certainty,
        alone=grouping.alone,
        series=grouping.series,
    )


def _by_pattern(places: list[str], pattern: str) -> Grouping:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(
            f"`patient_regex={pattern}` is not a regular expression ({error}): correct it, or leave it out."
        ) from error
    groups = []
    for place in places:
        group = found_in(place, compiled)
        if not group:
            raise InputError(
                f"`patient_regex={pattern}` finds no patient in {place!r}: expected a match in the name of every "
                "image; make it more general."
            )
        groups.append(group)
    return Grouping(groups, f"by the pattern {pattern}", "sure")


def found_in(place: str, pattern: re.Pattern[str]) -> str | None:
    """What a pattern finds in a place: its first group, or else its match; None if it finds nothing."""
    match = pattern.search(place)
    return None if match is None else match[1 if pattern.groups else 0]


def _by_bids(places: list[str]) -> Grouping | None:
    """By BIDS's `sub-XX`, if every place has one."""
    matches = [BIDS.search(place) for place in places]
    if not all(matches):
        return None
    groups = [f"sub-{match[1]}" for match in matches if match is not None]
    return Grouping(groups, "by BIDS's sub-XX", "sure")


def _by_folder(places: list[str]) -> Grouping | None:
    """By the outermost folders that could be patients, and by their names if those say that several are of one patient.

    Folders of classes, splits, phases and modalities are passed over.
    """
    folders = [place.split("/")[:-1] for place in places]
    passed = False
    for level in range(min(map(len, folders))):
        names = [parts[level] for parts in folders]
        different = list(dict.fromkeys(names))
        generic = sum(_is_generic(name) for name in different)
        if len(different) < MIN_GROUPS or 2 * generic >= len(different):
            continue
        deeper = {parts[level + 1] for parts in folders if len(parts) > level + 1}
        if len(deeper) >= PATIENTS_OF_A_SITE * len(different) and not all(map(_is_generic, deeper)):
            passed = True
            continue  # such as hospitals with patients in them
        inner = group_names(different)
        of_folder = dict(zip(different, inner.groups, strict=True))
        rule = "by their folders" if inner.alone else f"by their folders, {inner.rule}"
        unsure = passed or (len(different) < ENOUGH and inner.certainty == "guess" and not inner.alone)
        certainty: Certainty = "guess" if unsure else "likely"
        return Grouping([of_folder[name] for name in names], rule, certainty)
    return None


def _is_generic(name: str) -> bool:
    """Whether a folder's name is that of a class, a split, a phase, a session or a modality."""
    word = re.sub(r"[\d\W_]+$", "", name.lower())
    return SESSIONS.fullmatch(name) is not None or bool({word, name.lower()} & (CLASSES | WITHIN))


def _with_stated(found: Patients, grouping: Grouping, evidence: Sequence[Evidence]) -> Patients:
    """The patients that files state, and for files that state none those of their names."""
    stated = [_identified(one.stated) for one in evidence]
    hidden = [one.stated for one, own in zip(evidence, stated, strict=True) if one.stated and own is None]
    doubts = []
    if hidden:
        doubts.append(
            f"the PatientID of {counted(len(hidden), 'image')} identifies nobody ({hidden[0]}), so it is not used"
        )
    known = {normalised(own): own for own in reversed(stated) if own is not None}
    by_name = len(set(found.of_images))
    if len(known) == 1 and by_name > 1 and not grouping.alone:
        only = next(iter(known.values()))
        doubts.append(
            f"all files state the patient {only}, but their names show {by_name}, so it is not used"
        )
        known = {}
    if not known:
        return replace(found, doubts=tuple(doubts))
    if None not in stated:
        groups = [known[normalised(own)] for own in stated if own is not None]
        if by_name < len(known) and not grouping.alone:
            doubts.append(f"the files state {len(known)} patients, and their names show {by_name}")
        return Patients(groups, "by the patient that the files state", "sure", tuple(doubts))
    mixed = [
        name if own is None else known[normalised(own)]
        for own, name in zip(stated, found.of_images, strict=True)
    ]
    doubts.append(
        f"{stated.count(None)} of {len(stated)} images state no patient, and are grouped by their names"
    )
    joined = _joined(mixed, found.of_images)
    return Patients(joined, f"by the patient that files state, else {found.rule}", "likely", tuple(doubts))


def _identified(stated: str | None) -> str | None:
    """The stated patient, or None if it is a placeholder."""
    text = (stated or "").strip()
    return None if PLACEHOLDER.fullmatch(re.sub(r"[\W_]+", "", text)) else text


def _joined(groups: Sequence[str], links: Sequence[Hashable]) -> list[str]:
    """Joins groups that share a link, such as a volume; a joined group has the name of its first one."""
    parent = {group: group for group in groups}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = group = parent[parent[group]]
        return group

    first: dict[Hashable, str] = {}
    for group, link in zip(groups, links, strict=True):
        one, other = root(first.setdefault(link, group)), root(group)
        if one != other:
            parent[other] = one
    return [root(group) for group in groups]


def _doubts(found: Patients, evidence: Sequence[Evidence], grouping: Grouping) -> Iterator[str]:
    """What may be wrong with the patients found."""
    counts = Counter(found.of_images)
    if found.alone:
        yield from _doubts_alone(evidence, grouping)
        return
    flat = all(one.volume is None for one in evidence)
    if len(counts) == len(evidence) and flat and found.certainty != "sure" and len(counts) >= MIN_GROUPS:
        yield "every image is from another patient, by a rule that is not sure"
    if len(counts) == 1:
        yield f"there seems to be only one patient, {next(iter(counts))}; if there are more"
    elif len(counts) < ENOUGH:
        yield f"there seem to be only {len(counts)} patients, so scores depend on who they are; if there are more"
    patient, most = counts.most_common(1)[0]
    if 2 * most > len(evidence) and len(counts) > 1:
        yield f"{most} of {len(evidence)} images are of one patient, {patient}"
    words = [patient for patient in counts if re.sub(r"[\d\W_]", "", patient.lower()) in CLASSES - {"case"}]
    if words and 2 * len(words) >= len(counts):
        yield f"{', '.join(words[:3])} may be classes of images rather than patients"
    if found.certainty == "guess":
        yield "the names allow another reading of who is one patient"
    yield from _recurring(found, evidence)


def _doubts_alone(evidence: Sequence[Evidence], grouping: Grouping) -> Iterator[str]:
    flat = all(one.volume is None for one in evidence)
    what = "image" if flat else "volume"
    start = f"every {what} counts as a patient of its own, because nothing in their names is known to be a patient"
    if grouping.class_words:
        start += " (words such as benign are classes)"
    if grouping.series and flat:
        yield f"{start}; neighbours in a numbered series may show one patient"
    else:
        yield f"{start}; {what}s of one patient may be in two splits"


def _recurring(found: Patients, evidence: Sequence[Evidence]) -> Iterator[str]:
    """A sentence on parts of names that look like patients, and recur in the names of several patients found."""
    owner = {one.place: patient for one, patient in zip(evidence, found.of_images, strict=True)}
    where: dict[int, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for place, patient in owner.items():
        for at, part in enumerate(parts_of(place)):
            if any(map(str.isdigit, part.value)) and not DATE.fullmatch(part.value):
                where[at][part.value].add(patient)
    for patients in where.values():
        owners = sum(map(len, patients.values())) / len(patients)
        if len(patients) >= ENOUGH and 1.3 <= owners <= 4 and len(set().union(*patients.values())) > ENOUGH:
            example = next(value for value, own in patients.items() if len(own) > 1)
            shared = sorted(patients[example])[:2]
            yield f"{example!r} stands in the names of several patients, such as {' and '.join(shared)}"
            return
