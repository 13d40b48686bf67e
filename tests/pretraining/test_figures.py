"""Pictures of a run: names are drawn as they are, and damaged files do no harm."""

import numpy as np
import pytest
import torch

from ahm_gym.pretraining import figures
from ahm_gym.segmentation.overlays import Overlay, draw_overlays


def panels():
    return np.zeros((2, 8, 44, 3), np.uint8)


def test_a_dollar_in_a_name_is_no_formula(tmp_path, real_pictures):
    name = r"cost_$\undefined{5$_$"
    figures.draw_masks({0: panels()}, name).savefig(tmp_path / "masks.png")
    image, label = torch.zeros(1, 8, 8), torch.zeros(8, 8, dtype=torch.long)
    draw_overlays([Overlay(name, image, label, label)], 2, name).savefig(tmp_path / "overlays.png")


@pytest.mark.parametrize("content", [b"", b"half", b"PK\x03\x04"])
def test_a_damaged_snapshot_is_left_out_with_a_note(tmp_path, content, capsys):
    figures.save_snapshot(tmp_path, 0, panels())
    figures.save_snapshot(tmp_path, 8, panels()[:1])
    (tmp_path / "step-4.npz").write_bytes(content)
    (tmp_path / "step-new.npz").write_bytes(content)
    assert list(figures.load_snapshots(tmp_path)) == [0]
    err = capsys.readouterr().err
    assert "step-4.npz is damaged and left out" in err and "step-8.npz is damaged" in err
