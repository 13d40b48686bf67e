import numpy as np
import pytest
import torch
from programs import write_discs
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from ahm_gym.data import open_data
from ahm_gym.errors import InputError
from ahm_gym.model.encoders import load_encoder
from ahm_gym.segmentation.probe import (
    BACKGROUND_WEIGHTS,
    Probe,
    choose_map,
    class_dice,
    explained,
    label_fractions,
    mean_dice,
    patch_dice,
    ridge,
    weighted,
)

SIZE = (32, 32)


@pytest.fixture(scope="module")
def dataset(discs):
    return open_data(str(discs), image_size=SIZE)


def untrained():
    return load_encoder(None, image_size=SIZE, patch_size=4)


def test_ridge_gives_what_scikit_learn_gives_for_every_penalty():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(5, 8, 6, generator=generator, dtype=torch.float64) + 3
    targets = torch.randn(5, 8, 2, generator=generator, dtype=torch.float64)
    penalties = torch.tensor([0.01, 1.0, 100.0], dtype=torch.float64)
    for penalty, (weights, bias) in zip(
        penalties, zip(*ridge(features, targets, penalties), strict=True), strict=True
    ):
        expected = Ridge(alpha=float(penalty)).fit(features.flatten(0, 1), targets.flatten(0, 1))
        np.testing.assert_allclose(weights.T.numpy(), expected.coef_, atol=1e-9)
        np.testing.assert_allclose(bias.numpy(), expected.intercept_, atol=1e-9)


def test_patch_dice_is_pooled_over_a_case_and_then_the_mean_over_the_cases():
    def as_fractions(rows):
        return torch.nn.functional.one_hot(torch.tensor(rows), 4).double()

    true = as_fractions([[0, 0, 1, 1], [0, 0, 0, 0], [2, 1, 1, 1]])
    found = as_fractions([[0, 1, 1, 0], [1, 1, 0, 0], [0, 1, 1, 1]])
    cases = patch_dice(found, true, ["a", "a", "b"])
    assert cases == {"a": [2 * 1 / 6, None, None], "b": [1.0, 0.0, None]}
    assert class_dice(cases) == [pytest.approx((1 / 3 + 1.0) / 2), 0.0, None]
    # What is found where nothing is stays undefined, for all encoders alike.
    assert patch_dice(found[1:2], true[1:2], ["a"]) == {"a": [None, None, None]}
    assert mean_dice(cases) == pytest.approx((2 / 3 + 0.0) / 2)


def test_structures_that_a_shrunk_prediction_loses_are_found_by_a_smaller_weight_of_background():
    true = torch.nn.functional.one_hot(torch.tensor([[0, 0, 0, 1], [0, 2, 0, 0]]), 3).double()
    shrunk = 0.3 * true + 0.7 * true.mean(dim=(0, 1))
    cases = ["a", "b"]
    assert mean_dice(patch_dice(shrunk, true, cases)) == 0.0
    index, weight, score = choose_map([0.0 * shrunk, shrunk], true, cases)
    assert (index, score) == (1, 1.0) and weight in BACKGROUND_WEIGHTS and weight < 1.0
    assert mean_dice(patch_dice(weighted(shrunk, weight), true, cases)) == 1.0


def test_label_fractions_are_the_area_shares_of_the_patches():
    label = torch.randint(0, 3, (32, 48), generator=torch.Generator().manual_seed(0))
    shares = label_fractions(label, 3, (32, 48), 16)
    assert shares.shape == (6, 3)
    last = label[16:, 32:]
    assert shares[5].tolist() == pytest.approx([float((last == index).float().mean()) for index in range(3)])


def test_label_fractions_of_a_larger_label_follow_the_centre_crop_of_its_image():
    label = torch.zeros(128, 256, dtype=torch.int64)
    label[:, 64:96] = 1
    shares = label_fractions(label, 2, (32, 32), 8)[:, 1].view(4, 4)
    assert torch.allclose(shares[:, 0], torch.ones(4), atol=0.07)
    assert torch.allclose(shares[:, 2:], torch.zeros(4, 2), atol=1e-6)
    assert torch.allclose(label_fractions(label, 2, (32, 32), 8).sum(dim=1), torch.ones(16))


