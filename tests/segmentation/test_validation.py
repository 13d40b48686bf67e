"""Validation during fine-tuning, the best segmenter, and folds."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from ahm_gym.data import open_data
from ahm_gym.data.folds import with_fold
from ahm_gym.errors import InputError
from ahm_gym.runs.folder import RunFolder
from ahm_gym.segmentation.config import FinetuneConfig
from ahm_gym.segmentation.evaluation import evaluate
from ahm_gym.segmentation.finetune import Finetuning, finetune
from ahm_gym.segmentation.inputs import resolve
from ahm_gym.segmentation.predictor import Predictor
from ahm_gym.segmentation.segmenter import load_segmenter
from ahm_gym.segmentation.validation import caption_of, dice_on, draw_curve, read_score


@pytest.fixture
def config(discs, tmp_path):
    return FinetuneConfig(
        data=str(discs), image_size=(32,), labels=6, steps=10, batch_size=4, validate_every=2,
        checkpoint_every=5, run_dir=tmp_path / "run",
    )  # fmt: skip


def val_dice(folder):
    rows = RunFolder.open(folder, "finetune").metrics()
    return {row["step"]: row["val/dice"] for row in rows if "val/dice" in row}


def weights(folder):
    return load_segmenter(folder).state_dict()


def are_same(one, two):
    return all(torch.equal(value, two[name]) for name, value in one.items())


def test_the_dice_on_val_is_that_of_an_evaluation(config):
    finetuning = Finetuning(resolve(config))
    for step in range(1, 4):
        finetuning.update(step)
    expected = evaluate(finetuning.segmenter, finetuning.dataset, "val")["dice"]
    assert 0 < expected < 1 and finetuning.validate() == pytest.approx(expected, abs=1e-5)
    finetuning.dataset.num_classes = 3  # a class that no label has is left out
    assert dice_on(finetuning.segmenter, finetuning.dataset, "val", native_resolution=False) == pytest.approx(
        expected, abs=1e-5
    )


def test_the_best_segmenter_is_kept_beside_the_last_one(config, monkeypatch):
    given = iter((0.2, 0.6, 0.4, 0.6, 0.5))
    kept = {}

    def scored(segmenter, *arguments, **options):
        kept[len(kept)] = {name: value.clone() for name, value in segmenter.state_dict().items()}
        return next(given)

    monkeypatch.setattr("ahm_gym.segmentation.finetune.dice_on", scored)
    results = finetune(config)
    folder = config.run_dir
    assert list(val_dice(folder).items()) == [(2, 0.2), (4, 0.6), (6, 0.4), (8, 0.6), (10, 0.5)]
    assert read_score(folder) == {"step": 4, "dice": 0.6} == results["best"]
    assert are_same(weights(folder / "best"), kept[1]) and are_same(weights(folder / "segmenter"), kept[4])
    assert (folder / "figures" / "curve.png").is_file()


def test_validation_changes_no_result_of_the_last_segmenter(config, tmp_path):
    results = finetune(config)
    without = dataclasses.replace(config, validate_every=0, run_dir=tmp_path / "without")
    expected = finetune(without)
    assert results["cases"] == expected["cases"] and expected["best"] is None
    assert are_same(weights(config.run_dir / "segmenter"), weights(without.run_dir / "segmenter"))
    assert not (without.run_dir / "best").exists() and not val_dice(without.run_dir)


def test_the_best_segmenter_is_scored_and_used_if_that_is_chosen(config):
    results = finetune(dataclasses.replace(config, select="best", steps=6, learning_rate=0.02))
    predictor = Predictor.of_run(config.run_dir, "cpu")
    best = weights(config.run_dir / "best")
    assert are_same(predictor.segmenter.state_dict(), best)
    dataset = open_data(config.data, image_size=(32, 32))
    assert evaluate(predictor.segmenter, dataset, "test")["cases"] == results["cases"]
    last = Predictor.of_run(config.run_dir, "cpu", "last").segmenter.state_dict()
    assert are_same(last, weights(config.run_dir / "segmenter"))


@pytest.mark.parametrize("step", [4, 7, 10])
def test_a_resumed_run_keeps_the_same_best_segmenter(config, tmp_path, monkeypatch, step):
    whole = dataclasses.replace(config, run_dir=tmp_path / "whole")
    expected = finetune(whole)
    update = Finetuning.update

    def falls_over(self, number):
        if number == step:
            raise KeyError
        return update(self, number)

    with monkeypatch.context() as patch, pytest.raises(KeyError):
        patch.setattr(Finetuning, "update", falls_over)
        finetune(config)
    results = finetune(FinetuneConfig(run_dir=config.run_dir), resume=True)
    assert results["best"] == expected["best"] and val_dice(config.run_dir) == val_dice(whole.run_dir)
    assert are_same(weights(config.run_dir / "best"), weights(whole.run_dir / "best"))


def test_a_tenth_of_the_updates_lies_between_two_validations_by_default(config):
    assert Finetuning(resolve(dataclasses.replace(config, validate_every=None, steps=45))).validate_every == 4
    assert Finetuning(resolve(dataclasses.replace(config, validate_every=None, steps=3))).validate_every == 1


def test_without_val_labels_there_is_no_validation(config, discs, tmp_path):
    arrays = {name: value for name, value in np.load(discs).items() if name != "val_label"}
    np.savez(tmp_path / "bare.npz", **arrays)
    config = dataclasses.replace(config, data=str(tmp_path / "bare.npz"), validate_every=None, steps=2)
    with pytest.raises(InputError, match="`select=best` needs labelled val images, and bare has none"):
        finetune(dataclasses.replace(config, select="best"))
    with pytest.raises(InputError, match="`validate_every=3` needs labelled val images"):
        finetune(dataclasses.replace(config, validate_every=3))
    assert finetune(config)["best"] is None
    np.savez(tmp_path / "empty.npz", **arrays, val_label=np.load(discs)["val_label"] * 0)
    with pytest.raises(InputError, match="those of empty hold only background"):
        finetune(dataclasses.replace(config, data=str(tmp_path / "empty.npz"), select="best"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"select": "bset"}, "unknown selection 'bset': did you mean 'best'"),
        ({"validate_every": -1}, "`validate_every` is -1"),
        ({"validate_every": 0, "select": "best"}, "`select=best` needs scores on val"),
        ({"folds": 3}, "`folds=3` needs `fold`"),
        ({"fold": 5}, "`fold` is 5: choose from 0 to 4"),
        ({"fold": 0, "folds": 1}, "`folds` is 1: choose 2 or more"),
        ({"fold": 0, "folds": 31}, "`folds=31` needs as many patients with labels .* has 30"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(config, changes, message):
    with pytest.raises(InputError, match=message):
        finetune(dataclasses.replace(config, **changes))
    assert not config.run_dir.exists()


def test_a_best_segmenter_that_is_scored_on_val_comes_with_a_warning(config, capsys):
    finetune(dataclasses.replace(config, select="best", split="val", steps=2))
    assert "was chosen on val and is scored on val" in capsys.readouterr().err


def test_the_caption_names_the_best_update():
    assert "0.612, update 40" in caption_of({"step": 40, "dice": 0.612}, "last")
    assert "not validated" in caption_of(None, "last")


def test_the_curve_shows_loss_and_dice(real_pictures):
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "val/dice": 0.5}, {"step": 3, "val/dice": 0.4}]
    loss, dice = draw_curve(rows, {"step": 2, "dice": 0.5}, "last").axes
    assert loss.lines[0].get_xydata().tolist() == [[1, 2.0], [2, 1.0]]
    assert dice.lines[0].get_xydata().tolist() == [[2, 0.5], [3, 0.4]]
    assert list(dice.lines[1].get_xdata()) == [2, 2]


@pytest.fixture(scope="module")
def patients(tmp_path_factory):
    """Three images of each of eleven patients, of whom eight in train and val have labels."""
    path = tmp_path_factory.mktemp("data") / "patients.npz"
    rng = np.random.default_rng(0)
    arrays = {}
    for split, names in (("train", "abcdefg"), ("val", "hi"), ("test", "jk")):
        ids = [f"{name}_{number}" for name in names for number in range(3)]
        arrays[f"{split}_images"] = rng.integers(0, 255, (len(ids), 32, 32), dtype=np.uint8)
        arrays[f"{split}_label"] = rng.integers(0, 2, (len(ids), 32, 32), dtype=np.uint8)
        arrays[f"{split}_id"] = np.array(ids)
    np.savez(path, **arrays)
    return open_data(str(path), image_size=(32, 32))


def patients_in(dataset, split):
    return {dataset.patient(index) for index in dataset.indices(split)}


def test_folds_are_disjoint_by_patient_and_leave_test_alone(patients):
    held_out = []
    for fold in range(4):
        divided = with_fold(patients, fold, 4)
        train, val = patients_in(divided, "train"), patients_in(divided, "val")
        assert train | val == set("abcdefghi") and not train & val
        assert divided.indices("test") == patients.indices("test")
        held_out.append(val)
    assert sorted(name for val in held_out for name in val) == list("abcdefghi")
    assert {len(val) for val in held_out} == {2, 3}
    assert patients_in(patients, "val") == {"h", "i"}  # the data itself is as before


def test_patients_with_labels_are_spread_evenly(discs, tmp_path):
    arrays = {name: value for name, value in np.load(discs).items() if name != "val_label"}
    np.savez(tmp_path / "some.npz", **arrays)
    dataset = open_data(str(tmp_path / "some.npz"), image_size=(32, 32))
    sizes = [len(with_fold(dataset, fold, 4).indices("val", labelled=True)) for fold in range(4)]
    assert sizes == [6, 6, 6, 6]


def test_a_run_trains_and_validates_on_its_fold(config, capsys):
    results = finetune(dataclasses.replace(config, fold=1, folds=3, labels=None, steps=1))
    assert results["labels"] == 20 and results["split"] == "test" and results["num_cases"] == 8
    assert "fold 1 of 3: 20 patients in train and 10 in val" in capsys.readouterr().err
    saved = json.loads((config.run_dir / "config.json").read_text())
    assert (saved["fold"], saved["folds"]) == (1, 3)
    resumed = finetune(FinetuneConfig(run_dir=config.run_dir), resume=True)
    assert resumed == results
