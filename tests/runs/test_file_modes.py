"""Colleagues can read the weights of a run wherever they can read its settings."""

import os

import pytest
import torch

from ahm_gym.runs.storage import replace_folder, save_state


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_all_files_have_the_mode_that_the_umask_asks_for(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        replace_folder(tmp_path / "step-1", lambda folder: save_state(folder, {"weight": torch.ones(2)}))
    finally:
        os.umask(before)
    assert {item.stat().st_mode & 0o777 for item in (tmp_path / "step-1").iterdir()} == {mode}