def test_the_probe_reads_bright_discs_and_leaves_the_encoder_as_it_was(dataset):
    encoder = untrained().train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    results = Probe(encoder, dataset)(labels=10, seed=1)
    assert encoder.training
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    assert results["patch_dice"] > 0.85
    assert results["per_class"] == {"1": results["patch_dice"]}
    assert np.mean([dice for (dice,) in results["cases"].values()]) == pytest.approx(results["patch_dice"])
    assert (results["labels"], results["num_images"]) == (10, 8)
    assert results["val_patch_dice"] > 0.85
    assert results == Probe(untrained(), dataset)(labels=10, seed=1)


def test_val_images_without_a_patch_of_foreground_are_refused(tmp_path):
    arrays = dict(np.load(write_discs(tmp_path / "discs.npz")))
    arrays["val_label"][:] = 0
    arrays["val_label"][:, 16, 16] = 1
    np.savez(tmp_path / "dots.npz", **arrays)
    dots = open_data(str(tmp_path / "dots.npz"), image_size=SIZE)
    with pytest.raises(InputError, match="no patch of dots's labelled val images is mostly foreground"):
        Probe(untrained(), dots)(labels=4)


def test_every_image_is_encoded_only_once_for_several_choices(dataset, monkeypatch):
    encoded = []
    probe = Probe(untrained(), dataset)
    own = probe._encode
    monkeypatch.setattr(probe, "_encode", lambda indices: (encoded.extend(indices), own(indices)))
    scores = {probe(labels=6, seed=seed)["patch_dice"] for seed in range(6)}
    assert len(encoded) == len(set(encoded)) and len(scores) > 1


def test_the_explained_variance_is_that_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    true, found = (torch.rand(4, 6, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = r2_score(true.flatten(0, 1)[:, 1:], found.flatten(0, 1)[:, 1:])
    assert explained(found, true) == pytest.approx(expected)
    assert explained(true, true) == 1.0
    true[..., 2] = 0.0
    assert explained(true, true) == 1.0  # of the class that is there


def test_uninformative_features_get_a_low_patch_dice(dataset):
    encoder = untrained()
    for parameter in encoder.patch_embed.parameters():
        torch.nn.init.zeros_(parameter)
    blind = Probe(encoder, dataset)(labels=10)
    seeing = Probe(untrained(), dataset)(labels=10)
    assert blind["patch_dice"] < seeing["patch_dice"] - 0.15


def test_the_test_split_does_not_choose_the_penalty(tmp_path):
    path = write_discs(tmp_path / "discs.npz")
    arrays = dict(np.load(path))
    arrays["test_label"] = 1 - arrays["test_label"]
    np.savez(tmp_path / "other.npz", **arrays)
    first, second = (
        Probe(untrained(), open_data(str(file), image_size=SIZE))(labels=5)
        for file in (path, tmp_path / "other.npz")
    )
    assert first["patch_dice"] != second["patch_dice"]
    for chosen in ("lambda", "background_weight", "val_patch_dice"):
        assert first[chosen] == second[chosen]


def test_data_without_validation_labels_is_refused(tmp_path):
    arrays = dict(np.load(write_discs(tmp_path / "discs.npz")))
    del arrays["val_label"]
    np.savez(tmp_path / "novals.npz", **arrays)
    with pytest.raises(InputError, match="novals has no labelled val images"):
        Probe(untrained(), open_data(str(tmp_path / "novals.npz"), image_size=SIZE))


def test_real_ultrasound_is_readable_from_untrained_features(shared_data):
    dataset = open_data("hc18_128.npz", root=shared_data, image_size=(64, 64))
    encoder = load_encoder(None, image_size=(64, 64), patch_size=8)
    results = Probe(encoder, dataset)(labels=20)
    assert 0.7 < results["patch_dice"] < 0.85
