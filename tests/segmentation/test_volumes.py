"""Volumes of NIfTI files, scored as volumes."""

import nibabel
import numpy as np
import pytest
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.surface_dice import compute_surface_dice

from ahm_gym.data import open_data
from ahm_gym.errors import InputError
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.segmentation import evaluation
from ahm_gym.segmentation.config import FinetuneConfig
from ahm_gym.segmentation.evaluation import Segmented, evaluate, stacked
from ahm_gym.segmentation.inputs import resolve
from ahm_gym.segmentation.segmenter import Segmenter

ZOOMS = (0.8, 1.2, 3.0)
CONSTANT = (0, 1, 6, 11)
"""Slices without content, at the ends and inside of the structure."""


def scans(folder, number=5, zooms=ZOOMS):
    for case in range(number):
        rng = np.random.default_rng(case)
        image = rng.integers(1, 900, (20, 24, 12), dtype=np.int16)
        image[:, :, CONSTANT] = 5
        label = np.zeros(image.shape, np.uint8)
        label[4:10, 6:14, 4 : 9 + case % 2] = 1
        label[6:9, 8:12, 5:8] = 2
        label[:, :, 6] = 0
        for kind, array in (("images", image), ("labels", label)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            nifti = nibabel.Nifti1Image(array, np.diag([*zooms, 1.0]))
            nibabel.save(nifti, folder / kind / f"scan{case}.nii.gz")
    return open_data(str(folder), image_size=(16, 16), native_resolution=True)


@pytest.fixture
def shifted(monkeypatch):
    """A segmenter that predicts the label one row lower, and nothing in slices from 8 on."""

    def segment(segmenter, dataset, index, native_resolution):
        sample = dataset.sample(index)
        found = sample.label.roll(1, 0) if sample.position[0] < 8 else torch.zeros_like(sample.label)
        return sample, found

    monkeypatch.setattr(evaluation, "segment", segment)
    return Segmenter(build_autoencoder("tiny", image_size=(16, 16), patch_size=8, channels=1).encoder, 3)


def test_slices_know_their_place_and_spacing(tmp_path):
    dataset = scans(tmp_path / "scans")
    samples = [dataset.sample(index) for index in range(8)]
    assert [sample.position for sample in samples] == [(at, 12) for at in range(12) if at not in CONSTANT]
    assert {sample.slice_spacing for sample in samples} == {3.0}
    assert samples[0].voxel == pytest.approx((1.2, 0.8, 3.0)), "turned by a right angle, as the slices are"


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
def test_a_volume_is_scored_as_monai_scores_the_stacked_array(tmp_path, shifted):
    dataset = scans(tmp_path / "scans")
    results = evaluate(shifted, dataset, "test", surface_tolerance=1.3)
    assert results["hd95_unit"] == "mm" and results["surface_tolerance"] == 1.3
    (entry,) = results["cases"]
    file = nibabel.load(tmp_path / "scans" / "labels" / f"{entry['case']}.nii.gz")
    label = torch.from_numpy(np.rot90(np.asarray(file.dataobj)).copy()).long()
    found = label.roll(1, 0)
    found[:, :, 8:] = 0
    masks = [torch.nn.functional.one_hot(one, 3).permute(3, 0, 1, 2)[None] for one in (found, label)]
    voxel = [1.2, 0.8, 3.0]
    distance = compute_hausdorff_distance(*masks, percentile=95, spacing=voxel)
    assert entry["hd95"] == pytest.approx(distance[0].tolist())
    share = compute_surface_dice(*masks, class_thresholds=[1.3, 1.3], spacing=voxel)
    assert entry["nsd"] == pytest.approx(share[0].tolist())
    overlap = [
        float(2 * ((found == k) & (label == k)).sum() / ((found == k).sum() + (label == k).sum()))
        for k in (1, 2)
    ]
    assert entry["dice"] == pytest.approx(overlap)
    assert entry["images"] == 8 and entry["missed"] == [0, 0]


def test_without_the_spacing_between_slices_distances_are_in_pixels_and_it_is_said(tmp_path, shifted, capsys):
    dataset = scans(tmp_path / "scans")
    in_mm = evaluate(shifted, dataset, "test")
    assert "spacing between slices" not in capsys.readouterr().err
    dataset._records["slice_spacing"] = [None] * len(dataset)
    in_pixels = evaluate(shifted, dataset, "test")
    assert in_pixels["hd95_unit"] == "pixels" and in_pixels["hd95"] != in_mm["hd95"]
    assert "note: scans: the spacing between slices is not known" in capsys.readouterr().err


def slice_at(position, value=1):
    label = torch.full((4, 5), value, dtype=torch.uint8)
    return Segmented(label, 2 * label, (1.0, 1.0, 2.0), position)


def test_slices_that_are_not_there_are_background_and_a_step_back_begins_another_volume():
    first, second = stacked([slice_at((2, 9)), slice_at((5, 9)), slice_at((2, 9)), slice_at((3, 9))])
    assert first.label.shape == first.prediction.shape == (4, 5, 4) and second.label.shape == (4, 5, 2)
    assert first.label[0, 0].tolist() == [2, 0, 0, 2] and first.prediction[0, 0].tolist() == [1, 0, 0, 1]
    assert first.num_slices == 9 and first.spacing == (1.0, 1.0, 2.0)


def test_images_that_are_no_slices_stay_images():
    one, two = stacked([slice_at(None), slice_at(None)])
    assert one.label.shape == two.label.shape == (4, 5) and one.num_slices is None


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"surface_tolerance": -1.0}, "`surface_tolerance` is -1.0: choose 0 or a positive number"),
        ({"missed_distance": "diagnal"}, "unknown missed distance 'diagnal': did you mean 'diagonal'"),
    ],
)
def test_settings_of_the_scores_are_checked(setting, message):
    with pytest.raises(InputError, match=message):
        resolve(FinetuneConfig(**setting))
