"""Masks of new scans: their geometry, their folder, and what happens on the way."""

import csv
import dataclasses
import json
import os
import shutil

import cv2
import nibabel
import numpy as np
import pytest
import torch

from ahm_gym.data import open_data
from ahm_gym.data.scans import read_scan
from ahm_gym.errors import InputError, Interrupted
from ahm_gym.runs.interrupt import Interrupt
from ahm_gym.segmentation import prediction
from ahm_gym.segmentation.config import FinetuneConfig, PredictConfig
from ahm_gym.segmentation.evaluation import evaluate
from ahm_gym.segmentation.finetune import finetune
from ahm_gym.segmentation.inputs import resolve
from ahm_gym.segmentation.prediction import list_scans, run_predict
from ahm_gym.segmentation.predictor import Ensemble, Predictor, normalised_entropy


@pytest.fixture(scope="module")
def run(discs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    settings = FinetuneConfig(
        data=str(discs), model="unet", image_size=(32,), labels=12, steps=40, batch_size=8, run_dir=folder
    )
    finetune(resolve(settings))
    return folder


@pytest.fixture
def scans(discs, tmp_path):
    """A folder with three pictures of the test images, and one volume of them."""
    images = np.load(discs)["test_images"]
    folder = tmp_path / "scans"
    folder.mkdir()
    for index in range(3):
        cv2.imwrite(str(folder / f"scan_{index}.png"), images[index])
    volume = np.stack([np.rot90(image, -1) for image in images[:4]], axis=2)
    affine = np.diag([0.5, 2.0, 3.0, 1.0])
    affine[:3, 3] = (10, -20, 30)
    nibabel.save(nibabel.Nifti1Image(volume, affine), folder / "volume.nii.gz")
    return folder


def config_of(run, scans, tmp_path, **changes):
    return PredictConfig(scans=scans, run=run, out=tmp_path / "out", device="cpu", **changes)


def test_masks_are_found_and_have_the_geometry_of_their_scans(run, scans, discs, tmp_path):
    rows = run_predict(config_of(run, scans, tmp_path))
    truth = np.load(discs)["test_label"]
    assert [row["mask"] for row in rows] == ["scan_0.png", "scan_1.png", "scan_2.png", "volume.nii.gz"]
    out = tmp_path / "out"
    pictures = [cv2.imread(str(out / f"scan_{index}.png"), cv2.IMREAD_UNCHANGED) for index in range(3)]
    for found, label in zip(pictures, truth, strict=False):
        both = ((found > 0) & (label > 0)).sum()
        assert found.dtype == np.uint8 and 2 * both / ((found > 0).sum() + (label > 0).sum()) > 0.8
    mask, scan = nibabel.load(out / "volume.nii.gz"), nibabel.load(scans / "volume.nii.gz")
    assert mask.shape == scan.shape and np.array_equal(mask.affine, scan.affine)
    assert mask.get_data_dtype() == np.uint8
    for index, picture in enumerate(pictures):
        assert np.array_equal(np.rot90(np.asarray(mask.dataobj)[:, :, index]), picture)
    table = list(csv.DictReader((out / "areas.csv").read_text().splitlines()))
    foreground = next(line for line in table if line["scan"] == "volume" and line["class"] == "1")
    assert int(foreground["pixels"]) == np.asarray(mask.dataobj).sum()
    assert float(foreground["size"]) == pytest.approx(int(foreground["pixels"]) * 0.003, abs=1e-3)
    assert foreground["unit"] == "ml" and table[0]["unit"] == ""
    assert (out / "overlays.png").is_file()


def test_predictions_are_those_that_the_run_was_scored_by(run, scans, discs, tmp_path):
    run_predict(config_of(run, scans, tmp_path))
    predictor = Predictor.of_run(run, "cpu")
    dataset = open_data(str(discs), image_size=(32, 32))
    scores = {entry["case"]: entry for entry in evaluate(predictor.segmenter, dataset, "test")["cases"]}
    index = dataset.indices("test")[0]
    label = dataset.sample(index).label.numpy()
    found = cv2.imread(str(tmp_path / "out" / "scan_0.png"), cv2.IMREAD_UNCHANGED)
    dice = 2 * ((found == 1) & (label == 1)).sum() / ((found == 1).sum() + (label == 1).sum())
    assert scores[dataset.sample(index).case]["dice"][0] == pytest.approx(dice, abs=1e-6)


def test_the_same_command_continues_after_a_stop(run, scans, tmp_path, monkeypatch):
    config = config_of(run, scans, tmp_path)
    monkeypatch.setattr(Interrupt, "requested", True)
    with pytest.raises(Interrupted, match="stopped after 1 of 4 scans; the same command continues"):
        run_predict(config)
    monkeypatch.undo()
    first = (tmp_path / "out" / "scan_0.png").stat().st_mtime_ns
    with (tmp_path / "out" / "predictions.jsonl").open("a") as file:
        file.write('{"scan": "scan_1", "fi')  # a kill in the middle of a line
    rows = run_predict(config)
    assert len(rows) == 4 and (tmp_path / "out" / "scan_0.png").stat().st_mtime_ns == first
    segmented = []
    monkeypatch.setattr(prediction, "_segment", lambda *arguments: segmented.append(arguments))
    assert run_predict(config) == rows and not segmented


def test_predicted_masks_never_become_labels(run, scans, tmp_path):
    config = dataclasses.replace(config_of(run, scans, tmp_path), out=scans / "masks")
    run_predict(config)
    run_predict(config)
    assert not any(open_data(str(scans), image_size=(32, 32)).indices("train", labelled=True))


def test_labels_among_the_scans_are_left_out(run, scans, tmp_path, capsys):
    cv2.imwrite(str(scans / "scan_1_mask.png"), np.zeros((8, 8), np.uint8))
    (scans / "notes.txt").write_text("")
    assert "scan_1_mask" not in list_scans(scans)
    said = capsys.readouterr().err
    assert "1 labels are left out, such as scan_1_mask.png" in said and "1 .txt" in said


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda scans, out: out.mkdir() or (out / "a.txt").write_text(""), "out is not empty"),
        (
            lambda scans, out: (
                out.mkdir() or (out / "predictions.jsonl").write_text(json.dumps({"run": "/other"}) + "\n")
            ),
            "holds masks of the run /other",
        ),
        (lambda scans, out: (scans / "scan_1.png").write_bytes(b"broken"), "scan_1.png cannot be read"),
        (
            lambda scans, out: cv2.imwrite(str(scans / "scan_1.png"), np.zeros((8, 8, 3), np.uint8)),
            "wrong channel count: .*scan_1.png has 3, expected 1",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(run, scans, tmp_path, spoil, message):
    spoil(scans, tmp_path / "out")
    with pytest.raises(InputError, match=message):
        run_predict(config_of(run, scans, tmp_path))


def test_the_place_of_the_scans_and_the_run_are_checked(run, tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist"):
        run_predict(config_of(run, tmp_path / "nowhere", tmp_path))
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(InputError, match=r"a.txt cannot be read: expected a file ending in .png"):
        run_predict(config_of(run, tmp_path / "a.txt", tmp_path))
    with pytest.raises(InputError, match="give the folder of a finetune run"):
        run_predict(config_of(tmp_path, tmp_path, tmp_path))


def test_modalities_are_one_scan_whose_channels_are_scaled_by_themselves(run, tmp_path):
    for case in "ab":
        for kind, size in (("t1", 1), ("t2", 1000)):
            image = np.random.default_rng(size).random((40, 40, 2)) * size
            affine = np.diag([1.0, 1.0, 2.0, 1.0])
            nibabel.save(
                nibabel.Nifti1Image(image.astype(np.float32), affine), tmp_path / f"{case}_{kind}.nii"
            )
    scans = list_scans(tmp_path)
    assert list(scans) == ["a", "b"] and scans["a"].modal
    pixels = read_scan(scans["a"])
    ensemble = Ensemble.of_runs([run], "cpu")
    ensemble.members[0].segmenter.channels = 2
    assert pixels.array.shape == (40, 40, 2, 2)
    shown = ensemble.scaled(pixels.array[:, :, 0], "a", apart=True)
    assert all(channel.std() > 0.2 for channel in shown)


def test_grey_scans_are_repeated_for_a_run_on_colour_images(run):
    ensemble = Ensemble.of_runs([run], "cpu")
    ensemble.members[0].segmenter.channels = 3
    shown = ensemble.scaled(np.arange(64, dtype=np.uint8).reshape(8, 8), "a")
    assert shown.shape == (3, 8, 8) and (shown == shown[:1]).all()


@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_other_volumes_keep_their_shape(run, discs, tmp_path, suffix):
    images = np.load(discs)["test_images"][:6]
    path = tmp_path / f"volume{suffix}"
    if suffix == ".npy":
        np.save(path, np.moveaxis(images, 0, 2))
    else:
        cv2.imwritemulti(str(path), list(images))
    (row,) = run_predict(config_of(run, path, tmp_path))
    found = tmp_path / "out" / f"volume{suffix}"
    mask = np.load(found) if suffix == ".npy" else np.stack(cv2.imreadmulti(str(found), flags=-1)[1], axis=2)
    assert mask.shape == (*images.shape[1:3], 6) == tuple(row["shape"])
    assert torch.from_numpy(mask).any()


def maps_of(out, name, suffix):
    return out / "probabilities" / f"{name}{suffix}", out / "uncertainty" / f"{name}{suffix}"


def test_probabilities_and_uncertainty_have_the_geometry_of_their_scans(run, scans, tmp_path):
    config = config_of(run, scans, tmp_path, probabilities=True, uncertainty=True)
    rows = run_predict(config)
    out = tmp_path / "out"
    assert rows[0]["probabilities"] == "probabilities/scan_0.npz"
    shares = np.load(out / "probabilities" / "scan_0.npz")["probabilities"]
    mask = cv2.imread(str(out / "scan_0.png"), cv2.IMREAD_UNCHANGED)
    assert shares.dtype == np.float32 and shares.shape == (*mask.shape, 2)
    assert np.allclose(shares.sum(axis=2), 1, atol=1e-5)
    assert np.array_equal(shares.argmax(axis=2), mask)
    unsure = cv2.imread(str(out / "uncertainty" / "scan_0.png"), cv2.IMREAD_UNCHANGED)
    entropy = -(shares * np.log(np.maximum(shares, 1e-30))).sum(axis=2) / np.log(2)
    assert unsure.dtype == np.uint16 and np.allclose(unsure / 65535, entropy, atol=1e-4)
    scan = nibabel.load(scans / "volume.nii.gz")
    volume, unsure = (nibabel.load(path) for path in maps_of(out, "volume", ".nii.gz"))
    assert volume.shape == (*scan.shape, 2) and unsure.shape == scan.shape
    for image in (volume, unsure):
        assert np.array_equal(image.affine, scan.affine) and image.get_data_dtype() == np.float32
    labels = np.asarray(nibabel.load(out / "volume.nii.gz").dataobj)
    assert np.array_equal(np.asarray(volume.dataobj).argmax(axis=3), labels)
    for index in range(3):  # the slices are the pictures
        slices = np.rot90(np.asarray(volume.dataobj)[:, :, index])
        alone = np.load(out / "probabilities" / f"scan_{index}.npz")["probabilities"]
        assert np.allclose(slices, alone, atol=1e-5)


@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_the_uncertainty_of_other_volumes_has_their_format(run, discs, tmp_path, suffix):
    images = np.load(discs)["test_images"][:3]
    path = tmp_path / f"volume{suffix}"
    if suffix == ".npy":
        np.save(path, np.moveaxis(images, 0, 2)[:, :, [0, 1, 2, 0, 1]])
    else:
        cv2.imwritemulti(str(path), list(images))
    run_predict(config_of(run, path, tmp_path, uncertainty=True))
    found = tmp_path / "out" / "uncertainty" / f"volume{suffix}"
    if suffix == ".npy":
        unsure = np.load(found)
        assert unsure.shape == (32, 32, 5) and unsure.dtype == np.float32 and 0 <= unsure.min()
        assert 0.1 < unsure.max() <= 1
    else:
        pages = cv2.imreadmulti(str(found), flags=-1)[1]
        assert len(pages) == 3 and pages[0].dtype == np.uint16 and np.max(pages) > 6000


def test_the_entropy_is_0_where_a_class_is_certain_and_1_where_all_are_equal():
    shares = torch.tensor([[1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]])[:, :, None, None]
    assert normalised_entropy(shares).flatten().tolist() == pytest.approx([0, 1], abs=1e-6)


def test_an_ensemble_of_one_run_is_the_run_and_of_two_their_mean(run, second, scans, tmp_path):
    options = {"probabilities": True, "uncertainty": False}
    one, two, both = (tmp_path / name for name in ("one", "two", "both"))
    for runs, out in ((run, one), ((second,), two), ((run, second), both)):
        run_predict(PredictConfig(scans=scans, run=runs, out=out, device="cpu", **options))
    alone = PredictConfig(scans=scans, run=(run,), out=tmp_path / "alone", device="cpu", **options)
    run_predict(alone)
    for path in ("scan_0.png", "volume.nii.gz", "probabilities/scan_0.npz"):
        assert (one / path).read_bytes() == (tmp_path / "alone" / path).read_bytes()
    parts = [np.load(out / "probabilities" / "scan_1.npz")["probabilities"] for out in (one, two, both)]
    assert np.allclose(parts[2], (parts[0] + parts[1]) / 2, atol=1e-6)
    assert not np.allclose(parts[0], parts[1], atol=1e-3)
    mask = cv2.imread(str(both / "scan_1.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(mask, parts[2].argmax(axis=2))


@pytest.fixture(scope="module")
def second(discs, tmp_path_factory):
    """A run with another architecture, another image size, and other statistics."""
    folder = tmp_path_factory.mktemp("runs") / "second"
    settings = FinetuneConfig(
        data=str(discs), image_size=(16,), labels=12, steps=10, seed=1, select="best", run_dir=folder
    )
    finetune(resolve(settings))
    return folder


def test_runs_with_other_classes_do_not_form_an_ensemble(run, discs, tmp_path):
    arrays = dict(np.load(discs))
    arrays = {name: value + (value > 0) if "label" in name else value for name, value in arrays.items()}
    for name in ("train_label", "val_label", "test_label"):
        arrays[name][:, 0, 0] = 1
    np.savez(tmp_path / "three.npz", **arrays)
    other = tmp_path / "three"
    settings = FinetuneConfig(data=str(tmp_path / "three.npz"), image_size=(32,), steps=1, run_dir=other)
    finetune(resolve(settings))
    with pytest.raises(InputError, match=r"has 2 classes and .*three has 3: give each `run` of an ensemble"):
        Ensemble.of_runs((run, other), "cpu")
    with pytest.raises(InputError, match="no `run` is given"):
        Ensemble.of_runs((), "cpu")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ({"uncertainty": True}, {}, "made with `uncertainty=True`: give the same, or choose another `out`"),
        ({}, {"probabilities": True}, "made without `probabilities`"),
        ({"select": "last"}, {}, "made with `select=last`"),
    ],
)
def test_masks_of_other_options_are_not_continued(run, scans, tmp_path, before, after, message):
    run_predict(config_of(run, scans, tmp_path, **before))
    with pytest.raises(InputError, match=message):
        run_predict(config_of(run, scans, tmp_path, **after))
    assert len(run_predict(config_of(run, scans, tmp_path, **before))) == 4


def test_a_folder_of_an_earlier_version_is_continued_and_a_missing_map_is_made_again(run, scans, tmp_path):
    config = config_of(run, scans, tmp_path)
    run_predict(config)
    listed = tmp_path / "out" / "predictions.jsonl"
    _, *rest = listed.read_text().splitlines()
    listed.write_text("\n".join([json.dumps({"run": str(run.absolute())}), *rest, ""]))
    assert len(run_predict(config)) == 4
    config = dataclasses.replace(config, out=tmp_path / "maps", uncertainty=True)
    run_predict(config)
    missing = tmp_path / "maps" / "uncertainty" / "scan_2.png"
    content = missing.read_bytes()
    missing.unlink()
    run_predict(config)
    assert missing.read_bytes() == content


@pytest.mark.parametrize(
    ("line", "content"),
    [(0, "{}"), (0, "[]"), (1, "{}"), (1, '{"scan": 1}'), (1, "[" * 100_000), (1, "no JSON")],
)
def test_a_damaged_list_of_predictions_is_refused_and_kept(run, scans, tmp_path, line, content):
    config = config_of(run, scans, tmp_path)
    run_predict(config)
    listed = tmp_path / "out" / "predictions.jsonl"
    lines = listed.read_text().splitlines()
    lines[line] = content
    listed.write_text("\n".join([*lines, ""]))
    damaged = listed.read_text()
    with pytest.raises(InputError, match=r"predictions\.jsonl"):
        run_predict(config)
    assert listed.read_text() == damaged


def test_a_run_without_a_best_segmenter_says_so(run, scans, tmp_path):
    with pytest.raises(InputError, match="unknown selection 'first'"):
        run_predict(config_of(run, scans, tmp_path, select="first"))
    folder = shutil.copytree(run, tmp_path / "copy")
    shutil.rmtree(folder / "best")
    with pytest.raises(InputError, match=r"has no best segmenter, .*choose `select=last`"):
        run_predict(config_of(folder, scans, tmp_path, select="best"))


def test_a_pipe_in_place_of_scans_is_refused_without_reading_it(tmp_path):
    os.mkfifo(tmp_path / "scan.png")
    with pytest.raises(InputError, match=r"scan\.png is a device or a pipe"):
        list_scans(tmp_path / "scan.png")


def test_the_legend_has_the_names_of_the_classes_in_the_data_of_the_run(run, scans, tmp_path, monkeypatch):
    copy = shutil.copytree(run, tmp_path / "named")
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(settings | {"processing": {"classes": {"1": "disc $x$"}}}))
    drawn = []
    draw = prediction.draw_overlays

    def recorded(*arguments):
        drawn.append(draw(*arguments))
        return drawn[-1]

    monkeypatch.setattr(prediction, "draw_overlays", recorded)
    for number, (folder, name) in enumerate(((copy, r"disc \$x\$"), (run, "class 1"))):
        config = dataclasses.replace(config_of(folder, scans, tmp_path), out=tmp_path / str(number))
        run_predict(config)
        assert [text.get_text() for text in drawn[-1].legends[0].get_texts()] == [name]
