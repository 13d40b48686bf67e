import pytest

from ahm_gym.pretraining.config import PretrainConfig


@pytest.fixture
def config(discs, tmp_path):
    return PretrainConfig(
        data=str(discs),
        image_size=(32,),
        steps=8,
        batch_size=8,
        checkpoint_every=4,
        run_dir=tmp_path / "run",
    )
