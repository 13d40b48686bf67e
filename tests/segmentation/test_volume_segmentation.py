"""Segmentation in three dimensions: networks, windows, crops, scores, masks, probes and pictures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional

from ahm_gym.data import open_data
from ahm_gym.data.augmentation import Augmentation
from ahm_gym.data.formats import Pixels
from ahm_gym.data.ignored import IGNORED
from ahm_gym.data.labelled import LabelledBatches
from ahm_gym.data.processing import Processing, Window
from ahm_gym.errors import InputError
from ahm_gym.model.decoders import DECODERS
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.segmentation import parts
from ahm_gym.segmentation.config import EvaluateConfig, FinetuneConfig, PredictConfig
from ahm_gym.segmentation.embedding import embed
from ahm_gym.segmentation.evaluate_runs import run_evaluate
from ahm_gym.segmentation.evaluation import draw_cases, evaluate
from ahm_gym.segmentation.finetune import Finetuning, finetune
from ahm_gym.segmentation.fixed_map import mean_map
from ahm_gym.segmentation.inputs import resolve
from ahm_gym.segmentation.pixel_probe import PixelProbe
from ahm_gym.segmentation.planes import planes_of
from ahm_gym.segmentation.prediction import run_predict
from ahm_gym.segmentation.predictor import Ensemble, Predictor
from ahm_gym.segmentation.probe import Probe
from ahm_gym.segmentation.report import write_report
from ahm_gym.segmentation.segmenter import Segmenter, build_segmenter, predict, predict_logits
from ahm_gym.segmentation.validation import dice_on
from ahm_gym.segmentation.views import patches_inside, windows_over

ornt = nibabel.orientations
SIZE, SIDE = (16, 16, 16), 8
ZOOMS = (1.0, 2.0, 1.5)
"""Millimetres towards right, anterior and superior of the files."""


def untrained(image_size=SIZE, channels=1, side=SIDE):
    return build_autoencoder(
        "tiny", image_size=image_size, patch_size=side, channels=channels, seed=0
    ).encoder


def noise(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


class Threshold(Segmenter):
    """Knows the answer: voxels above 0.5 are class 1. It sees windows of its own size alone."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[2:] == self.image_size
        bright = (images[:, :1] - 0.5) * 20
        return torch.cat([-bright, bright], dim=1)


KNOWING = Threshold(untrained(), 2).eval()


