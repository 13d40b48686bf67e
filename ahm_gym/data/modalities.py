"""Images on their way to scans: files that show one case in several modalities become the channels of one scan."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ahm_gym.data.formats.headers import shape_of
from ahm_gym.data.listing import NNUNET_FOLDERS, Found
from ahm_gym.data.sample import Split
from ahm_gym.data.wording import counted, verb

MODALITIES: tuple[str, ...] = tuple(
    (
        "t1 t1w mprage t1n t1ce t1c t1gd t2 t2w flair t2f t2star pd pdw swi dwi adc ct cta ctp pet suv cbf cbv mtt "
        "tmax ttp"
    ).split()
)
"""Endings of names that state a modality, in the order of the channels."""
MODALITY = re.compile(
    rf"(?:(.+)[-_ .])?({'|'.join(sorted(MODALITIES, key=len, reverse=True))})", re.IGNORECASE
)
PROCESSED = re.compile(
    rf"(?:(.+)[-_ .])?({'|'.join(sorted(MODALITIES, key=len, reverse=True))})"
    r"([-_ .](?:pp|preproc|preprocessed|brain|bet|stripped|skullstripped|ss|reg|registered|coreg|norm|normalized|n4|bc|"
    r"resampled|res))?",
    re.IGNORECASE,
)
"""The same, with what was done to the image behind it."""
ITK_IMAGE = re.compile(
    rf"(.+)\.(?:MR|CT)_(4D)?({'|'.join(MODALITIES)}|PWI)(?:_[A-Z]+)?\.(\d+)", re.IGNORECASE
)
"""A name of ITK's challenges, such as `VSD.Brain.XX.O.MR_T1c.54514`. Every modality of a case has another number."""
CHANNEL = re.compile(r"(.+)_(\d{4})")
MAX_CHANNELS = 16
"""Numbered files beyond that are the frames of a video rather than channels."""

Cases = dict[tuple[tuple[str, ...], str], dict[int, Found]]
"""The numbered channels of every case, which its folders and its name tell."""


@dataclass
class Draft:
    """A scan whose labels, split and id are not known yet."""

    files: list[Found]
    stem: str
    """The name of the file, or the case of stacked files."""
    names: tuple[str, ...]
    """The names that a label of this scan may have."""
    series: bool = False
    labels: list[Found] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    """The class of the foreground of each label; empty if the values of the labels are classes."""
    split: Split | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        return self.files[0].parts


@dataclass
class Stacked:
    """The scans among the images, and what was said of them."""

    drafts: list[Draft]
    modalities: tuple[str, ...] = ()
    left_out: dict[Path, str] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)
    channels_named: bool = False
    incomplete: set[str] = field(default_factory=set)
    """The cases that are left out."""


def without_channel(stem: str) -> str:
    """Removes the number of a channel, `_0000`, that nnU-Net appends to the name of a case."""
    return re.sub(r"_\d{4}$", "", stem)


def without_modality(stem: str) -> str:
    """Removes the ending that states a modality; empty if the name has nothing else."""
    match = MODALITY.fullmatch(stem)
    return stem if match is None else match[1] or ""


def modality_of(file: Found) -> tuple[tuple[tuple[str, ...], str, str], str] | None:
    """The case of an image, by its folders, name and processing, and the modality that its name states, if any."""
    if match := ITK_IMAGE.fullmatch(file.stem):
        base = "" if has_own_folder(file) else f"{match[1]}.{match[4]}"
        return (file.parts, base, ""), ((match[2] or "") + match[3]).lower()
    match = PROCESSED.fullmatch(file.stem)
    return None if match is None else ((file.parts, match[1] or "", match[3] or ""), match[2].lower())


def has_own_folder(file: Found) -> bool:
    """Whether a file lies in a folder of its own name, with or without the suffix."""
    return file.path.parent.name in (file.stem, file.path.name)


