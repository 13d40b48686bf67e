"""Tests that ignored label pixels count neither in a loss nor in any score, and are seen in pictures."""

from __future__ import annotations

import json

import matplotlib.contour
import numpy as np
import pytest
import torch
from image_folders import write
from monai.losses.dice import DiceCELoss
from programs import write_discs

from ahm_gym.data import open_data
from ahm_gym.data.ignored import IGNORED
from ahm_gym.look.config import LookConfig
from ahm_gym.look.counts import count_classes
from ahm_gym.look.program import run_look
from ahm_gym.model.decoders import SegmentationLoss
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.segmentation.config import FinetuneConfig, ProbeConfig
from ahm_gym.segmentation.evaluation import evaluate, own_dice
from ahm_gym.segmentation.finetune import finetune
from ahm_gym.segmentation.inputs import resolve
from ahm_gym.segmentation.metrics import ScoredImage, score_case
from ahm_gym.segmentation.overlays import Overlay, draw_overlays
from ahm_gym.segmentation.pixel_classifier import Problem, fit
from ahm_gym.segmentation.pixel_probe import case_scores, pixel_classes
from ahm_gym.segmentation.probe import counted, label_fractions, patch_dice
from ahm_gym.segmentation.probe_run import run_probe
from ahm_gym.segmentation.segmenter import build_segmenter
from ahm_gym.segmentation.validation import dice_on


def random_batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 8, 8, generator=generator)
    return logits, torch.randint(0, 3, (2, 1, 8, 8), generator=generator)


def test_the_loss_is_that_of_the_other_pixels_and_ignored_ones_have_no_gradient():
    logits, labels = random_batch()
    expected = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False, batch=True)
    torch.testing.assert_close(SegmentationLoss()(logits, labels), expected(logits, labels))
    masked = labels.clone()
    masked[..., 4:] = IGNORED
    logits.requires_grad_()
    loss = SegmentationLoss()(logits, masked)
    torch.testing.assert_close(loss, expected(logits[..., :4], labels[..., :4]))
    loss.backward()
    assert (logits.grad[..., 4:] == 0).all() and (logits.grad[..., :4] != 0).all()


def test_a_batch_of_ignored_pixels_alone_teaches_nothing():
    logits, labels = random_batch()
    logits.requires_grad_()
    loss = SegmentationLoss()(logits, torch.full_like(labels, IGNORED))
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()


@pytest.mark.parametrize("size", [(20, 24), (12, 14, 6)])
def test_scores_leave_out_ignored_pixels_in_prediction_and_label(size):
    generator = torch.Generator().manual_seed(1)
    prediction, label = (torch.randint(0, 3, size, generator=generator).byte() for _ in range(2))
    ignored = torch.rand(size, generator=generator) < 0.3
    spacing = (1.0, 2.0, 3.0)[: len(size)]
    cut = [torch.where(ignored, 0, values) for values in (prediction, label)]
    label[ignored] = IGNORED
    found = score_case("x", [ScoredImage(prediction, label, spacing)], 3)
    assert found == score_case("x", [ScoredImage(*cut, spacing)], 3)
    true = (label == 1) & ~ignored
    both = (prediction == 1) & true
    expected = 2 * both.sum() / (true.sum() + ((prediction == 1) & ~ignored).sum())
    assert found.dice[0] == pytest.approx(float(expected))


def test_what_is_found_only_where_pixels_are_ignored_is_no_false_alarm():
    label, prediction = torch.zeros(8, 8).byte(), torch.zeros(8, 8).byte()
    label[2:4, 2:4], prediction[2:4, 2:4] = IGNORED, 1
    scores = score_case("x", [ScoredImage(prediction, label, None)], 2)
    assert (scores.dice, scores.false_alarms) == ([None], [0])
    assert own_dice(prediction.int(), label.int(), {1}) is None


def test_the_shares_of_a_patch_are_those_of_what_is_known():
    label = torch.zeros(8, 8, dtype=torch.int64)
    label[:4, :2], label[:4, 2:4] = 1, IGNORED  # half of the first patch is known, all of it class 1
    label[4:, :4] = IGNORED  # nothing is known of the third
    shares = label_fractions(label, 2, (8, 8), 4)
    assert shares.tolist() == [[0, 1], [1, 0], [0, 0], [1, 0]]


def test_patches_of_which_nothing_is_known_do_not_count():
    fractions = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]])
    predicted = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])
    assert patch_dice(predicted, fractions, ["a"]) == {"a": [1.0]}
    values, known = counted(predicted, fractions)
    assert values.tolist() == known.tolist() == [[[1, 0], [0, 1]]]


def test_the_pixel_probe_leaves_ignored_pixels_out():
    label = torch.zeros(8, 8, dtype=torch.int64)
    label[:4, :4], label[4:, :4] = IGNORED, 1
    classes = pixel_classes(label, 2, (8, 8), (2, 2))
    assert classes.tolist() == [[IGNORED, 0], [1, 0]]
    scores = torch.log(torch.tensor([[[[0.1, 0.9], [0.2, 0.8]], [[0.9, 0.1], [0.8, 0.2]]]]))
    found = case_scores(scores, classes[None], ["a"])["a"]
    assert (found["dice"], found["ap"], found["share"]) == ([1.0], [1.0], [pytest.approx(1 / 3)])


