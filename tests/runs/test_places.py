"""Home folders: `~` in paths, and users who have none."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from ahm_gym import api
from ahm_gym.benchmark.config import BenchmarkConfig
from ahm_gym.data.named import find_named
from ahm_gym.data.prepare import cache_folder
from ahm_gym.errors import InputError
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.runs.places import expanded, with_homes
from ahm_gym.segmentation.config import PredictConfig


@pytest.fixture
def homeless(monkeypatch):
    """A user id that the list of users does not know, without HOME, as in a container."""

    def unknown(user):
        raise KeyError(f"getpwuid(): uid not found: {user}")

    for name in ("HOME", "XDG_CACHE_HOME", "AHM_CACHE", "AHM_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_without_a_home_folder_the_cache_is_asked_for(homeless, monkeypatch, tmp_path):
    with pytest.raises(InputError, match="no home folder .* set AHM_CACHE to a folder"):
        cache_folder()
    monkeypatch.setenv("AHM_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path


def test_without_a_home_folder_named_data_is_found_in_the_data_root(homeless, tmp_path):
    with pytest.raises(InputError, match="no home folder .* set `data_root` or AHM_DATA"):
        find_named("medsegbench:busi", [], (64, 64))
    (tmp_path / "busi_128.npz").touch()
    assert find_named("medsegbench:busi", [tmp_path], (64, 64)) == tmp_path / "busi_128.npz"


def test_a_tilde_without_a_home_folder_is_refused(homeless):
    with pytest.raises(InputError, match="the ~ in ~/runs stands for a home folder that is not known"):
        expanded("~/runs")
    assert expanded(os.path.join("runs", "~a")) == Path("runs/~a")


def test_a_tilde_in_any_setting_that_is_a_path_is_the_home_folder(home):
    nested = replace(BenchmarkConfig.pretrain, run_dir=Path("~/a"))
    benchmark = with_homes(BenchmarkConfig(out=Path("~/out"), data_root=Path("~"), pretrain=nested))
    assert (benchmark.out, benchmark.data_root) == (home / "out", home)
    assert benchmark.pretrain == PretrainConfig(steps=nested.steps, run_dir=home / "a")
    predicting = PredictConfig(scans=Path("~/scans"), run=(Path("~/a"), Path("b")), out=Path("c"))
    assert with_homes(predicting) == replace(predicting, scans=home / "scans", run=(home / "a", Path("b")))


def test_the_python_api_knows_the_home_folder(home):
    with pytest.raises(InputError, match=f"{home}/encoder"):
        api.probe(encoder="~/encoder", run_dir="~/run")
