"""The lookup of data by name."""

import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import ahm_gym.data.named as named
from ahm_gym.data import open_data
from ahm_gym.data.sources import find_path
from ahm_gym.errors import InputError

SIZE = (8, 8)


def archive(path: Path, num: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(num).integers(0, 255, (num, 9, 9), dtype=np.uint8)
    np.savez(path, train_images=images)
    return path


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Path]:
    """An explicit root, `$AHM_DATA` and the current folder, all empty, and an empty home folder elsewhere."""
    folders = tmp_path / "root", tmp_path / "environment", tmp_path / "current"
    for folder in (*folders, tmp_path / "home"):
        folder.mkdir()
    monkeypatch.setenv("AHM_DATA", str(folders[1]))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(folders[2])
    return folders


def test_relative_names_are_looked_up_in_the_root_then_the_environment_then_here(roots):
    for num, folder in zip((3, 2, 1), reversed(roots), strict=True):
        archive(folder / "set.npz", num)
        assert len(open_data("set.npz", root=roots[0], image_size=SIZE)) == num


def test_a_name_without_suffix_finds_its_only_file(roots):
    archive(roots[0] / "set_128.npz")
    assert find_path("set", [roots[0]]).name == "set_128.npz"
    archive(roots[0] / "set_256.npz")
    with pytest.raises(InputError, match=r"'set' could be any of set_128\.npz, set_256\.npz"):
        find_path("set", [roots[0]])


def test_missing_data_is_named_with_every_place_that_was_searched(roots):
    with pytest.raises(InputError) as caught:
        open_data("nothing.npz", root=roots[0], image_size=SIZE)
    assert all(str(folder / "nothing.npz") in str(caught.value) for folder in roots[:2])
    with pytest.raises(InputError, match=r"there is no data at /no/such\.npz: give"):
        open_data("/no/such.npz", root=roots[0], image_size=SIZE)


def test_the_error_for_a_single_image_suggests_its_folder(tmp_path):
    (tmp_path / "scan.nii.gz").touch()
    with pytest.raises(
        InputError, match=rf"scan\.nii\.gz is a single image: .* give {re.escape(str(tmp_path))}\."
    ):
        open_data(str(tmp_path / "scan.nii.gz"), image_size=SIZE)


def test_sizes_below_one_pixel_are_refused():
    with pytest.raises(InputError, match=r"image size \(0, 8\) is out of range"):
        open_data(None, image_size=(0, 8))


@pytest.mark.parametrize("spec", ["medsegbench:busi", "medmnist:bloodmnist"])
def test_the_cached_file_of_a_package_comes_first(roots, spec: str):
    name = spec.split(":")[1]
    archive(Path.home() / f".{spec.split(':')[0]}" / f"{name}_128.npz", 1)
    assert len(open_data(spec, image_size=(100, 100))) == 1
    archive(roots[1] / f"{name}_128.npz", 2)
    assert len(open_data(spec, image_size=(100, 100))) == 2
    archive(roots[0] / f"{name}_128.npz", 3)
    assert len(open_data(spec, root=roots[0], image_size=(100, 100))) == 3


def test_the_smallest_sufficient_size_is_used_or_any_other_that_is_there(roots, capsys):
    archive(roots[0] / "busi_512.npz")
    archive(roots[0] / "busi_256.npz")
    for size, expected in ((64, 256), (300, 512), (600, 512)):
        assert named.find_named("medsegbench:busi", [roots[0]], (size, size)).name == f"busi_{expected}.npz"
        assert ("busi_512.npz has images of 512 pixels, which" in capsys.readouterr().err) == (size == 600)
    assert named.find_named("medsegbench:busi:512", [roots[0]], (8, 8)).name == "busi_512.npz"


def test_the_smallest_medmnist_file_has_no_size_in_its_name(roots, capsys):
    archive(roots[0] / "pathmnist.npz")
    assert named.find_named("medmnist:pathmnist:28", [roots[0]], (64, 64)).name == "pathmnist.npz"
    assert not capsys.readouterr().err


