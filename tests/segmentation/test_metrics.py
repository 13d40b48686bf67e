import math

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt

from ahm_gym.segmentation.metrics import (
    CaseScores,
    ScoredImage,
    leave_out_absent,
    mean,
    score_case,
    summarise,
)


def rectangle(rows, columns, value=1, size=(24, 20)):
    label = torch.zeros(size, dtype=torch.int64)
    label[rows, columns] = value
    return label


EMPTY = torch.zeros(24, 20, dtype=torch.int64)
LABEL = rectangle(slice(4, 14), slice(3, 13))
PREDICTION = rectangle(slice(6, 17), slice(3, 15))


def overlap(prediction, label):
    found, true = prediction.bool(), label.bool()
    both, either = int((found & true).sum()), int((found | true).sum())
    return 2 * both / int(found.sum() + true.sum()), both / either


def outline_distance_95(prediction, label, spacing):
    """The definition, written out with scipy."""
    masks = [values.bool().numpy() for values in (prediction, label)]
    outlines = [mask & ~np.asarray(binary_erosion(mask)) for mask in masks]
    distances = [np.asarray(distance_transform_edt(~outline, sampling=spacing)) for outline in outlines]
    return max(np.percentile(distances[1][outlines[0]], 95), np.percentile(distances[0][outlines[1]], 95))


def test_dice_and_iou_pool_the_pixels_of_a_case():
    images = [ScoredImage(PREDICTION, LABEL, None), ScoredImage(EMPTY, LABEL, None)]
    pooled = overlap(torch.cat([PREDICTION, EMPTY]), torch.cat([LABEL, LABEL]))
    scores = score_case("patient", images, 2)
    assert (scores.case, scores.images) == ("patient", 2)
    assert (scores.dice[0], scores.iou[0]) == pytest.approx(pooled)


@pytest.mark.parametrize("spacing", [None, (0.5, 2.0)])
def test_hd95_is_the_95th_percentile_of_the_outline_distances_in_the_unit_of_the_spacing(spacing):
    expected = outline_distance_95(PREDICTION, LABEL, spacing or (1.0, 1.0))
    assert score_case("x", [ScoredImage(PREDICTION, LABEL, spacing)], 2).hd95[0] == pytest.approx(expected)


def test_hd95_is_the_mean_over_the_images_that_define_it():
    images = [ScoredImage(PREDICTION, LABEL, None), ScoredImage(LABEL, LABEL, None)]
    expected = outline_distance_95(PREDICTION, LABEL, (1.0, 1.0)) / 2
    assert score_case("x", [*images, ScoredImage(EMPTY, LABEL, None)], 2).hd95[0] == pytest.approx(expected)


@pytest.mark.parametrize(("prediction", "label"), [(EMPTY, LABEL), (LABEL, EMPTY)])
def test_only_one_of_label_and_prediction_empty_is_a_dice_of_0_and_no_distance(prediction, label):
    scores = score_case("x", [ScoredImage(prediction, label, None)], 2)
    assert (scores.dice, scores.iou, scores.hd95) == ([0.0], [0.0], [None])


def test_label_and_prediction_both_empty_are_undefined():
    scores = score_case("x", [ScoredImage(EMPTY, EMPTY, None)], 2)
    assert (scores.dice, scores.iou, scores.hd95) == ([None], [None], [None])


def test_classes_are_scored_apart_and_the_background_is_left_out():
    prediction = LABEL + rectangle(slice(16, 20), slice(3, 9), 2)
    label = LABEL + rectangle(slice(16, 20), slice(3, 6), 2)
    scores = score_case("x", [ScoredImage(prediction, label, None)], 4)
    assert scores.dice == [1.0, pytest.approx(2 * 12 / (24 + 12)), None]


def test_means_are_over_cases_then_classes_and_undefined_values_are_counted():
    cases = [
        CaseScores("a", 1, [0.2, None], [0.1, None], [4.0, None]),
        CaseScores("b", 3, [0.6, 1.0], [0.5, 1.0], [None, None]),
    ]
    summary = summarise(cases, 3)
    assert summary["per_class"]["1"] == pytest.approx({"dice": 0.4, "iou": 0.3, "hd95": 4.0})
    assert summary["per_class"]["2"] == {"dice": 1.0, "iou": 1.0, "hd95": None}
    assert (summary["dice"], summary["iou"], summary["hd95"]) == pytest.approx((0.7, 0.65, 4.0))
    assert summary["undefined"] == {"dice": 1, "iou": 1, "hd95": 3}
    assert summary["num_cases"] == 2
    assert summary["cases"][1] == {
        "case": "b", "images": 3, "dice": [0.6, 1.0], "iou": [0.5, 1.0], "hd95": [None, None]
    }  # fmt: skip


def test_a_class_that_no_label_has_is_left_out():
    cases = [CaseScores("a", 1, [0.2, 0.0], [0.1, 0.0], [4.0, None])]
    assert leave_out_absent(cases, {0, 1}) == [CaseScores("a", 1, [0.2, None], [0.1, None], [4.0, None])]
    assert leave_out_absent(cases, {1, 2}) == cases


def test_the_mean_of_nothing_is_undefined():
    assert mean([]) is None
    assert math.isclose(mean([1.0, 2.0]) or 0.0, 1.5)
