"""The pixel probe: a linear classifier of pixels over frozen features of several depths."""

import numpy as np
import pytest
import torch
from programs import write_discs
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, log_loss
from torch.nn import functional

from ahm_gym.data import open_data
from ahm_gym.data.draws import EmptyDraw
from ahm_gym.data.labelled import choose_labelled
from ahm_gym.errors import InputError
from ahm_gym.model.encoders import as_encoder, load_encoder
from ahm_gym.segmentation import pixel_classifier
from ahm_gym.segmentation.config import ProbeConfig
from ahm_gym.segmentation.inputs import resolve
from ahm_gym.segmentation.pixel_classifier import (
    DEFAULT_PENALTY,
    Components,
    PixelClassifier,
    Problem,
    choose_penalty,
    fit,
    folds_of,
    logits,
)
from ahm_gym.segmentation.pixel_probe import (
    PixelProbe,
    average_precision,
    by_resolution,
    case_scores,
    depth_maps,
    grid_for,
    pixel_classes,
)

SIZE = (32, 32)


@pytest.fixture(scope="module")
def dataset(discs):
    return open_data(str(discs), image_size=SIZE)


def untrained(model="tiny"):
    return load_encoder(None, model=model, image_size=SIZE, patch_size=8)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fitted(maps, classes, num_classes, penalty):
    components = Components.of(maps)
    problem = Problem(components(maps), components.variances, classes, num_classes)
    return next(fit(problem, [penalty])).after(components)


