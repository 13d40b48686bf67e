"""Pretraining runs on whole volumes: a trained agent on others, and settings that do not fit."""

from dataclasses import replace
from pathlib import Path

import pytest
from medical_files import volumes_in

from ahm_gym.errors import InputError
from ahm_gym.model.encoders import find_encoder
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.pretraining.run import pretrain
from ahm_gym.pretraining.training import Training
from ahm_gym.segmentation.config import FinetuneConfig
from ahm_gym.segmentation.inputs import resolve


@pytest.fixture
def config(tmp_path: Path) -> PretrainConfig:
    data = volumes_in(tmp_path / "scans", [(12, 13, 14)] * 6, [(1.0, 1.0, 1.0)] * 6)
    shape = {"volumes": True, "image_size": 12, "patch_size": 4, "batch_size": 4, "steps": 2}
    return PretrainConfig(data=str(data), run_dir=tmp_path / "run", device="cpu", **shape)


def test_a_trained_agent_masks_other_volumes_of_the_same_grid(config: PretrainConfig, tmp_path, capsys):
    run = pretrain(replace(config, spacing=(1.0, 1.0, 1.0)))
    found = find_encoder(run)
    assert found.image_size == (12, 12, 12) and found.spacing == found.volume_spacing == (1.0, 1.0, 1.0)
    assert (run / "figures" / "masks.png").is_file()
    elsewhere = FinetuneConfig(encoder=str(run), data=str(tmp_path))
    assert resolve(elsewhere).spacing == (1.0, 1.0, 1.0)
    assert "are resampled to 1x1x1 mm, as those were" in capsys.readouterr().err
    training = Training(replace(config, policy=f"agent:{run}", run_dir=None))
    training.env.reset(seed=0)
    scores = training.agent.score(training.env.patches)
    assert scores.shape == (4, 27) and scores.isfinite().all()
    training.close()
    with pytest.raises(
        InputError, match="grid of 3x3x3 patches of 4 px with 1 channels, and this run has 2x3x3"
    ):
        Training(replace(config, policy=f"agent:{run}", image_size=(8, 12, 12)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"volumes": False, "image_size": (12, 12, 12)}, "three numbers go with `volumes`"),
        ({"image_size": (12, 12)}, "image size 12 12: give one number for a cube, or lengths"),
        ({"policy": "ahm2025"}, "agent ahm2025 knows images and no volumes: choose `policy=a3c`"),
        ({"target": "hog"}, "hog"),
        ({"model": "vit_small_patch16_224"}, "has no form for volumes"),
    ],
)
def test_what_does_not_go_with_volumes_is_refused(config: PretrainConfig, changes: dict, message: str):
    with pytest.raises(InputError, match=message):
        Training(replace(config, **changes))
