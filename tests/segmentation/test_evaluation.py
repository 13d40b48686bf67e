import numpy as np
import pytest
import torch

from ahm_gym.data import open_data
from ahm_gym.errors import InputError
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.segmentation.evaluation import choose_split, draw_cases, evaluate, group_cases
from ahm_gym.segmentation.metrics import METRICS
from ahm_gym.segmentation.segmenter import Segmenter, predict


class Threshold(Segmenter):
    """Knows the answer: pixels above the middle of the range of brightness are class 1."""

    def forward(self, images):
        bright = images - (images.amin() + images.amax()) / 2
        return torch.cat([-bright, bright], dim=1)


@pytest.fixture(scope="module")
def segmenter():
    return Threshold(build_autoencoder("tiny", image_size=(32, 32), patch_size=8, channels=1).encoder, 2)


def squares(count, first=0):
    """Images with a bright square each, wider from image to image."""
    images = np.zeros((count, 64, 64), np.uint8)
    for number in range(count):
        images[number, 16:48, 8 : 24 + 2 * (first + number)] = 200
    return images


def evaluate_alone(segmenter, dataset, index):
    """The Dice of one image."""
    sample = dataset.sample(index)
    found = predict(segmenter.eval(), dataset.normalise(sample.image), tuple(sample.label.shape)) == 1
    return float(2 * (found & (sample.label == 1)).sum() / (found.sum() + (sample.label == 1).sum()))


def archive(path, ids=("p1_0", "p1_1", "p2_0"), **more):
    test = squares(3)
    label = (test > 0).astype(np.uint8)
    arrays = {
        "train_images": squares(4), "train_label": (squares(4) > 0).astype(np.uint8), "test_images": test,
        "test_label": label, "test_id": np.array(ids),
    }  # fmt: skip
    np.savez(path, **(arrays | more))
    return open_data(str(path), image_size=(32, 32))


def test_images_of_a_patient_are_one_case(tmp_path):
    dataset = archive(tmp_path / "squares.npz")
    first, second, third = dataset.indices("test")
    assert group_cases(dataset, "test") == {"p1": [first, second], "p2": [third]}


def test_a_perfect_segmenter_scores_high_at_the_resolution_of_the_label(segmenter, tmp_path):
    results = evaluate(segmenter, archive(tmp_path / "squares.npz"), "test")
    assert [(entry["case"], entry["images"]) for entry in results["cases"]] == [("p1", 2), ("p2", 1)]
    assert results["dice"] > 0.97 and results["iou"] > 0.95
    assert results["hd95"] <= 1.5
    assert results["hd95_unit"] == "pixels"


def test_native_resolution_is_exact_where_the_answer_is_in_the_pixels(segmenter, tmp_path):
    archive(tmp_path / "squares.npz")
    dataset = open_data(str(tmp_path / "squares.npz"), image_size=(32, 32), native_resolution=True)
    results = evaluate(segmenter, dataset, "test", native_resolution=True)
    assert (results["dice"], results["hd95"]) == (1.0, 0.0)


def test_empty_labels_are_counted_as_undefined(segmenter, tmp_path):
    blank = squares(3)
    label = np.zeros_like(blank)
    label[0] = blank[0] > 0
    dataset = archive(tmp_path / "blank.npz", ids=("a", "b", "c"), test_label=label)
    results = evaluate(segmenter, dataset, "test")
    assert results["undefined"] == {"dice": 0, "iou": 0, "hd95": 0, "nsd": 0}
    assert (results["missed"], results["false_alarms"]) == (0, 2)
    assert [entry["hd95"][0] for entry in results["cases"]][1:] == [pytest.approx(64 * 2**0.5)] * 2
    left_out = evaluate(segmenter, dataset, "test", missed_distance="leave-out")
    assert left_out["undefined"]["hd95"] == 2 and left_out["hd95"] < 2
    assert [entry["dice"][0] for entry in results["cases"]][1:] == [0.0, 0.0]


def test_a_class_that_no_label_of_the_split_has_is_named(segmenter, tmp_path):
    dataset = archive(tmp_path / "three.npz", train_label=2 * (squares(4) > 0).astype(np.uint8))
    results = evaluate(segmenter, dataset, "test")
    assert results["absent_classes"] == [2] and results["dice"] == results["per_class"]["1"]["dice"]
    assert [results["per_class"]["2"][name] for name in METRICS] == [None] * 4
    assert results["class_names"] == {"1": "class 1", "2": "class 2"}


def test_distances_are_in_millimetres_where_every_image_has_a_spacing(segmenter, tmp_path, monkeypatch):
    dataset = archive(tmp_path / "squares.npz", test_label=(squares(3, first=2) > 0).astype(np.uint8))
    in_pixels = evaluate(segmenter, dataset, "test")
    monkeypatch.setitem(dataset._records, "spacing", [[2.0, 2.0]] * len(dataset))
    in_mm = evaluate(segmenter, dataset, "test")
    assert (in_pixels["hd95_unit"], in_mm["hd95_unit"]) == ("pixels", "mm")
    assert in_pixels["hd95"] > 0
    assert in_mm["hd95"] == pytest.approx(2 * in_pixels["hd95"])
    monkeypatch.setitem(dataset._records, "spacing", [[2.0, 2.0]] * (len(dataset) - 1) + [None])
    assert evaluate(segmenter, dataset, "test") == in_pixels


def test_val_stands_in_for_a_test_split_without_labels(tmp_path):
    val = {"val_images": squares(2), "val_label": (squares(2) > 0).astype(np.uint8)}
    both = archive(tmp_path / "both.npz", **val)
    assert choose_split(both) == choose_split(both, "test") == "test" and choose_split(both, "val") == "val"
    with pytest.raises(InputError, match="unknown split 'valid'.*val"):
        choose_split(both, "valid")
    both = dict(np.load(tmp_path / "both.npz"))
    del both["test_label"]
    np.savez(tmp_path / "val.npz", **both)
    only_val = open_data(str(tmp_path / "val.npz"), image_size=(32, 32))
    assert choose_split(only_val) == "val"
    with pytest.raises(InputError, match="`split=test`: val has no labelled test images"):
        choose_split(only_val, "test")


def test_data_without_labels_to_evaluate_on_is_refused(tmp_path):
    np.savez(tmp_path / "train.npz", train_images=squares(2), train_label=(squares(2) > 0).astype(np.uint8))
    dataset = open_data(str(tmp_path / "train.npz"), image_size=(32, 32))
    with pytest.raises(InputError, match="train has no labelled test or val images"):
        choose_split(dataset)


def test_the_picture_goes_from_the_worst_case_to_the_best(segmenter, tmp_path):
    label = (squares(3) > 0).astype(np.uint8)
    label[2] = 0
    dataset = archive(tmp_path / "squares.npz", test_label=label)
    results = {"split": "test", **evaluate(segmenter, dataset, "test")}
    figure = draw_cases(segmenter, dataset, results)
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles[0] == "p2_0\nDice 0.000"
    first, second = dataset.indices("test")[:2]
    own = [evaluate_alone(segmenter, dataset, index) for index in (first, second)]
    assert titles[1] == f"p1_1\nDice {own[1]:.3f}, case {results['cases'][0]['dice'][0]:.3f}", (
        "the larger label"
    )
    assert own[0] < results["cases"][0]["dice"][0] < own[1]