def lump(code="RAS", shift=0) -> nibabel.Nifti1Image:
    """A box without any symmetry."""
    array = np.zeros((40, 24, 18), np.int16)
    array[6 + shift : 30, 2:14, 3:8] = 1000
    array[6 + shift : 16, 2:8, 8:14] = 1000
    image = nibabel.Nifti1Image(array, np.diag([*ZOOMS, 1.0]))
    image.header.set_xyzt_units("mm")
    turn = ornt.ornt_transform(ornt.io_orientation(image.affine), ornt.axcodes2ornt(code))
    return image.as_reoriented(turn)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight scans in three orientations, with their labels."""
    place = tmp_path_factory.mktemp("data") / "lumps"
    for case in range(8):
        image = lump(("RAS", "PIL", "SLA")[case % 3], case)
        label = nibabel.Nifti1Image((np.asarray(image.dataobj) > 0).astype(np.uint8), image.affine)
        for kind, file in (("images", image), ("labels", label)):
            (place / kind).mkdir(parents=True, exist_ok=True)
            nibabel.save(file, place / kind / f"scan{case}.nii.gz")
    return place


@pytest.fixture(scope="module")
def dataset(folder):
    return open_data(str(folder), image_size=SIZE, spacing=1.5)


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_gives_logits_for_each_voxel_of_an_oblong_volume(decoder):
    segmenter = build_segmenter(untrained((16, 24, 32), 2), 3, decoder=decoder)
    logits = segmenter(noise(1, 2, 16, 24, 32))
    assert logits.shape == (1, 3, 16, 24, 32)
    logits.square().mean().backward()
    assert all(value.grad is not None for value in segmenter.decoder.parameters())


def test_without_a_choice_volumes_have_the_plain_decoder_and_images_unetr():
    flat = build_autoencoder("tiny", image_size=(16, 16), patch_size=8).encoder
    assert build_segmenter(untrained(), 2).decoder_name == "plain"
    assert build_segmenter(flat, 2).decoder_name == "unetr"
    assert build_segmenter(untrained(), 2, decoder="unetr").decoder_name == "unetr"


@pytest.mark.parametrize("size", [(16, 16, 16), (40, 20, 17), (9, 30, 12)])
def test_windows_cover_a_volume_of_any_size_at_its_own_resolution(size):
    image = noise(1, *size).round()
    found = predict(Threshold(untrained(), 2).eval(), image, size)
    assert torch.equal(found, image[0].long())


def test_a_volume_smaller_than_the_window_lies_in_its_middle_in_black():
    padded, inside = parts.padded_to(noise(1, 2, 9, 20, 12) + 1, SIZE)
    assert padded.shape == (1, 2, 16, 20, 16) and [(one.start, one.stop) for one in inside] == [
        (3, 12), (0, 20), (2, 14)
    ]  # fmt: skip
    assert torch.equal(padded[(..., *inside)], noise(1, 2, 9, 20, 12) + 1)
    assert padded[0, 1, 0].unique().tolist() == [float((noise(1, 2, 9, 20, 12) + 1)[0, 1].min())]


@pytest.mark.parametrize("size", [(11, 9, 14), (5, 6, 7), (11, 6, 7)])
def test_logits_in_parts_are_those_of_torchs_interpolation(monkeypatch, size):
    logits = noise(1, 3, 5, 6, 7)
    expected = functional.interpolate(logits, size, mode="trilinear")
    for most in (1, 1000, 1 << 24):
        monkeypatch.setattr(parts, "PART_VALUES", most)
        found = list(parts.resized_in_parts(logits, size))
        torch.testing.assert_close(torch.cat(found, dim=2), expected)
        assert len(found) == {1: size[0], 1000: len(found), 1 << 24: 1}[most]


def test_probabilities_are_resampled_before_the_class_is_chosen():
    segmenter = Threshold(untrained(), 2).eval()
    image = torch.zeros(1, 16, 16, 16)
    image[:, 8:] = 1.0
    logits = predict_logits(segmenter, image[None], (32, 16, 16))
    assert logits.shape == (1, 2, 32, 16, 16)
    assert logits[0, 1, :, 0, 0].tolist()[13:19] == pytest.approx([-10, -10, -5, 5, 10, 10])
    assert torch.equal(predict(segmenter, image, (32, 16, 16)), logits[0].argmax(dim=0))


def batches(dataset, size=SIZE, **options):
    settings = {"batch_size": 6, "image_size": size, "seed": 0} | options
    return LabelledBatches(dataset, dataset.indices("train", labelled=True), **settings)


def test_image_and_label_are_cropped_and_flipped_together(dataset):
    images, labels = batches(dataset)[0]
    assert images.shape == labels.shape == (6, 1, *SIZE) and labels.dtype == torch.int64
    bright = dataset.denormalise(images) > 0.5
    assert (bright == (labels == 1)).float().mean() > 0.97
    again = batches(dataset)[0]
    assert torch.equal(images, again[0]) and torch.equal(labels, again[1])
    assert not torch.equal(images, batches(dataset)[1][0])
    assert not torch.equal(images, batches(dataset, seed=1)[0][0])


def test_all_axes_are_flipped_in_about_half_of_the_crops(dataset):
    size = dataset.size_of(0)
    whole = dataset.image(0)
    shown = LabelledBatches(dataset, [0], batch_size=48, image_size=size, seed=0)[0][0]
    flips = {
        tuple(axes): dataset.normalise(whole).flip([axis + 1 for axis in axes])
        for axes in ([], [0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2])
    }
    counts = {axes: sum(torch.equal(one, image) for one in shown) for axes, image in flips.items()}
    assert sum(counts.values()) == 48 and min(counts.values()) > 0


def test_every_third_crop_has_a_voxel_of_a_structure_in_its_middle(dataset):
    _, labels = batches(dataset, size=(8, 8, 8), batch_size=48)[0]
    with_structure = (labels == 1).flatten(1).any(dim=1)
    assert with_structure[2::3].all() and not with_structure.all()


def test_what_lies_outside_a_small_volume_is_black_and_ignored(dataset):
    size = dataset.size_of(0)
    larger = (size[0], size[1] + 10, size[2])
    images, labels = LabelledBatches(dataset, [0], batch_size=3, image_size=larger, seed=0)[0]
    outside = labels == IGNORED
    assert outside[:, :, :, :5].all() and outside[:, :, :, -5:].all()
    assert outside.float().mean() == pytest.approx(10 / larger[1])
    assert (dataset.denormalise(images)[outside].abs() < 1e-6).all()


def test_nnu_nets_augmentation_turns_image_and_label_of_a_volume_together():
    grid = torch.stack(torch.meshgrid(*[torch.arange(24.0)] * 3, indexing="ij"))
    label = ((grid - torch.tensor([8.0, 12, 14]).view(3, 1, 1, 1)).square().sum(dim=0) < 49)[None].long()
    image = 3.0 * label + 0.3 * torch.randn(2, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    augmentation, moved = Augmentation("nnunet", axes=3), 0
    for seed in range(24):
        changed, mask = augmentation(image, label, seed)
        assert changed.shape == image.shape and set(mask.unique().tolist()) <= {0, 1}
        assert changed[0][mask[0] > 0].mean() > changed[0][mask[0] == 0].mean() + 1.0
        moved += not torch.equal(mask, label)
        again = Augmentation("nnunet", axes=3)(image, label, seed)
        assert torch.equal(again[0], changed) and torch.equal(again[1], mask)
    assert 2 <= moved <= 18


def test_a_volume_is_scored_in_millimetres_at_the_resolution_of_its_file(dataset):
    results = evaluate(KNOWING, dataset, "test")
    assert results["hd95_unit"] == "mm"
    entry = results["cases"][0]
    sample = dataset.sample(dataset.indices("test")[0])
    assert sample.label is not None and tuple(sample.label.shape) == (40, 24, 18)
    assert sample.voxel == pytest.approx(ZOOMS), "whatever the order of the axes in the file"
    found = predict(KNOWING, dataset.normalise(sample.image), (40, 24, 18)).numpy() == 1
    true = sample.label.numpy() == 1
    assert entry["dice"] == [pytest.approx(2 * (found & true).sum() / (found.sum() + true.sum()))]
    assert 0.9 < entry["dice"][0] < 1.0, "it is not exact, so that there are distances"
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (found, true)]
    away = [ndimage.distance_transform_edt(~one, sampling=ZOOMS) for one in surfaces]
    directed = [np.percentile(away[1 - side][surfaces[side]], 95) for side in (0, 1)]
    assert entry["hd95"] == [pytest.approx(max(directed))]


def test_validation_and_the_fixed_map_count_voxels(dataset):
    dice = dice_on(KNOWING, dataset, "test", native_resolution=False)
    assert dice is not None and 0 < dice <= 1
    fixed = mean_map(dataset, dataset.indices("train"))
    found = fixed(dataset.sample(0), (40, 24, 18))
    assert found.shape == (40, 24, 18)
    assert found[20, 6, 5] == 1 and found[0, 0, 0] == 0 and found[38, 20, 16] == 0


@pytest.mark.parametrize("spacing", [None, 1.2])
def test_masks_and_maps_of_whole_volumes_lie_on_the_grid_of_the_file(tmp_path, monkeypatch, spacing):
    settings = Processing(scaling=Window(low=0, high=1000), volumes=True, spacing=spacing)
    member = Predictor(KNOWING, (0.0,), (1.0,), False, settings)
    ensemble = Ensemble((member, member))
    monkeypatch.setattr(Ensemble, "of_runs", classmethod(lambda cls, *arguments: ensemble))
    monkeypatch.setattr(parts, "PART_VALUES", 4000)
    (tmp_path / "scans").mkdir()
    codes = ["RAS", "PIL", "SLA", "LPS"]
    for code in codes:
        nibabel.save(lump(code), tmp_path / "scans" / f"{code}.nii.gz")
    config = PredictConfig(
        scans=tmp_path / "scans", run=tmp_path, out=tmp_path / "out", probabilities=True, uncertainty=True
    )
    assert len(run_predict(config)) == 4
    for code in codes:
        found, own = nibabel.load(tmp_path / "out" / f"{code}.nii.gz"), lump(code)
        assert found.shape == own.shape and np.allclose(found.affine, own.affine)
        mask, true = np.asarray(found.dataobj) > 0, np.asarray(own.dataobj) > 0
        assert 2 * (mask & true).sum() / (mask.sum() + true.sum()) > (0.95 if spacing else 0.999), code
        shares = nibabel.load(tmp_path / "out" / "probabilities" / f"{code}.nii.gz")
        assert np.array_equal(np.asarray(shares.dataobj).argmax(axis=-1), mask)
        entropy = nibabel.load(tmp_path / "out" / "uncertainty" / f"{code}.nii.gz")
        assert entropy.shape == own.shape and 0 <= np.asarray(entropy.dataobj).min()
    assert (tmp_path / "out" / "overlays.png").is_file()


def test_one_modality_of_several_asks_for_the_folder_of_all():
    network = Segmenter(untrained(channels=2), 2)
    ensemble = Ensemble((Predictor(network, (0.0,) * 2, (1.0,) * 2, False, Processing(volumes=True)),))
    with pytest.raises(
        InputError, match="has 1, expected 2 .*; give the folder with the files of all modalities"
    ):
        ensemble.scaled(np.zeros((8, 8, 8)), "p_flair.nii")


def test_an_ensemble_is_of_images_or_of_volumes(tmp_path, monkeypatch):
    networks = iter([KNOWING, Segmenter(untrained((16, 16)), 2)])
    monkeypatch.setattr(
        Predictor, "of_run", classmethod(lambda cls, *_: cls(next(networks), (0.0,), (1.0,), False))
    )
    with pytest.raises(InputError, match="one of a and b was trained on images and the other on volumes"):
        Ensemble.of_runs([Path("a"), Path("b")])


def test_runs_on_volumes_refuse_a_flat_image():
    ensemble = Ensemble((Predictor(KNOWING, (0.0,), (1.0,), False, Processing(volumes=True)),))
    with pytest.raises(InputError, match="flat.png is an image, and the run was trained on volumes"):
        ensemble.segment(Pixels(np.zeros((8, 8))), "flat.png")


def test_windows_of_a_probe_lie_side_by_side_over_the_volume():
    assert windows_over((20, 16, 10), SIZE) == [(-6, 0, -3), (10, 0, -3)]
    inside = patches_inside((20, 16, 10), SIZE, SIDE).view(2, 2, 2, 2)
    middles = [[-6 + 4, -6 + 12], [10 + 4, 10 + 12]]
    assert inside[:, :, 0, 0].tolist() == [[0 <= one < 20 for one in row] for row in middles]


def test_the_probe_sees_all_patches_of_a_volume_and_none_outside(dataset):
    splits = ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    probe = Probe(untrained(side=4), dataset.with_splits(splits))
    features, shares = probe.patches([0])
    number = len(windows_over(dataset.size_of(0), SIZE))
    assert features.shape == (number, 64, 128) and shares.shape == (number, 64, 2)
    counted = shares.sum(dim=2)
    assert torch.all((counted - 1).abs().minimum(counted.abs()) < 1e-6) and counted.any()
    label = dataset.label_crop(0, (0, 0, 0), dataset.size_of(0))
    volume = shares[..., 1].sum() * 4**3
    assert float(volume) == pytest.approx(int((label == 1).sum()), rel=0.1), (
        "patches that reach outside count less"
    )
    results = probe(labels=4)
    assert 0 <= results["patch_dice"] <= 1 and len(results["cases"]) == 2 and results["num_images"] == 2
    pixels = PixelProbe(untrained(), dataset.with_splits(splits))
    scores = pixels(labels=4)
    assert scores["grid"] == [8, 8, 8] and scores["ap"] > scores["per_class"]["1"]["share"]


def test_a_volume_is_embedded_by_the_mean_over_the_patches_inside(dataset):
    encoder = Probe(untrained(), dataset, tested=False).encoder
    features = embed(encoder, dataset, (dataset.mean, dataset.std), torch.device("cpu"))
    assert features.shape == (8, 128) and np.isfinite(features).all()


def test_planes_are_upright_and_go_through_the_structure():
    label = torch.zeros(10, 12, 14, dtype=torch.int64)
    label[7, 9, 11] = 1  # right, anterior, superior of the middle
    image = functional.interpolate(label[None, None].float(), (20, 24, 28))[0]
    planes = planes_of("scan", image, label, None, (1.0, 2.0, 4.0))
    assert [plane.caption for plane in planes] == ["axial 12 of 14", "coronal 10 of 12", "sagittal 8 of 10"]
    assert [plane.overlay.aspect for plane in planes] == [2.0, 4.0, 2.0]
    rows_and_columns = [(12 - 1 - 9, 7), (14 - 1 - 11, 7), (14 - 1 - 11, 9)]
    for plane, place in zip(planes, rows_and_columns, strict=True):
        shown = plane.overlay.label
        assert shown is not None and shown.nonzero().tolist() == [list(place)]
        bright = plane.overlay.image[0].nonzero().float().mean(dim=0) / 2
        assert bright.tolist() == pytest.approx([one + 0.25 for one in place])
    middle = planes_of("scan", image, torch.zeros_like(label), None, None)
    assert [plane.at for plane in middle] == [7, 6, 5]


def test_the_cases_of_volumes_are_drawn_in_three_planes(dataset, real_pictures):
    results = evaluate(KNOWING, dataset, "test") | {"split": "test"}
    figure = draw_cases(KNOWING, dataset, results)
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert [title.split("\n")[-1].split()[0] for title in titles] == ["axial", "coronal", "sagittal"] * 2


def test_three_sides_of_crops_ask_for_volumes(tmp_path):
    settings = FinetuneConfig(data=str(tmp_path), image_size=(16, 24, 32), run_dir=tmp_path / "run")
    assert resolve(settings).image_size == (16, 24, 32)


class Stop(Exception):
    pass


@pytest.mark.slow
def test_a_run_on_volumes_continues_exactly_and_segments_scans(folder, tmp_path, monkeypatch):
    settings = FinetuneConfig(
        data=str(folder), image_size=SIZE, patch_size=SIDE, labels=4, steps=4, batch_size=2, checkpoint_every=2,
        augmentation="nnunet", run_dir=tmp_path / "whole", device="cpu",
    )  # fmt: skip
    expected = finetune(resolve(settings))
    assert expected["config"]["decoder"] == "plain" and expected["hd95_unit"] == "mm"
    assert expected["fixed_map_dice"] > 0.5, "the boxes lie in about the same place"
    update = Finetuning.update

    def falls_over(self, step):
        if step == 3:
            raise Stop
        return update(self, step)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Finetuning, "update", falls_over)
        finetune(resolve(dataclasses.replace(settings, run_dir=tmp_path / "run")))
    results = finetune(FinetuneConfig(run_dir=tmp_path / "run"), resume=True)
    assert results["cases"] == expected["cases"]
    write_report(tmp_path / "run")
    assert "slices from top to bottom: axial " in (tmp_path / "run" / "report.html").read_text()
    run_predict(PredictConfig(scans=folder / "images", run=tmp_path / "run", out=tmp_path / "out"))
    scored = run_evaluate(EvaluateConfig(scans=str(folder), run=tmp_path / "run", out=tmp_path / "scores"))
    assert scored["dice"] == pytest.approx(results["dice"])
    case = scored["cases"][0]["case"]
    found = np.asarray(nibabel.load(tmp_path / "out" / f"{case}.nii.gz").dataobj) == 1
    true = np.asarray(nibabel.load(folder / "labels" / f"{case}.nii.gz").dataobj) == 1
    dice = 2 * (found & true).sum() / (found.sum() + true.sum())
    assert scored["cases"][0]["dice"] == [pytest.approx(dice)]