def stack(
    images: Sequence[Found], label_names: set[str], channel_names: Sequence[str] = (), *, nnunet: bool = False
) -> Stacked:
    """Makes scans of images: by the numbers of nnU-Net's channels, or by endings that name a modality.

    Args:
        images: the files of the images.
        label_names: the names of all labels, and what stands before their endings.
        channel_names: the names of the channels, if a `dataset.json` gives them.
        nnunet: the root is one of nnU-Net's folders of images; those below it are recognised by their names.
    """
    found = _by_channel(images, label_names, channel_names, nnunet=nnunet)
    return _by_modality(images) if found is None else found


def _by_channel(
    images: Sequence[Found], label_names: set[str], names: Sequence[str], *, nnunet: bool
) -> Stacked | None:
    stems = {image.stem for image in images}
    cases: Cases = {}
    for image in images:
        match = CHANNEL.fullmatch(image.stem)
        if match and match[1] not in stems:
            cases.setdefault((image.parts, match[1]), {})[int(match[2])] = image
    cases = {key: channels for key, channels in cases.items() if 0 in channels}
    if not cases:
        return None
    by_case = any(case in label_names for _, case in cases)
    by_file = any(image.stem in label_names for channels in cases.values() for image in channels.values())
    numbers, _ = Counter(tuple(sorted(channels)) for channels in cases.values()).most_common(1)[0]
    nnunet = nnunet or any(part.lower() in NNUNET_FOLDERS for parts, _ in cases for part in parts)
    stated = nnunet or len(names) > 1
    fits = numbers == tuple(range(len(numbers))) and 1 < len(numbers) <= MAX_CHANNELS
    if fits and not by_file and (by_case or stated):
        if len(names) != len(numbers):
            names = [str(number) for number in numbers]
        return _stack_cases(
            images, [(case, files) for (_, case), files in cases.items()], numbers, tuple(names)
        )
    found = Stacked(list(_single(images, {} if by_file else cases)))
    found.channels_named = not by_file and (by_case or nnunet)
    if fits and not by_file and len(cases) > 1:
        (_, case), channels = next(iter(cases.items()))
        found.doubts.append(
            f"{channels[0].path.name} to {channels[numbers[-1]].path.name} may be channels of {case}, and are used as "
            "images of their own; if they are channels, put all images into a folder imagesTr"
        )
    return found


def _single(images: Sequence[Found], cases: Cases) -> Iterator[Draft]:
    """A scan for each image; a case with a numbered channel is also known without its number."""
    for image in images:
        case = without_channel(image.stem)
        first = cases.get((image.parts, case), {}).get(0) is image
        yield Draft([image], image.stem, (image.stem, case) if first else (image.stem,))


def _by_modality(images: Sequence[Found]) -> Stacked:
    alone = Stacked([Draft([image], image.stem, (image.stem,)) for image in images])
    cases: dict[tuple[tuple[str, ...], str, str], dict[str, Found]] = {}
    numbered = {_numbered(image) for image in images if not modality_of(image)}
    for image in images:
        if (found := modality_of(image)) and (found[1][-1:].isalpha() or _numbered(image) not in numbered):
            cases.setdefault(found[0], {})[found[1]] = image
    several = [files for files in cases.values() if len(files) > 1]
    if not several:
        return alone
    together = {name for files in several for name in files}
    cases = {key: files for key, files in cases.items() if together & files.keys()}
    counts = Counter(name for files in cases.values() for name in files)
    ordered = (*MODALITIES, *(name for name in counts if name not in MODALITIES))
    names = tuple(name for name in ordered if 2 * counts[name] > len(cases))
    example = next(iter(several[0].values())).path
    if 2 * len(several) <= len(cases) or len(names) < 2:
        alone.doubts.append(
            f"some cases have several modalities, such as {example.name}, but most have not the same ones, so that "
            "each file is an image of its own; to stack them, give a folder whose cases all have the same"
        )
        return alone
    complete = [files for files in cases.values() if files.keys() >= set(names)]
    fitting = _fitting(complete, names)
    if len(fitting) < 2:
        alone.doubts.append(
            f"the modalities of a case differ in size, such as those of {example.name}, so that each file is an image "
            "of its own; to stack them, resample them to one grid"
        )
        return alone
    found = _stack_cases(images, [(_case_name(key), files) for key, files in cases.items()], fitting, fitting)
    if unfit := [name for name in names if name not in fitting]:
        others = {files[name].path for files in cases.values() for name in unfit if name in files}
        found.left_out |= dict.fromkeys(others, "it has another size than the other modalities")
        found.doubts.append(
            f"{', '.join(fitting)} are stacked, without {', '.join(unfit)}, which "
            f"{verb(len(unfit), 'has', 'have')} another size; resample all to one grid to use them"
        )
    return found