def test_a_linear_map_of_interpolated_features_interpolates_its_result():
    maps = [noise(2, 4, 4, 5), noise(2, 8, 8, 3, seed=1)]
    weights = [noise(5, 3, seed=2), noise(3, 3, seed=3)]
    bias = noise(3, seed=4)
    features = torch.cat(
        [functional.interpolate(one.permute(0, 3, 1, 2), (8, 8), mode="bilinear") for one in maps], 1
    )
    expected = torch.einsum("bdhw,dk->bkhw", features, torch.cat(weights)) + bias[:, None, None]
    torch.testing.assert_close(logits(maps, weights, bias, (8, 8)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_features", [6, 200])  # more and fewer positions than features
def test_the_classifier_is_that_of_scikit_learn(num_features):
    maps = [noise(3, 6, 6, num_features) * 4 + 7]
    inputs = maps[0].flatten(0, 2)
    scores = 0.2 * inputs @ noise(num_features, 3, seed=1) + noise(108, 3, seed=2)
    classes = (scores - scores.mean(dim=0)).argmax(dim=1)
    found = fitted(maps, classes.view(3, 6, 6), 3, 2.0)(maps, (6, 6)).permute(0, 2, 3, 1).flatten(0, 2)
    # The sum over all pixels is 36 times the sum over the images of their means.
    model = LogisticRegression(C=1 / (36 * 2.0), max_iter=5000, tol=1e-8)
    deviation, centre = torch.std_mean(inputs, dim=0, correction=0)
    expected = model.fit((inputs - centre) / deviation, classes).predict_log_proba(
        (inputs - centre) / deviation
    )
    np.testing.assert_allclose(found.numpy(), expected, atol=0.03)


def test_classes_that_are_linear_in_the_features_are_fitted_and_shuffled_ones_give_chance():
    maps = [noise(12, 8, 8, 4)]
    classes = (maps[0] @ noise(4, 3, seed=1)).argmax(dim=3)
    cases = [str(place) for place in range(6)]

    def score(labels):
        classifier = fitted([maps[0][:6]], labels[:6], 3, 0.001)
        found = case_scores(classifier([maps[0][6:]], (8, 8)).double(), labels[6:], cases)
        return {
            name: np.mean([row[name] for row in found.values()])
            for name in ("ap", "log_loss", "dice", "share")
        }

    exact = score(classes)
    assert exact["ap"] > 0.99 and exact["log_loss"] < 0.1 and exact["dice"] > 0.95
    order = torch.randperm(classes.numel(), generator=torch.Generator().manual_seed(3))
    shuffled = score(classes.flatten()[order].view_as(classes))
    assert shuffled["ap"] == pytest.approx(shuffled["share"], abs=0.06)


def test_the_scores_are_those_of_scikit_learn_also_with_ties():
    probabilities = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    probabilities = ((50 * probabilities).round() / 50).double()
    probabilities = probabilities / probabilities.sum(dim=1, keepdim=True)
    classes = torch.randint(0, 3, (1, 8, 8), generator=torch.Generator().manual_seed(1))
    (row,) = case_scores(probabilities.log(), classes, ["a"]).values()
    for index in (1, 2):
        true, values = (classes == index).flatten(), probabilities[0, index].flatten()
        assert row["ap"][index - 1] == pytest.approx(average_precision_score(true, values))
        assert row["log_loss"][index - 1] == pytest.approx(log_loss(true, values))
        found = probabilities[0].argmax(dim=0).flatten() == index
        assert row["dice"][index - 1] == pytest.approx(
            2 * float((found & true).sum() / (found.sum() + true.sum()))
        )
    assert average_precision(torch.zeros(10), torch.arange(10) < 3) == pytest.approx(0.3)


def test_pixels_are_pooled_over_a_case_and_a_case_without_the_class_has_no_score():
    classes = torch.tensor([[[1, 0]], [[0, 0]], [[0, 0]]])
    scores = torch.tensor([[0.9, 0.4], [0.95, 0.3], [0.5, 0.5]], dtype=torch.float64)[:, None, None]
    found = case_scores(torch.cat((1 - scores, scores), dim=1).log(), classes, ["a", "a", "b"])
    assert found["a"]["ap"] == [0.5] and found["a"]["share"] == [0.25]
    assert found["a"]["dice"] == [pytest.approx(2 * 1 / (2 + 1))]
    assert found["b"] == {"ap": [None], "dice": [None], "log_loss": [None], "share": [None]}


def test_the_grid_has_four_pixels_a_patch_side_and_at_most_32():
    assert grid_for((64, 64), 8) == (32, 32)
    assert grid_for((32, 48), 8) == (16, 24)
    assert grid_for((128, 128), 8) == (32, 32)
    assert grid_for((12, 12), 2) == (12, 12)
    label = torch.zeros(64, 64, dtype=torch.int64)
    label[:32, 32:] = 2
    assert pixel_classes(label, 3, SIZE, (2, 2)).tolist() == [[0, 2], [0, 0]]


def test_maps_of_several_depths_are_taken_once_and_fine_ones_are_averaged():
    images = noise(2, 1, 32, 32)
    encoders = [untrained(name).eval() for name in ("tiny", "unet", "raw_patches")]
    with torch.no_grad():
        vit, unet, raw = (by_resolution(depth_maps(as_encoder(one), images), (16, 16)) for one in encoders)
        finest = encoders[1].encode(images)[0]
    assert [one.shape for one in vit] == [(2, 4, 4, 4 * 128)]
    assert [one.shape[1] for one in unet] == [16, 8, 4, 2]
    assert [one.shape for one in raw] == [(2, 4, 4, 2)]
    torch.testing.assert_close(
        unet[0][..., : finest.shape[1]].permute(0, 3, 1, 2), functional.avg_pool2d(finest, 2)
    )


@pytest.mark.parametrize("model", ["tiny", "unet", "raw_patches"])
def test_discs_are_read_from_every_kind_of_encoder_and_the_encoder_stays_as_it_was(dataset, model):
    encoder = untrained(model).train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    results = PixelProbe(encoder, dataset)(labels=6, seed=1)
    assert encoder.training and all(
        torch.equal(before[name], value) for name, value in encoder.state_dict().items()
    )
    assert results["ap"] > results["per_class"]["1"]["share"] + 0.3
    assert results["ap"] == pytest.approx(np.mean([row["ap"][0] for row in results["cases"].values()]))
    assert (results["labels"], results["num_images"], results["folds"]) == (6, 8, 5)
    assert results["absent_classes"] == [] and results["grid"] == [16, 16]
    assert results == PixelProbe(untrained(model), dataset)(labels=6, seed=1)
    assert results != PixelProbe(untrained(model), dataset)(labels=6, seed=2)


def test_only_the_drawn_images_and_the_test_images_are_encoded_and_each_once(dataset, monkeypatch):
    encoded = []
    probe = PixelProbe(untrained(), dataset)
    own = probe._encode
    monkeypatch.setattr(probe, "_encode", lambda indices: (encoded.extend(indices), own(indices)))
    probe(labels=3)
    assert len(encoded) == 3 + 8 and not set(encoded) & set(dataset.indices("val"))
    probe(labels=3)
    assert len(encoded) == 3 + 8
    with pytest.raises(InputError, match="`labels=99` is out of range"):
        probe(labels=99)


def test_a_class_without_a_labelled_pixel_gets_chance_and_is_named(tmp_path):
    arrays = dict(np.load(write_discs(tmp_path / "discs.npz")))
    drawn = choose_labelled(open_data(str(tmp_path / "discs.npz"), image_size=SIZE), 4, 0)
    undrawn = sorted(set(range(24)) - set(drawn))
    for name, chosen in (("train", undrawn), ("test", range(8))):
        arrays[f"{name}_label"][chosen, :4] = 2
    np.savez(tmp_path / "more.npz", **arrays)
    results = PixelProbe(untrained(), open_data(str(tmp_path / "more.npz"), image_size=SIZE))(labels=4)
    assert results["absent_classes"] == [2] and results["per_class"]["2"]["dice"] == 0.0
    assert results["per_class"]["2"]["ap"] == pytest.approx(results["per_class"]["2"]["share"])
    assert np.isfinite(results["log_loss"]) and results["per_class"]["1"]["ap"] > 0.5
    arrays["train_label"][drawn] = 0
    np.savez(tmp_path / "none.npz", **arrays)
    with pytest.raises(
        EmptyDraw, match="the probe cannot be fitted: none of the 4 drawn labels of none has any"
    ):
        PixelProbe(untrained(), open_data(str(tmp_path / "none.npz"), image_size=SIZE))(labels=4)


def test_probabilities_sum_to_one_also_with_absent_classes():
    present = torch.tensor([True, False, True, False])
    classifier = PixelClassifier([noise(5, 4)], torch.zeros(4), present, 0.01)
    found = classifier([noise(2, 4, 4, 5, seed=1)], (8, 8)).exp()
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2, 8, 8))
    torch.testing.assert_close(found[:, 1], torch.full((2, 8, 8), 0.01))