def test_the_shared_files_are_found_by_package_name(shared_data: Path):
    assert named.find_named("medsegbench:hc18", [shared_data], (64, 64)).name == "hc18_128.npz"


def test_the_error_for_an_unknown_name_suggests_the_nearest(roots):
    with pytest.raises(InputError, match="unknown medsegbench data set 'kvasirr': did you mean 'kvasir'"):
        open_data("medsegbench:kvasirr", image_size=SIZE)


@pytest.mark.parametrize(
    "spec", ["medsegbench:busi:100", "medmnist:pathmnist:512", "medmnist:pathmnist:28:1"]
)
def test_an_unknown_size_is_refused(roots, spec: str):
    with pytest.raises(InputError, match="asks for an unknown size: choose one of"):
        open_data(spec, image_size=SIZE)


def test_without_the_package_the_extra_to_install_is_named(roots, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "medsegbench.info", None)
    with pytest.raises(InputError, match=r'busi_128\.npz.* pip install "ahm-gym\[datasets\]"'):
        open_data("medsegbench:busi", image_size=SIZE)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for `medmnist.info`, with one set in two sizes."""
    info = SimpleNamespace(INFO={"pathmnist": {"url": "u", "MD5": "m", "url_64": "u64", "MD5_64": "m64"}})
    monkeypatch.setattr(named.importlib, "import_module", lambda name: info)


def test_a_missing_file_is_downloaded_completely_or_not_at_all(
    roots, package, monkeypatch: pytest.MonkeyPatch
):
    def fail(url: str, root: Path, filename: str, md5: str) -> None:
        (root / filename).write_text("half of it")
        raise RuntimeError("connection lost")

    monkeypatch.setattr(named, "download_url", fail)
    with pytest.raises(
        InputError, match=r"pathmnist\.npz could not be downloaded \(connection lost\): try again"
    ):
        open_data("medmnist:pathmnist", root=roots[0], image_size=SIZE)
    assert not (roots[0] / "pathmnist.npz").exists()

    asked = []

    def succeed(url: str, root: Path, filename: str, md5: str) -> None:
        asked.append((url, md5))
        archive(root / "whole.npz", 2).rename(root / filename)

    monkeypatch.setattr(named, "download_url", succeed)
    assert len(open_data("medmnist:pathmnist", root=roots[0], image_size=SIZE)) == 2
    assert len(open_data("medmnist:pathmnist", root=roots[0], image_size=SIZE)) == 2
    assert asked == [("u", "m")]


def test_a_download_without_root_goes_to_the_folder_of_the_package(
    roots, package, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("AHM_DATA")
    monkeypatch.setattr(
        named,
        "download_url",
        lambda url, root, filename, md5: archive(root / "a.npz").rename(root / filename),
    )
    open_data("medmnist:pathmnist:64", image_size=SIZE)
    assert (Path.home() / ".medmnist" / "pathmnist_64.npz").is_file()


def test_a_size_that_a_set_does_not_have_is_refused(roots, package):
    with pytest.raises(InputError, match="medmnist has no pathmnist of size 224"):
        open_data("medmnist:pathmnist:224", image_size=SIZE)


def test_the_largest_size_there_is_serves_larger_images(roots, package, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def download(url: str, root: Path, filename: str, md5: str) -> None:
        asked.append(url)
        archive(root / "whole.npz").rename(root / filename)

    monkeypatch.setattr(named, "download_url", download)
    found = named.find_named("medmnist:pathmnist", [roots[0]], (128, 128))
    assert (found.name, asked) == ("pathmnist_64.npz", ["u64"])


def test_a_device_or_a_pipe_is_refused_without_reading_it(tmp_path):
    os.mkfifo(tmp_path / "x.npz")
    for place in ("/dev/zero", str(tmp_path / "x.npz")):
        with pytest.raises(InputError, match=f"{place} is a device or a pipe: expected an .npz file"):
            open_data(place, image_size=SIZE)


def test_a_name_that_no_file_can_have_is_refused():
    with pytest.raises(InputError, match="cannot be looked up .* check the name of the data"):
        open_data("a" * 300, image_size=SIZE)
