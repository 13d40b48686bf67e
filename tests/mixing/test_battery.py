import pytest
import torch

from ahm_gym.errors import InputError
from ahm_gym.masking.selection import PatchBatch
from ahm_gym.mixing.battery import BATTERY, Battery, clustering
from ahm_gym.mixing.strategies import STRATEGIES, Strategy, check_strategies
from ahm_gym.model.patch_difficulty import local_variance
from ahm_gym.model.vit import build_autoencoder

IMAGES = torch.randn(6, 1, 32, 48, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def autoencoder():
    return build_autoencoder("tiny", image_size=(32, 48), patch_size=8)


def test_the_losses_are_the_means_over_the_masked_patches_of_each_kind_of_mask(autoencoder):
    battery = Battery(IMAGES, autoencoder)
    found = battery.measure(autoencoder)
    with torch.no_grad():
        losses = torch.stack([autoencoder(IMAGES, masks).loss for masks in battery.masks])
    torch.testing.assert_close(found.losses, losses)
    assert found.loss == pytest.approx(float(losses.mean()))
    assert [int(masks.masked[0].sum()) for masks in battery.masks] == [12, 18, 22, 18, 18]
    assert len(found.losses) == len(BATTERY)


def test_measuring_changes_and_draws_nothing_and_is_always_the_same(autoencoder):
    autoencoder.train()
    before, state = torch.get_rng_state(), [value.clone() for value in autoencoder.state_dict().values()]
    first, second = (Battery(IMAGES, autoencoder).measure(autoencoder) for _ in range(2))
    assert torch.equal(first.losses, second.losses) and first.clustering == second.clustering
    assert torch.equal(before, torch.get_rng_state()) and autoencoder.training
    assert all(map(torch.equal, state, autoencoder.state_dict().values()))


def test_a_battery_needs_images_and_a_target_that_stays(autoencoder):
    with pytest.raises(InputError, match="no images"):
        Battery(IMAGES[:0], autoencoder)
    latent = build_autoencoder("tiny", image_size=(32, 48), patch_size=8, target="latent")
    with pytest.raises(InputError, match="`target=latent` follows a teacher that moves"):
        Battery(IMAGES, latent)


def test_clustering_tells_halves_from_noise_and_from_a_chessboard():
    rows, columns = torch.arange(8)[:, None], torch.arange(8)[None]
    halves, chess = (rows + 0 * columns < 4).float(), ((rows + columns) % 2).float()
    noise = torch.rand(200, 64, generator=torch.Generator().manual_seed(0))
    assert clustering(chess.reshape(1, 64), (8, 8)) == pytest.approx(-1.0)
    assert clustering(halves.reshape(1, 64), (8, 8)) == pytest.approx(
        1 - 2 * 8 / 112
    )  # 8 of 112 edges are across
    assert abs(clustering(noise, (8, 8))) < 0.05
    assert clustering(torch.ones(1, 64), (8, 8)) == 0.0


def test_strategies_score_as_their_kinds_say(autoencoder):
    patches = PatchBatch(IMAGES, autoencoder.embed(IMAGES).detach(), autoencoder.grid, 0.0)
    for kind, strict in (("random", True), ("block", True), ("hard", False), ("textured", False)):
        generators = [torch.Generator().manual_seed(seed) for seed in (0, 0, 1)]
        scores = [Strategy("s", kind=kind).score(patches, autoencoder, one) for one in generators]
        assert torch.equal(scores[0], scores[1]) and scores[0].shape == (6, 24)
        assert not strict or not torch.equal(scores[0], scores[2])
    assert torch.equal(scores[0], local_variance(IMAGES, 8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "hrad"}, "did you mean 'hard'"),
        ({"mask_ratio": 1.0}, "mask ratio 1.0 is out of range"),
        ({"guided_fraction": 2.0}, "guided fraction 2.0"),
        ({"spread_fraction": -1.0}, "spread fraction -1.0"),
        ({"target_fraction": 0.0}, "`target_fraction` is 0.0"),
    ],
)
def test_strategies_out_of_range_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Strategy("s", **settings)


def test_strategies_need_different_names():
    assert check_strategies(STRATEGIES) == STRATEGIES
    with pytest.raises(InputError, match="at least two"):
        check_strategies(STRATEGIES[:1])
    with pytest.raises(InputError, match="two with the name 'random'"):
        check_strategies([Strategy("random"), Strategy("random", mask_ratio=0.5)])