def test_folds_keep_patients_together_unless_there_is_only_one():
    assert folds_of(["a", "b", "a", "c"]) == [0, 1, 0, 2]
    assert folds_of([str(place) for place in range(7)]) == [0, 1, 2, 3, 4, 0, 1]
    assert folds_of(["a"] * 3) == [0, 1, 2] and folds_of(["a"]) == [0]


def test_cross_validation_chooses_a_strong_penalty_for_noise_and_a_weak_one_for_signal():
    maps = [noise(10, 4, 4, 30)]
    components = Components.of(maps)
    owners = [str(place) for place in range(10)]

    def chosen(classes):
        return choose_penalty(Problem(components(maps), components.variances, classes, 2), owners)

    random = torch.randint(0, 2, (10, 4, 4), generator=torch.Generator().manual_seed(1))
    assert chosen(random)[0] >= 10.0 and chosen((maps[0][..., 0] > 0).long()) == (
        pytest.approx(0.1, rel=10),
        5,
    )
    assert chosen((maps[0][..., 0] > 0).long())[0] <= 1.0
    one = Problem([maps[0][:1]], components.variances, random[:1], 2)
    assert choose_penalty(one, ["a"]) == (DEFAULT_PENALTY, 0)


def test_the_test_split_does_not_choose_the_penalty(tmp_path):
    path = write_discs(tmp_path / "discs.npz")
    arrays = dict(np.load(path))
    arrays["test_label"] = 1 - arrays["test_label"]
    del arrays["val_label"]
    np.savez(tmp_path / "other.npz", **arrays)
    first, second = (
        PixelProbe(untrained(), open_data(str(file), image_size=SIZE))(labels=5)
        for file in (path, tmp_path / "other.npz")
    )
    assert first["penalty"] == second["penalty"] and first["ap"] != second["ap"]


def test_an_unknown_head_and_data_without_test_labels_are_refused(tmp_path):
    with pytest.raises(InputError, match="unknown head 'pixle': did you mean 'pixel'"):
        resolve(ProbeConfig(head="pixle"))
    arrays = dict(np.load(write_discs(tmp_path / "discs.npz")))
    del arrays["test_label"]
    np.savez(tmp_path / "notest.npz", **arrays)
    with pytest.raises(InputError, match="notest has no labelled test images"):
        PixelProbe(untrained(), open_data(str(tmp_path / "notest.npz"), image_size=SIZE))


def test_many_images_are_not_all_used_for_cross_validation(dataset, monkeypatch):
    monkeypatch.setattr(pixel_classifier, "FOLD_IMAGES", 3)
    assert PixelProbe(untrained(), dataset)(labels=8)["folds"] == 3
