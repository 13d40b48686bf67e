import subprocess

import torch
from programs import ROOT

import ahm_gym
from ahm_gym.runs.provenance import commit, hardware


def test_the_commit_comes_from_git_and_marks_changes():
    described = commit()
    if not (ROOT / ".git").exists():
        assert described == f"version {ahm_gym.__version__}"
        return
    head = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    name, _, change = described.partition("-")
    assert head.stdout.startswith(name) and change in ("", "dirty")


def test_an_installed_package_has_a_version_instead(tmp_path, monkeypatch):
    commit.cache_clear()
    monkeypatch.setattr(ahm_gym, "__file__", str(tmp_path / "ahm_gym" / "__init__.py"))
    assert commit() == f"version {ahm_gym.__version__}"
    commit.cache_clear()


def test_the_hardware_names_the_number_of_threads():
    assert hardware(torch.device("cpu")).endswith(f"{torch.get_num_threads()} threads")
