"""Data sets of the MedSegBench and MedMNIST packages, by name: from a file that is there, or downloaded."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

from torchvision.datasets.utils import download_url

from ahm_gym.errors import InputError, say, unknown_name
from ahm_gym.runs.places import home_folder


@dataclass(frozen=True)
class Collection:
    """The data sets of a package; by default its files are in `~/.PACKAGE`."""

    package: str
    sizes: tuple[int, ...]
    names: tuple[str, ...]
    bare_size: int | None = None
    """The size that is left out of the names of files."""

    def ending(self, size: int) -> str:
        """The suffix for a size in the names of files and in the keys of the package's table."""
        return "" if size == self.bare_size else f"_{size}"


COLLECTIONS: dict[str, Collection] = {
    "medsegbench": Collection(
        package="medsegbench",
        sizes=(128, 256, 512),
        names=tuple(
            "abdomenus bbbc010 bkai-igh brifiseg busi cellnuclei chasedb1 chuac covid19radio covidquex "
            "cystoidfluid dca1 deepbacs drive dynamicnuclear fhpsaop idrib isic2016 isic2018 kvasir m2caiseg "
            "monusac mosmedplus nuclei nuset pandental polypgen promise12 robotool tnbcnuclei "
            "ultrasoundnerve usforkidney uwaterlooskincancer wbc yeaz".split()
        ),
    ),
    "medmnist": Collection(
        package="medmnist",
        sizes=(28, 64, 128, 224),
        names=tuple(
            "adrenalmnist3d bloodmnist breastmnist chestmnist dermamnist fracturemnist3d nodulemnist3d "
            "octmnist organamnist organcmnist organmnist3d organsmnist pathmnist pneumoniamnist retinamnist "
            "synapsemnist3d tissuemnist vesselmnist3d".split()
        ),
        bare_size=28,
    ),
}


def find_named(spec: str, roots: list[Path], image_size: tuple[int, ...]) -> Path:
    """The `.npz` file of `PACKAGE:NAME[:SIZE]`, downloaded if it is in none of the folders.

    Without SIZE, the smallest size that is at least `image_size` is preferred, then larger ones, then smaller ones;
    a file that is there already is used before a download.

    Args:
        spec: value of the setting `data`.
        roots: folders to search before the package's own; a download goes to the first of them.
        image_size: rows and columns at which the images will be used.

    Raises:
        InputError: if the name or the size is unknown, or the file can neither be found nor downloaded.
    """
    package, name, *rest = spec.split(":")
    collection = COLLECTIONS[package]
    sizes = _sizes(collection, spec, rest, max(image_size))
    home = home_folder()
    folders = [*roots, *([] if home is None else [home / f".{package}"])]
    if not folders:
        raise InputError(
            f"there is no home folder in which {spec} could be kept: set `data_root` or AHM_DATA to a folder for it."
        )
    for size in sizes:
        for folder in folders:
            if (path := folder / f"{name}{collection.ending(size)}.npz").is_file():
                if size < max(image_size) and not rest:
                    say(
                        f"note: {path} has images of {size} pixels, which are enlarged; give {package}:{name}:SIZE "
                        "for larger ones.",
                    )
                return path
    if name not in collection.names:
        raise unknown_name(f"{package} data set", name, collection.names)
    return _download(collection, name, sizes, folders[0])


def _sizes(collection: Collection, spec: str, rest: list[str], wanted: int) -> list[int]:
    """The sizes to try, best first."""
    if rest:
        if len(rest) > 1 or rest[0] not in map(str, collection.sizes):
            known = ", ".join(map(str, collection.sizes))
            raise InputError(f"{spec!r} asks for an unknown size: choose one of {known}.")
        return [int(rest[0])]
    large_enough = [size for size in collection.sizes if size >= wanted]
    return large_enough + [size for size in reversed(collection.sizes) if size < wanted]


def _download(collection: Collection, name: str, sizes: list[int], folder: Path) -> Path:
    """Downloads the best size that exists, to a temporary name until the file is complete."""
    package = collection.package
    try:
        known = importlib.import_module(f"{package}.info").INFO[name]
    except ImportError as error:
        raise InputError(
            f"there is no {folder / name}{collection.ending(sizes[0])}.npz, and the package {package}, which is "
            'needed to download it, is not installed: pip install "ahm-gym[datasets]", or put the file there.'
        ) from error
    endings = [collection.ending(size) for size in sizes if f"url{collection.ending(size)}" in known]
    if not endings:
        raise InputError(f"{package} has no {name} of size {sizes[0]}: choose another size, or give none.")
    path = folder / f"{name}{endings[0]}.npz"
    partial = path.with_suffix(".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        download_url(
            known[f"url{endings[0]}"], root=folder, filename=partial.name, md5=known[f"MD5{endings[0]}"]
        )
    except (URLError, ConnectionError, TimeoutError, PermissionError, RuntimeError) as error:
        raise InputError(
            f"{path} could not be downloaded ({error}): try again, or put the file there yourself."
        ) from error
    return partial.replace(path)
