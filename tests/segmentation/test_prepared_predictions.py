"""Tests that runs segment and score other scans as a description had their own images prepared."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pydicom
import pytest
import torch
from image_folders import write
from medical_files import dicom

from ahm_gym.data.processing import Processing, Window
from ahm_gym.errors import InputError
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.segmentation import evaluate_runs
from ahm_gym.segmentation.config import EvaluateConfig, FinetuneConfig, PredictConfig
from ahm_gym.segmentation.finetune import finetune
from ahm_gym.segmentation.inputs import resolve
from ahm_gym.segmentation.prediction import run_predict
from ahm_gym.segmentation.predictor import Ensemble, Predictor
from ahm_gym.segmentation.segmenter import Segmenter

ornt = nibabel.orientations
CODES = [
    "".join(code) for axes in itertools.permutations(("RL", "AP", "SI")) for code in itertools.product(*axes)
]


class Threshold(Segmenter):
    """Knows the answer: pixels above 0.5 are class 1."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([0.5 - images, images - 0.5], dim=1)


def knowing(**processing) -> Ensemble:
    encoder = build_autoencoder("tiny", image_size=(32, 32), patch_size=8, channels=1).encoder
    settings = Processing(scaling=Window(low=0, high=1000), **processing)
    return Ensemble((Predictor(Threshold(encoder, 2).eval(), (0.0,), (1.0,), True, settings),))


def lump(code: str) -> nibabel.Nifti1Image:
    """A box without any symmetry in a volume of 1 x 2 x 3 mm."""
    array = np.zeros((40, 24, 16), np.int16)
    array[6:30, 2:14, 3:8] = 1000
    array[6:16, 2:8, 8:14] = 1000
    image = nibabel.Nifti1Image(array, np.diag([1.0, 2.0, 3.0, 1.0]))
    image.header.set_xyzt_units("mm")
    return image.as_reoriented(
        ornt.ornt_transform(ornt.io_orientation(image.affine), ornt.axcodes2ornt(code))
    )


@pytest.mark.parametrize("spacing", [None, 1.5, (0.75, 2.5)])
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_masks_go_back_to_the_grid_of_the_scan_for_every_plane_and_spacing(
    tmp_path, monkeypatch, plane, spacing
):
    ensemble = knowing(plane=plane, spacing=spacing)
    monkeypatch.setattr(Ensemble, "of_runs", classmethod(lambda cls, *arguments: ensemble))
    codes = CODES if spacing == 1.5 else ["RAS", "PIL", "SLA"]
    for code in codes:
        nibabel.save(lump(code), tmp_path / f"{code}.nii.gz")
    (tmp_path / "scans").mkdir()
    for code in codes:
        (tmp_path / f"{code}.nii.gz").rename(tmp_path / "scans" / f"{code}.nii.gz")
    rows = run_predict(PredictConfig(scans=tmp_path / "scans", run=tmp_path, out=tmp_path / "out"))
    assert len(rows) == len(codes)
    for code in codes:
        found, own = nibabel.load(tmp_path / "out" / f"{code}.nii.gz"), lump(code)
        assert np.allclose(found.affine, own.affine)
        mask, true = np.asarray(found.dataobj) > 0, np.asarray(own.dataobj) > 0
        assert 2 * (mask & true).sum() / (mask.sum() + true.sum()) > (0.95 if spacing else 0.999), code


def test_a_scan_is_resampled_before_the_network_sees_it():
    seen = []

    class Watching(Predictor):
        def logits(self, images, size):
            seen.append((tuple(images.shape), size))
            return super().logits(images, size)

    one = knowing(spacing=(0.5, 2.0)).members[0]
    ensemble = Ensemble((Watching(one.segmenter, one.mean, one.std, True, one.processing),))
    image = ensemble.scaled(np.zeros((40, 36)), "a.png", spacing=(1.0, 1.0))
    assert tuple(image.shape) == (1, 80, 18)
    with pytest.raises(InputError, match="a.png does not state the size of its pixels"):
        ensemble.scaled(np.zeros((40, 36)), "a.png")


