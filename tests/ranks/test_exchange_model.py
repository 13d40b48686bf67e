"""The model by which `benchmarks/ranks.py` predicts how long several ranks take."""

from __future__ import annotations

import importlib.util
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from ranks import in_ranks

from ahm_gym.model.vit import build_autoencoder
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.pretraining.run import pretrain

SPEC = importlib.util.spec_from_file_location(
    "exchange_model", Path(__file__).resolve().parents[2] / "benchmarks" / "exchange_model.py"
)
assert SPEC is not None and SPEC.loader is not None
model = sys.modules["exchange_model"] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(model)

LINK = model.Link(1e-5, 1e9)
STOP = ("all_reduce", 1)


@pytest.mark.parametrize("num_ranks", [2, 4, 7])
def test_a_ring_moves_what_each_rank_sends(num_ranks):
    """The ring itself, part by part: after one way round a rank has the sum of a part, after two it has all sums."""
    known = [[{(rank, part)} for part in range(num_ranks)] for rank in range(num_ranks)]
    whole = [{(rank, part) for rank in range(num_ranks)} for part in range(num_ranks)]
    steps = 0
    while any(known[rank] != whole for rank in range(num_ranks)):
        parts = [(rank - steps) % num_ranks for rank in range(num_ranks)]
        sending = [known[rank][part] for rank, part in enumerate(parts)]
        for rank, part in enumerate(parts):
            known[(rank + 1) % num_ranks][part] = known[(rank + 1) % num_ranks][part] | sending[rank]
        steps += 1
    messages, size = model.messages_of(("all_reduce", 70), num_ranks)
    assert (messages, size) == (steps, 70 / num_ranks)
    assert messages * size == pytest.approx(model.sent([("all_reduce", 70)], num_ranks))
    assert 2 * model.sent([("all_gather", 70)], num_ranks) == pytest.approx(messages * size)


def test_seconds_are_those_of_the_work_the_exchange_and_the_turns():
    work, exchanges = model.Work(0.1, 0.01, 0.001), [("all_reduce", 10**9), ("broadcast", 10**9)]
    assert model.predicted(work, LINK, exchanges, 64, 1) == pytest.approx(0.1 + 0.64 + 0.064)
    exchanged = 2 * 7 * (1e-5 + 1 / 8) + 3 * (1e-5 + 1)
    assert model.predicted(work, LINK, exchanges, 64, 8) == pytest.approx(0.1 + 0.08 + 0.064 + exchanged)
    assert model.predicted(work, LINK, [], 64, 4, cores=2) == pytest.approx(2 * (0.1 + 0.16 + 0.064))
    fast = model.Link(0.0, math.inf)
    assert model.predicted(model.Work(0.1, 0.01, 0.0, least=0.5), fast, exchanges, 64, 64) == 0.5


def test_constants_are_found_again():
    work, exchanges = model.Work(0.1, 0.01, 0.001), [("all_reduce", 10**8)]
    rows = [
        {"batch": batch, "ranks": ranks, "seconds": model.predicted(work, LINK, exchanges, batch, ranks, 2)}
        for batch, ranks in ((32, 1), (128, 1), (128, 2), (128, 4))
    ]
    found = model.fitted(rows, [exchanges] * 4, LINK, 2, "seconds")
    assert (found.update, found.own, found.whole) == pytest.approx((0.1, 0.01, 0.001))
    sizes = (4, 10**8)
    seconds = [LINK.seconds(("all_reduce", size), 4) for size in sizes]
    link = model.link_of(sizes, [*seconds, seconds[1] + 0.05], 4)
    assert (link.latency, link.bandwidth, link.copying) == pytest.approx((1e-5, 1e9, 5e-10), rel=1e-3)
    gradients, image = (link.seconds((name, 10**8), 4) for name in ("all_reduce", "broadcast"))
    assert gradients == pytest.approx(seconds[1] + 0.05, rel=1e-3)
    assert image == pytest.approx(2 * (1e-5 + 0.1), rel=1e-3)


def exchanged(config: PretrainConfig) -> list[tuple[str, int]]:
    """What a rank exchanges in the second update of a run, sorted."""
    with model.counted() as found:
        pretrain(config)
    first, second = [place for place, exchange in enumerate(found) if exchange == STOP][:2]
    return sorted(found[first + 1 : second + 1])


@pytest.mark.parametrize(
    ("policy", "reward", "more"),
    [
        ("a3c", "progress", {"reward": "progress"}),
        pytest.param("a3c", "advantage", {"reward": "advantage"}, marks=pytest.mark.slow),
        pytest.param("hard_patches", None, {"features": 128}, marks=pytest.mark.slow),
        pytest.param("random", None, {}, marks=pytest.mark.slow),
    ],
)
def test_a_run_exchanges_what_the_model_says(discs, tmp_path, policy, reward, more):
    config = PretrainConfig(
        data=str(discs),
        image_size=32,
        steps=3,
        batch_size=8,
        device="cpu",
        policy=policy,
        run_dir=tmp_path / "run",
    )
    network = build_autoencoder("tiny", image_size=(32, 32), patch_size=8)
    parameters = sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
    expected = model.exchanges_of_an_update(parameters, 32 * 32, 16, 8, **more)
    for found in in_ranks(2, exchanged, replace(config, reward=reward)):
        assert found == sorted(expected)