def _numbered(image: Found) -> tuple[tuple[str, ...], str] | None:
    """The folder and the name of an image without the number at its end; `t1` and `t2` beside `t3` are numbers."""
    match = re.fullmatch(r"(.*[A-Za-z])\d+", image.stem)
    return None if match is None else (image.parts, match[1])


def _fitting(cases: Sequence[dict[str, Found]], names: Sequence[str]) -> tuple[str, ...]:
    """The modalities that have one size in most of the cases: the largest such group; empty if there is none."""
    groups: Counter[tuple[str, ...]] = Counter()
    for files in cases:
        sizes: dict[tuple[int, ...] | None, list[str]] = {}
        for name in names:
            sizes.setdefault(shape_of(files[name].path), []).append(name)
        groups[tuple(max(sizes.values(), key=len))] += 1
    found, count = groups.most_common(1)[0] if groups else ((), 0)
    return found if 2 * count > len(cases) else ()


def _case_name(key: tuple[tuple[str, ...], str, str]) -> str:
    """The name of a case; files that are only called by their modality take that of their folder."""
    parts, name, _ = key
    return name or (parts[-1] if parts else "case")


def _stack_cases(
    images: Sequence[Found], cases: Sequence[tuple[str, dict]], keys: Sequence, names: tuple[str, ...]
) -> Stacked:
    """One scan for each case that has every channel; what is left of the images stays single."""
    found = Stacked([], modalities=names)
    taken: set[Path] = set()
    first: dict[Path, Draft] = {}
    reasons: dict[str, list[str]] = {}
    for case, files in cases:
        taken |= {file.path for file in files.values()}
        missing = [name for key, name in zip(keys, names, strict=True) if key not in files]
        shapes = set() if missing else {shape_of(files[key].path) for key in keys}
        if missing or len(shapes) > 1:
            reason = f"lacks {', '.join(missing)}" if missing else "has modalities of different sizes"
            reasons.setdefault(reason, []).append(case)
            found.incomplete.add(case)
            found.left_out |= {file.path: "its case is left out" for file in files.values()}
            continue
        ordered = [files[key] for key in keys]
        draft = Draft(ordered, case, (case, *(file.stem for file in ordered)))
        first[min(file.path for file in files.values())] = draft
        unused = [file.path for key, file in files.items() if key not in keys]
        found.left_out |= dict.fromkeys(unused, "most cases have no such modality")
    for reason, lacking in reasons.items():
        more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
        found.doubts.append(f"the case {lacking[0]}{more} {reason} and is left out; complete it to use it")
    _say_strays([image for image in images if image.path not in taken], names, found)
    found.drafts = [first[image.path] for image in images if image.path in first]
    return found


def _say_strays(images: Sequence[Found], names: Sequence[str], found: Stacked) -> None:
    """Leaves out images that are none of the stacked modalities."""
    others = [image for image in images if modality_of(image)]
    strays = [image for image in images if not modality_of(image)]
    if others:
        have, are = verb(len(others), "has", "have"), verb(len(others), "is", "are")
        found.doubts.append(
            f"{counted(len(others), 'file')} such as {others[0].path} {have} another modality than {', '.join(names)}, "
            f"which are stacked, and {are} left out; give a folder with such files alone to use them"
        )
    if strays:
        state, are = verb(len(strays), "states", "state"), verb(len(strays), "is", "are")
        found.doubts.append(
            f"{counted(len(strays), 'file')} such as {strays[0].path} {state} none of the modalities "
            f"{', '.join(names)} of a case and {are} left out; give them such an ending if they are, or one such as "
            "_mask if they are labels"
        )
    found.left_out |= {image.path: "it is not one of the stacked modalities of a case" for image in images}
