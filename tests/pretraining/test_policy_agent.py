"""A mask policy as an agent, and an agent as a mask policy."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from programs import write_discs
from safetensors.torch import load_file

from ahm_gym.agents import agent_class, make_agent
from ahm_gym.agents.base import update_metrics
from ahm_gym.errors import InputError
from ahm_gym.masking.masks import Masks
from ahm_gym.masking.selection import PatchBatch
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.policies import make_policy
from ahm_gym.policies.random import RandomPolicy
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.pretraining.policy_agent import PolicyAgent
from ahm_gym.pretraining.run import pretrain
from ahm_gym.pretraining.trained_agent import FrozenAgent
from ahm_gym.pretraining.training import Training


def first_half(self, patches, masks, generator):
    """Weight 0 for half of the masked patches of each image."""
    early = masks.masked.cumsum(dim=1) <= masks.masked.sum(dim=1, keepdim=True) // 2
    return masks.weight.masked_fill(~early, 0.0)


def test_the_weights_of_a_policy_reach_the_update_its_metrics_and_what_it_observes(tmp_path, monkeypatch):
    discs, seen = write_discs(tmp_path / "discs.npz"), []

    def observe(self, patches, masks, patch_loss):
        seen.append(masks)
        assert torch.equal(patch_loss > 0, masks.masked)
        return {"policy/own": float((masks.weight * patch_loss).sum() / masks.weight.sum())}

    def weights_of_run(name):
        settings = {"policy": "random", "steps": 2, "image_size": (32,), "batch_size": 4, "device": "cpu"}
        run = pretrain(PretrainConfig(data=str(discs), run_dir=tmp_path / name, **settings))
        return [
            value
            for path in sorted((run / "encoder").glob("*.safetensors"))
            for value in load_file(path).values()
        ]

    monkeypatch.setattr(RandomPolicy, "observe", observe)
    plain, same = weights_of_run("plain"), weights_of_run("same")
    monkeypatch.setattr(RandomPolicy, "weigh", first_half)
    weighted = weights_of_run("weighted")
    assert all(map(torch.equal, plain, same)) and not all(map(torch.equal, plain, weighted))
    assert all(torch.equal(masks.weight, masks.masked.float()) for masks in seen[:4])
    assert all(masks.weight.sum() == masks.masked.sum() / 2 for masks in seen[4:]) and len(seen) == 6
    metrics = (tmp_path / "weighted" / "metrics.jsonl").read_text()
    rows = [row for row in map(json.loads, metrics.splitlines()) if "policy/own" in row]
    assert rows and all(row["loss"] == pytest.approx(row["policy/own"], rel=1e-5) for row in rows)


def test_the_loss_of_an_update_is_the_weighted_mean():
    mask = np.array([[True, True, False]])
    info = {"mask": mask, "guided": mask, "patch_loss": np.array([[1.0, 3.0, 0.0]], dtype=np.float32)}
    assert update_metrics(info, np.ones(1))["loss"] == 2.0
    weight = np.array([[3.0, 1.0, 0.0]], dtype=np.float32)
    assert update_metrics(info | {"weight": weight}, np.ones(1))["loss"] == 1.5


@pytest.mark.parametrize("policy", ["random", "a3c", "agent"])
def test_a_share_of_the_masked_patches_does_not_go_with_weights_of_the_policy(
    discs, tmp_path, monkeypatch, policy
):
    config = PretrainConfig(data=str(discs), policy=policy, image_size=(32,), batch_size=4, steps=2)
    if policy == "agent":
        run = pretrain(dataclasses.replace(config, policy="a3c", run_dir=tmp_path / "trained"))
        config = dataclasses.replace(config, policy=f"agent:{run}")
    config = dataclasses.replace(config, target_fraction=0.5)
    training = Training(config)
    assert training.env.target_fraction == 0.5 and training.env.weigh is None
    training.close()
    monkeypatch.setattr(RandomPolicy if policy == "random" else agent_class("a3c"), "weigh", first_half)
    with pytest.raises(InputError, match="`target_fraction=0.5` sets the weights.*leave one of the two out"):
        Training(config)
    Training(dataclasses.replace(config, target_fraction=1.0)).close()


def test_a_frozen_agent_weighs_and_shares_as_its_agent_does(monkeypatch):
    autoencoder = build_autoencoder("tiny", image_size=(32, 32))
    agent = make_agent("a3c", (16, autoencoder.dim))
    masks = Masks.of(torch.arange(16)[None] < 12)
    patches = PatchBatch(torch.zeros(1, 1, 32, 32), torch.zeros(1, 16, autoencoder.dim), (4, 4), 0.0)
    frozen = FrozenAgent(agent, autoencoder)
    assert torch.equal(frozen.weigh(patches, masks, torch.Generator()), masks.weight)
    monkeypatch.setattr(type(agent), "weigh", first_half)
    back = PolicyAgent(frozen)
    assert back.weigh(patches, masks, torch.Generator()).sum() == 6
    assert back.guided_fraction is agent.guided_fraction and back.spread_fraction is agent.spread_fraction


def test_a_policy_as_an_agent_refuses_to_score_observations():
    agent = PolicyAgent(make_policy("random", build_autoencoder("tiny", image_size=(32, 32))))
    assert (agent.guided_fraction, agent.spread_fraction, agent.reward) == (1.0, 0.0, "relative")
    with pytest.raises(InputError, match="call score"):
        agent.act(torch.zeros(1, 16, 128), deterministic=True)
