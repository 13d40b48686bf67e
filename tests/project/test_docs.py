"""Runs every snippet of docs/plug-in.md as a reader would."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from programs import ROOT, add_command

PACKAGE = ROOT / "tests" / "support" / "plugin_package"
SNIPPETS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "docs" / "plug-in.md").read_text(), re.M | re.S)
PYTHON = [code for language, code in SNIPPETS if language == "python"]
CONTRIB = ("torchrl", "tianshou")
SHELL = [code for language, code in SNIPPETS if language == "sh"]


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """Folder and environment of a reader; pip installs into a folder and uses no network."""
    folder = tmp_path_factory.mktemp("reader")
    names = [PACKAGE / "ahm_bright.py", PACKAGE / "pyproject.toml"]
    for path in names:
        shutil.copy(path, folder)
    programs = add_command(tmp_path_factory.mktemp("bin"))
    installed = folder / "installed"
    paths = [str(installed), str(ROOT)]
    return folder, os.environ | {
        "PATH": os.pathsep.join([str(programs), os.path.dirname(sys.executable), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "PIP_TARGET": str(installed),
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads it as the switch's own value: 0 is without isolation
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


def test_the_files_in_the_text_are_those_of_the_tested_package():
    assert PYTHON[0] == (PACKAGE / "ahm_bright.py").read_text()
    (toml,) = [code for language, code in SNIPPETS if language == "toml"]
    assert toml == (PACKAGE / "pyproject.toml").read_text()
    assert {language for language, _ in SNIPPETS} == {"python", "toml", "sh"}


@pytest.mark.slow
def test_the_commands_install_the_package_and_pretrain_with_it(reader):
    folder, variables = reader
    for code in SHELL:
        done = subprocess.run(
            ["bash", "-euc", code], cwd=folder, env=variables, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
    for run in ("bright", "bandit", "frozen"):
        assert (folder / "runs" / run / "checkpoint" / "step-10").is_dir()
    done = subprocess.run(
        ["ahm-gym", "pretrain", "--policy", "brigth"],
        cwd=folder, env=variables, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2 and "did you mean 'bright'" in done.stderr


def run_snippets(snippets, reader):
    """Runs each snippet on its own, all in one new process that sees the reader's installed packages."""
    folder, variables = reader
    loop = "import json, sys\nfor code in json.load(sys.stdin):\n    exec(code, {'__name__': '__main__'})"
    done = subprocess.run(
        [sys.executable, "-c", loop], input=json.dumps(snippets), cwd=folder, env=variables,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_code_runs(reader):
    """All in one process: importing the libraries takes most of the time."""
    absent = [library for library in CONTRIB if importlib.util.find_spec(library) is None]
    snippets = [code for code in PYTHON[1:] if not any(name in code for name in absent)]
    # the kit, Gymnasium, stable-baselines3, a batch; TorchRL and Tianshou come with the extra `contrib`
    assert len(snippets) == 6 + len(CONTRIB) - len(absent)
    run_snippets(snippets, reader)
