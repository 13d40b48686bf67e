import dataclasses

import numpy as np
import pytest
import torch
from pretraining_runs import comparable
from programs import assert_same, final_state

from ahm_gym.data import BatchStream
from ahm_gym.device.choice import count_data_workers
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.pretraining.run import pretrain
from ahm_gym.pretraining.training import Training


def test_pretraining_sees_the_train_split_only(config, discs, tmp_path):
    arrays = dict(np.load(discs))
    for split in ("val", "test"):
        arrays[f"{split}_images"] = np.zeros_like(arrays[f"{split}_images"])
    np.savez_compressed(tmp_path / "other.npz", **arrays)
    first = pretrain(dataclasses.replace(config, policy="random"))
    second = pretrain(
        dataclasses.replace(
            config, policy="random", data=str(tmp_path / "other.npz"), run_dir=tmp_path / "second"
        )
    )
    assert_same(final_state(first)["pretrainer"], final_state(second)["pretrainer"])


@pytest.mark.parametrize("crop", ["centre", "contrast"])
def test_the_crops_of_the_settings_reach_the_batches(config, crop):
    config = dataclasses.replace(config, policy="random", crop=crop)
    training = Training(config)
    training.env.reset(seed=5)
    expected = next(
        BatchStream(training.dataset, batch_size=config.batch_size, image_size=(32, 32), seed=5, crop=crop)
    )
    assert torch.equal(training.env.patches.images, expected)


@pytest.mark.parametrize("crop", ["uniform", "contrast"])
def test_loading_processes_change_nothing(config, tmp_path, crop):
    config = dataclasses.replace(config, policy="random", steps=3, crop=crop)
    alone = pretrain(config)
    helped = pretrain(dataclasses.replace(config, data_workers=1, run_dir=tmp_path / "helped"))
    assert_same(final_state(alone), final_state(helped))


def test_a_run_can_start_from_published_weights(config, tmp_path):
    published = build_autoencoder("tiny", image_size=(32, 32), seed=7).state_dict()
    torch.save({"model": published}, tmp_path / "mae.pth")
    config = dataclasses.replace(
        config, init=tmp_path / "mae.pth", policy="random", steps=1, learning_rate=1e-9
    )
    saved = final_state(pretrain(config))["pretrainer"]["autoencoder"]
    for key, value in published.items():
        torch.testing.assert_close(saved[key], value, atol=1e-6, rtol=0)


def test_normalised_targets_change_the_loss(config, tmp_path):
    config = dataclasses.replace(config, policy="random", steps=1)
    raw = comparable(pretrain(config))
    normalised = comparable(
        pretrain(dataclasses.replace(config, target="normalised", run_dir=tmp_path / "normalised"))
    )
    assert raw[0]["val/loss"] != normalised[0]["val/loss"]


def test_an_agent_gets_the_given_reward_or_else_its_own(config, tmp_path):
    def reward_of(**options):
        return Training(dataclasses.replace(config, **options)).describe()["reward"]

    assert reward_of(policy="a3c") == "progress"
    assert reward_of(policy="a3c", reward="loss") == "loss"
    assert reward_of(policy="ppo") == reward_of(policy="random") == "relative"
    source = pretrain(dataclasses.replace(config, policy="random", steps=1, run_dir=tmp_path / "source"))
    assert reward_of(policy="a3c", reconstructor=source) == "relative"


@pytest.mark.parametrize(
    ("asked", "device", "threads", "expected"),
    [(None, "cpu", 16, 0), (None, "cuda", 16, 8), (None, "cuda", 3, 3), (2, "cpu", 1, 2), (0, "cuda", 16, 0)],
)
def test_extra_processes_load_images_only_for_a_gpu_unless_asked_for(
    asked, device, threads, expected, monkeypatch
):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert count_data_workers(asked, torch.device(device)) == expected