def test_the_classifier_is_fitted_to_the_other_pixels():
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(4, 4, 4, 3, generator=generator)]
    classes = (maps[0][..., 0] > 0).long()
    variances = [torch.ones(3)]
    wrong = classes.clone()
    wrong[:, 2:] = 1 - wrong[:, 2:]
    masked = classes.clone()
    masked[:, 2:] = IGNORED

    def accuracy(given: torch.Tensor) -> float:
        classifier = next(fit(Problem(maps, variances, given, 2), [0.1]))
        return float((classifier(maps, (4, 4)).argmax(dim=1) == classes).float().mean())

    assert accuracy(masked) > 0.9 > accuracy(wrong)


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    """Discs as a folder, whose labels have a rim of 255 that a description ignores."""
    folder = tmp_path_factory.mktemp("data")
    arrays = np.load(write_discs(folder / "discs.npz"))
    splits = {}
    for split in ("train", "val", "test"):
        for number, (image, label) in enumerate(
            zip(arrays[f"{split}_images"], arrays[f"{split}_label"], strict=True)
        ):
            name = f"{split}{number:02d}"
            splits.setdefault(split, []).append(name)
            grown = np.zeros_like(label)
            for rows, columns in ((0, 1), (0, -1), (1, 0), (-1, 0)):
                grown |= np.roll(label, (rows, columns), (0, 1))
            write(folder / "i" / f"{name}.png", image)
            write(
                folder / "l" / f"{name}.png",
                np.where((grown > 0) & (label == 0), 255, label).astype(np.uint8),
            )
    keys = {"images": "i/{case}.png", "labels": "l/{case}.png", "ignore": [255], "splits": splits}
    (folder / "dataset.json").write_text(json.dumps({"ahm_gym": 1, **keys}))
    return folder / "dataset.json"


def test_a_run_says_how_much_is_ignored_and_never_predicts_it(described, tmp_path):
    settings = FinetuneConfig(
        data=str(described),
        image_size=(32,),
        labels=6,
        steps=6,
        batch_size=4,
        run_dir=tmp_path / "run",
        select="best",
    )
    results = finetune(resolve(settings))
    dataset = open_data(str(described), image_size=(32, 32))
    labels = torch.stack([dataset.sample(index).label for index in dataset.indices("test")])
    assert results["ignored_share"] == pytest.approx(float((labels == IGNORED).float().mean()))
    assert 0 < results["draw"]["ignored_share"] < 0.2
    assert list(results["per_class"]) == ["1"]


def test_validation_has_the_dice_of_an_evaluation(described):
    dataset = open_data(str(described), image_size=(32, 32))
    encoder = build_autoencoder("tiny", image_size=(32, 32), patch_size=8, channels=1).encoder
    segmenter = build_segmenter(encoder, 2, seed=1)
    expected = evaluate(segmenter, dataset, "val")["dice"]
    assert 0 < expected < 1
    found = dice_on(segmenter, dataset, "val", native_resolution=False)
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("head", "score"), [("patch", "patch_dice"), ("pixel", "dice")])
def test_the_probe_runs_on_labels_with_ignored_pixels(described, tmp_path, head, score):
    config = ProbeConfig(
        encoder="none",
        data=str(described),
        image_size=(32,),
        patch_size=8,
        head=head,
        run_dir=tmp_path / "run",
    )
    assert run_probe(config)[score] > 0.4


def test_a_picture_hatches_ignored_pixels_and_names_them():
    label = torch.zeros(10, 12, dtype=torch.int64)
    label[2:5, 3:7] = IGNORED
    figure = draw_overlays([Overlay("a", torch.zeros(1, 10, 12), label)], 2, "title")
    sets = [
        child for child in figure.axes[1].get_children() if isinstance(child, matplotlib.contour.ContourSet)
    ]
    boxes = [tuple(path.get_extents().extents) for each in sets for path in each.get_paths()]
    assert boxes == [(2.5, 1.5, 6.5, 4.5)] and sets[0].hatches == ["//////"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["class 1", "ignored"]
    plain = draw_overlays([Overlay("a", torch.zeros(1, 10, 12), torch.zeros(10, 12).long())], 2, "title")
    assert [text.get_text() for text in plain.legends[0].get_texts()] == ["class 1"]


def test_look_counts_ignored_pixels_and_proposes_them_again(described, tmp_path):
    dataset = open_data(str(described), image_size=(32, 32))
    row = count_classes(dataset, ["background", "disc"]).rows[-1]
    labels = torch.stack([dataset.sample(index).label for index in dataset.indices("train")])
    assert row[:3] == ["ignored", "24", f"{float((labels == IGNORED).float().mean()):.2%}"]
    run_look(LookConfig(str(described), image_size=32, out=tmp_path / "out"))
    proposed = tmp_path / "out" / "dataset.json"
    assert json.loads(proposed.read_text())["ignore"] == [255]
    again = open_data(str(proposed), image_size=(32, 32))
    assert again.has_ignored and [again.ids[i] for i in again.indices("test")] == [
        dataset.ids[i] for i in dataset.indices("test")
    ]
