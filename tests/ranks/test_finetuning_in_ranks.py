"""Fine-tuning in several ranks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ranks import in_ranks

from ahm_gym.segmentation.config import FinetuneConfig
from ahm_gym.segmentation.finetune import Finetuning
from ahm_gym.segmentation.inputs import resolve
from ahm_gym.segmentation.program import run_finetune


@pytest.fixture
def config(discs, tmp_path):
    return FinetuneConfig(
        encoder="none", data=str(discs), image_size=(32,), labels=6, steps=3, batch_size=4, device="cpu",
        run_dir=tmp_path / "run",
    )  # fmt: skip


def trained(config: FinetuneConfig) -> tuple[list[float], list[torch.Tensor]]:
    """The losses and the gradients of three updates."""
    finetuning = Finetuning(resolve(config))
    losses, gradients = [], []
    for step in (1, 2, 3):
        losses.append(finetuning.update(step))
        found = [
            weight.grad.flatten() for weight in finetuning.segmenter.parameters() if weight.grad is not None
        ]
        gradients.append(torch.cat(found))
    return losses, gradients


@pytest.mark.parametrize("model", ["tiny", pytest.param("unet", marks=pytest.mark.slow)])
def test_two_ranks_compute_what_one_process_does(config, model):
    config = replace(config, model=model)
    losses, gradients = trained(config)
    for found, slopes in in_ranks(2, trained, config):
        assert found == pytest.approx(losses, abs=1e-5)
        for one, other in zip(gradients, slopes, strict=True):
            assert float((one - other).norm() / one.norm()) < 1e-5


def finished(config: FinetuneConfig) -> dict:
    return run_finetune(config, resume=True)


@pytest.mark.slow
def test_rank_0_scores_and_all_return_the_results(config):
    config = replace(config, validate_every=2)
    first, second = in_ranks(2, finished, config)
    assert first == second
    assert first["num_cases"] == 8
    assert (config.run_dir / "report.html").is_file()
    assert finished(config) == first  # one process resumes what two have finished
