"""Runs the commands of docs/tutorial.md in order, as a reader would."""

import json
import os
import re
import subprocess
import sys

import pytest
from programs import ROOT, add_command

COMMANDS = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs" / "tutorial.md").read_text(), re.M | re.S)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a reader who has run every command."""
    folder = tmp_path_factory.mktemp("tutorial")
    programs = add_command(tmp_path_factory.mktemp("bin"))
    paths = [str(programs), os.path.dirname(sys.executable), os.environ["PATH"]]
    variables = os.environ | {"PATH": os.pathsep.join(paths), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for code in COMMANDS:
        done = subprocess.run(
            ["bash", "-euc", code], cwd=folder, env=variables, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, code + done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_every_command_of_the_tutorial_writes_what_the_text_says(finished):
    runs = finished / "runs"
    for run in ("learned", "random"):
        assert (runs / run / "checkpoint" / "step-40").is_dir()
        assert (runs / run / "figures" / "masks.png").is_file()
    for run in ("learned", "random", "scratch"):
        assert 0 <= json.loads((runs / f"{run}-finetuned" / "results.json").read_text())["dice"] <= 1
        assert (runs / f"{run}-finetuned" / "figures" / "overlays.png").is_file()
    assert "patch_dice" in json.loads((runs / "learned-probe" / "results.json").read_text())
    assert (runs / "benchmark" / "report.html").is_file()


@pytest.mark.slow
def test_the_tutorial_needs_no_network_and_no_data_of_the_repository(finished):
    assert {path.name for path in finished.iterdir()} == {"discs", "runs"}