@pytest.mark.parametrize("name", ["plane", "spacing"])
def test_the_runs_of_an_ensemble_must_agree(name, monkeypatch):
    settings = {"plane": ("axial", "coronal"), "spacing": (1.0, 2.0)}[name]
    members = iter(knowing(**{name: value}).members[0] for value in settings)
    monkeypatch.setattr(Predictor, "of_run", classmethod(lambda cls, *arguments: next(members)))
    with pytest.raises(InputError, match=f"images with another `{name}`"):
        Ensemble.of_runs([Path("a"), Path("b")])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on bright and dark images of a folder that is scaled over the data set."""
    folder = tmp_path_factory.mktemp("data")
    splits = {"train": [], "val": ["p8"], "test": ["p9"]}
    for number in range(10):
        image = np.random.default_rng(number).normal(100, 20, (32, 32))
        label = np.zeros((32, 32), np.uint8)
        label[4 : 12 + number, 6:20] = 1
        write(folder / "i" / f"p{number}.npy", (image + 100 * label).astype(np.float32))
        write(folder / "l" / f"p{number}.npy", label)
        splits["train"] += [f"p{number}"] * (number < 8)
    keys = {
        "images": "i/{case}.npy",
        "labels": "l/{case}.npy",
        "scaling": {"kind": "dataset"},
        "splits": splits,
    }
    (folder / "dataset.json").write_text(json.dumps({"ahm_gym": 1, **keys}))
    settings = FinetuneConfig(
        data=str(folder),
        model="unet",
        image_size=(32,),
        labels=8,
        steps=30,
        batch_size=8,
        run_dir=folder / "run",
    )
    finetune(resolve(settings))
    return folder / "run"


def test_a_run_keeps_the_scaling_of_its_training_images(run):
    kept = json.loads((run / "config.json").read_text())["processing"]["scaling"]
    values = np.concatenate([np.load(run.parent / "i" / f"p{number}.npy").ravel() for number in range(8)])
    assert [kept["low"], kept["high"]] == pytest.approx(np.percentile(values, [0.5, 99.5]))
    ensemble = Ensemble.of_runs([run], "cpu")
    image = np.array([[kept["low"] - 5, kept["low"]], [kept["high"], (kept["low"] + kept["high"]) / 2]])
    assert ensemble.scaled(image, "a.npy")[0].tolist() == [[0, 0], [1, pytest.approx(0.5)]]


def test_another_folder_is_scored_with_the_scaling_of_the_run(run, tmp_path, monkeypatch):
    for number in range(3):
        image = np.load(run.parent / "i" / f"p{number}.npy")
        write(
            tmp_path / "site" / "images" / f"q{number}.npy", image * 0.25
        )  # would be the same by its percentiles
        write(tmp_path / "site" / "labels" / f"q{number}.npy", np.load(run.parent / "l" / f"p{number}.npy"))
    seen = []
    real = evaluate_runs.evaluate
    monkeypatch.setattr(
        evaluate_runs,
        "evaluate",
        lambda segment, dataset, part: seen.append(dataset) or real(segment, dataset, part),
    )
    evaluate_runs.run_evaluate(
        EvaluateConfig(scans=str(tmp_path / "site"), run=run, out=tmp_path / "out", device="cpu")
    )
    kept = json.loads((run / "config.json").read_text())["processing"]["scaling"]
    image = np.load(tmp_path / "site" / "images" / "q0.npy")
    expected = ((image - kept["low"]) / (kept["high"] - kept["low"])).clip(0, 1)
    assert seen[0].image(0)[0].numpy() == pytest.approx(expected, abs=1e-3)
    assert seen[0].image(0).max() < 0.5


def test_data_that_is_no_folder_is_refused_by_a_run_with_a_scaling(run, tmp_path):
    images = np.zeros((3, 32, 32), np.float32) + np.arange(32)
    np.savez(tmp_path / "a.npz", train_images=images, train_label=(images > 16).astype(np.uint8))
    with pytest.raises(InputError, match="with `scaling` of a dataset.json, and a is no folder"):
        evaluate_runs.run_evaluate(
            EvaluateConfig(scans=str(tmp_path / "a.npz"), run=run, out=tmp_path / "out")
        )


def test_objects_without_an_image_are_left_out_and_said(tmp_path, monkeypatch, capsys):
    ensemble = knowing()
    monkeypatch.setattr(Ensemble, "of_runs", classmethod(lambda cls, *arguments: ensemble))
    image = (1000 * (np.arange(64).reshape(8, 8) > 30)).astype(np.uint16)
    dicom(tmp_path / "scans" / "a.dcm", image)
    report = pydicom.dcmread(dicom(tmp_path / "scans" / "b.dcm", image))
    del report.PixelData
    report.Modality = "DOC"
    report.save_as(tmp_path / "scans" / "b.dcm")
    rows = run_predict(PredictConfig(scans=tmp_path / "scans", run=tmp_path, out=tmp_path / "out"))
    assert [row["scan"] for row in rows] == ["a"]
    assert "b.dcm is left out, because it is a DICOM object without an image" in capsys.readouterr().err
    assert (cv2.imread(str(tmp_path / "out" / "a.png"), cv2.IMREAD_UNCHANGED) == (image > 500)).all()
    with pytest.raises(InputError, match="b.dcm is a DOC object without an image"):
        run_predict(PredictConfig(scans=tmp_path / "scans" / "b.dcm", run=tmp_path, out=tmp_path / "other"))
