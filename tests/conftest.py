"""Fixtures that several test modules use."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ahm_gym._compat  # noqa: F401

import pytest
import torch
from fake_ray import FakeRay
from jaxtyping import config
from matplotlib.figure import Figure
from PIL import Image

CHECKED_SECONDS = 0.1
"""Seconds of a test, and of its fixtures, in which annotations are checked; loops repeat the same calls."""
DRAW = Figure.savefig
torch.set_num_threads(1)  # more threads do not speed up small shapes, and would slow down worker processes


class Checking(threading.Thread):
    """Ends the checks of annotations some time after the last call of `begin`: they take a third of a long test."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.began = time.monotonic()

    def begin(self) -> None:
        self.began = time.monotonic()
        config.update("jaxtyping_disable", False)

    def run(self) -> None:
        while True:
            time.sleep(CHECKED_SECONDS / 4)
            if time.monotonic() - self.began > CHECKED_SECONDS:
                config.update("jaxtyping_disable", True)


CHECKING = Checking()
CHECKING.start()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    CHECKING.begin()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    CHECKING.begin()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images; tests that need it are skipped if it is missing."""
    folder = Path(
        os.environ.get("AHM_DATA") or Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
    )
    if not (folder / "hc18_128.npz").is_file():
        pytest.skip(f"no images at {folder}: set AHM_DATA to the folder that holds hc18_128.npz")
    return folder.resolve()


@pytest.fixture(scope="session")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of labelled discs; see `write_discs`."""
    from programs import write_discs  # imports the package, whose annotations are not checked yet up there

    return write_discs(tmp_path_factory.mktemp("data") / "discs.npz")


@pytest.fixture(scope="session", autouse=True)
def quick_pictures() -> Iterator[None]:
    """Runs write blank pictures: drawing takes longer than the training of most tests. See `real_pictures`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Figure, "savefig", lambda self, path, format=None, **_: Image.new("L", (1, 1)).save(path, format)
        )
        yield


@pytest.fixture
def real_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw their pictures, as they do for users."""
    monkeypatch.setattr(Figure, "savefig", DRAW)


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A temporary cache folder for prepared data."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AHM_CACHE", str(folder))
        yield folder


@pytest.fixture
def use_fake_ray(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeRay]:
    """A function that puts a fake Ray with these properties in the place of the package, and returns it."""

    def use(**properties: Any) -> FakeRay:
        ray = FakeRay(**properties)
        monkeypatch.setitem(sys.modules, "ray", ray)  # pyright: ignore
        return ray

    return use
