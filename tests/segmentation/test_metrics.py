import math

import numpy as np
import pytest
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.meandice import compute_dice
from monai.metrics.meaniou import compute_iou
from monai.metrics.surface_dice import compute_surface_dice
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter
from torch.nn.functional import one_hot

from ahm_gym.segmentation.metrics import (
    CaseScores,
    ScoredImage,
    around,
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


def test_distances_are_means_over_the_images():
    images = [ScoredImage(PREDICTION, LABEL, None), ScoredImage(LABEL, LABEL, None)]
    images += [ScoredImage(EMPTY, LABEL, None), ScoredImage(EMPTY, EMPTY, None)]
    distance = outline_distance_95(PREDICTION, LABEL, (1.0, 1.0))
    scores = score_case("x", images, 2)
    assert scores.hd95[0] == pytest.approx((distance + 0 + math.hypot(24, 20)) / 3)
    left_out = score_case("x", images, 2, missed_distance="leave-out")
    assert left_out.hd95[0] == pytest.approx(distance / 2)
    assert left_out.nsd == scores.nsd and (scores.missed, scores.false_alarms) == ([1], [0])


@pytest.mark.parametrize(("prediction", "label"), [(EMPTY, LABEL), (LABEL, EMPTY)])
def test_only_one_of_label_and_prediction_empty_is_counted_and_as_far_off_as_can_be(prediction, label):
    image = ScoredImage(prediction, label, (2.0, 0.5))
    scores = score_case("x", [image], 2)
    assert (scores.dice, scores.iou, scores.nsd) == ([0.0], [0.0], [0.0])
    assert scores.hd95 == [pytest.approx(math.hypot(24 * 2.0, 20 * 0.5))]
    assert (scores.missed, scores.false_alarms) == ([int(label.any())], [int(prediction.any())])
    assert score_case("x", [image], 2, missed_distance="leave-out").hd95 == [None]


def volumes(seed=0, size=(20, 24, 9)):
    """A prediction and a label of three classes in blobs, one of them at the border."""
    noise = np.random.default_rng(seed).normal(size=(2, *size))
    fields = [gaussian_filter(one, 2) for one in noise]
    mixed = (fields[0], 0.8 * fields[0] + 0.4 * fields[1])
    return tuple(torch.from_numpy(np.digitize(one, np.quantile(one, (0.7, 0.9)))) for one in mixed)


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
@pytest.mark.parametrize("spacing", [None, (0.7, 0.7, 5.0)])
@pytest.mark.parametrize("tolerance", [0.0, 1.0, 2.5])
def test_a_volume_has_the_scores_that_monai_gives_the_whole_array(spacing, tolerance):
    prediction, label = volumes()
    scores = score_case("x", [ScoredImage(prediction, label, spacing)], 3, surface_tolerance=tolerance)
    found, true = (one_hot(values, 3).permute(3, 0, 1, 2)[None] for values in (prediction, label))
    voxel = list(spacing or (1.0, 1.0, 1.0))
    assert scores.dice == pytest.approx(compute_dice(found, true, include_background=False)[0].tolist())
    assert scores.iou == pytest.approx(compute_iou(found, true, include_background=False)[0].tolist())
    distance = compute_hausdorff_distance(found, true, percentile=95, spacing=voxel)
    assert scores.hd95 == pytest.approx(distance[0].tolist()) and min(distance[0]) > 0
    share = compute_surface_dice(found, true, class_thresholds=[tolerance] * 2, spacing=voxel)
    assert scores.nsd == pytest.approx(share[0].tolist()) and 0 < share.min() and share.max() < 1


def test_empty_surroundings_change_no_score_and_are_not_given_to_monai():
    prediction, label = volumes()
    wide = [torch.nn.functional.pad(values, (3, 60, 40, 40, 50, 0)) for values in (prediction, label)]
    alone, padded = (
        score_case("x", [ScoredImage(*pair, (1.0, 2.0, 3.0))], 3) for pair in ((prediction, label), wide)
    )
    assert alone == padded
    found, true = around(wide[0] > 1, wide[1] > 1)
    assert found.shape == true.shape and found.numel() < wide[0].numel() / 20
    assert found.sum() == (wide[0] > 1).sum() and true.sum() == (wide[1] > 1).sum()


def test_the_diagonal_is_that_of_the_whole_volume():
    image = ScoredImage(
        torch.zeros(3, 4, 2).byte(), torch.ones(3, 4, 2).byte(), (1.0, 2.0, 3.0), num_slices=10
    )
    assert score_case("x", [image], 2).hd95 == [pytest.approx(math.sqrt(3**2 + 8**2 + 30**2))]


def test_label_and_prediction_both_empty_are_undefined():
    scores = score_case("x", [ScoredImage(EMPTY, EMPTY, None)], 2)
    assert (scores.dice, scores.iou, scores.hd95, scores.nsd) == ([None], [None], [None], [None])
    assert (scores.missed, scores.false_alarms) == ([0], [0])


def test_classes_are_scored_apart_and_the_background_is_left_out():
    prediction = LABEL + rectangle(slice(16, 20), slice(3, 9), 2)
    label = LABEL + rectangle(slice(16, 20), slice(3, 6), 2)
    scores = score_case("x", [ScoredImage(prediction, label, None)], 4)
    assert scores.dice == [1.0, pytest.approx(2 * 12 / (24 + 12)), None]


def test_means_are_over_cases_then_classes_and_undefined_values_are_counted():
    cases = [
        CaseScores("a", 1, [0.2, None], [0.1, None], [4.0, None], [0.5, None], [0, 0], [2, 0]),
        CaseScores("b", 3, [0.6, 1.0], [0.5, 1.0], [None, None], [0.7, None], [1, 0], [1, 3]),
    ]
    summary = summarise(cases, 3)
    assert summary["per_class"]["1"] == pytest.approx(
        {"dice": 0.4, "iou": 0.3, "hd95": 4.0, "nsd": 0.6, "missed": 1, "false_alarms": 3}
    )
    assert summary["per_class"]["2"] == {
        "dice": 1.0, "iou": 1.0, "hd95": None, "nsd": None, "missed": 0, "false_alarms": 3
    }  # fmt: skip
    assert (summary["dice"], summary["iou"], summary["hd95"]) == pytest.approx((0.7, 0.65, 4.0))
    assert (summary["missed"], summary["false_alarms"]) == (1, 6)
    assert summary["undefined"] == {"dice": 1, "iou": 1, "hd95": 3, "nsd": 2}
    assert summary["num_cases"] == 2
    assert summary["cases"][1] == {
        "case": "b", "images": 3, "dice": [0.6, 1.0], "iou": [0.5, 1.0], "hd95": [None, None], "nsd": [0.7, None],
        "missed": [1, 0], "false_alarms": [1, 3],
    }  # fmt: skip


def test_a_class_that_no_label_has_is_left_out():
    counts = [0, 0], [0, 1]
    cases = [CaseScores("a", 1, [0.2, 0.0], [0.1, 0.0], [4.0, 9.0], [0.3, 0.0], *counts)]
    left = CaseScores("a", 1, [0.2, None], [0.1, None], [4.0, None], [0.3, None], *counts)
    assert leave_out_absent(cases, {0, 1}) == [left]
    assert leave_out_absent(cases, {1, 2}) == cases


def test_the_mean_of_nothing_is_undefined():
    assert mean([]) is None
    assert math.isclose(mean([1.0, 2.0]) or 0.0, 1.5)
