"""Folders as they are downloaded: what is understood of them, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from published_layouts import write_published

from ahm_gym.data.search import find_layout

PUBLISHED: dict[str, tuple[int, int, str, int, str, str]] = {
    # scans, labels, modalities, files left out, the first id, the first place
    "busi": (12, 13, "", 0, "benign (1)", "Dataset_BUSI_with_GT/benign/benign (1)"),
    "brats2020": (
        4, 4, "t1 t1ce t2 flair", 0, "BraTS20_Training_001",
        "MICCAI_BraTS2020_TrainingData/BraTS20_Training_001/BraTS20_Training_001",
    ),
    "brats2023": (
        4, 4, "t1n t1c t2w t2f", 0, "BraTS-GLI-00001-000", "BraTS-GLI-00001-000/BraTS-GLI-00001-000",
    ),
    "acdc": (16, 16, "", 8, "patient101_frame01", "database/testing/patient101/patient101_frame01"),
    "mms": (12, 12, "", 0, "C1S9V1_sa", "OpenDataset/Testing/C1S9V1/C1S9V1_sa"),
    "btcv": (4, 4, "", 4, "img0001", "RawData/Training/img/img0001"),
    "chase": (8, 8, "", 8, "Image_01L", "CHASEDB1/Image_01L"),
    "cvc": (4, 4, "", 8, "1", "PNG/Original/1"),
    "isic": (8, 8, "", 8, "ISIC_0000051", "ISIC-2017_Test_Data/ISIC_0000051"),
    "isic2018": (4, 4, "", 4, "ISIC_0000001", "ISIC2018_Task1-2_Training_Input/ISIC_0000001"),
    "ph2": (
        4, 4, "", 4, "IMD001", "PH2Dataset/PH2 Dataset images/IMD001/IMD001_Dermoscopic_Image/IMD001",
    ),
    "kits": (4, 4, "", 0, "case_00001_imaging", "case_00001/imaging"),
    "decathlon": (4, 4, "", 4, "hippocampus_001", "imagesTr/hippocampus_001"),
    "refuge": (12, 12, "", 0, "V0001", "REFUGE-Validation400/V0001"),
    "dsb2018": (4, 12, "", 4, "01ae1c", "stage1_train/01ae1c/images/01ae1c"),
    "bids": (8, 8, "", 8, "sub-01_ses-1_T1w", "sub-01/ses-1/anat/sub-01_ses-1_T1w"),
    "lgg": (
        8, 8, "", 0, "TCGA_CS_4941_19930114_1",
        "kaggle_3m/TCGA_CS_4941_19930114/TCGA_CS_4941_19930114_1",
    ),
    "lits": (4, 4, "", 0, "volume-1", "Training Batch 1/volume-1"),
    "mmwhs": (4, 4, "", 4, "ct_train_1001_image", "ct_train/ct_train_1001_image"),
    "kits21": (4, 4, "", 4, "case_00001_imaging", "case_00001/imaging"),
    "stare": (4, 4, "", 0, "im0001", "im0001"),
    "hrf": (4, 4, "", 4, "01_dr", "images/01_dr"),
    "pet_ct": (4, 4, "ct pet", 0, "patient1_study", "patient1/study"),
    "amos": (8, 8, "", 4, "amos_0001", "imagesTr/amos_0001"),
    "drive": (8, 8, "", 12, "01_test", "test/images/01_test"),
    "drive_without_test_labels": (4, 4, "", 12, "21_training", "training/images/21_training"),
    "kits21_all": (4, 4, "", 20, "case_00001_imaging", "case_00001/imaging"),
    "kits23": (4, 4, "", 8, "case_00001_imaging", "case_00001/imaging"),
    "montgomery": (4, 8, "", 0, "MCUCXR_0001_0", "MontgomerySet/CXR_png/MCUCXR_0001_0"),
    "totalsegmentator": (4, 12, "", 0, "s0001_ct", "s0001/ct"),
    "idrid": (4, 8, "", 0, "IDRiD_01", "A. Segmentation/1. Original Images/a. Training Set/IDRiD_01"),
    "isbi_ms": (
        8, 16, "mprage t2 flair pd", 0, "training01_01", "training01/preprocessed/training01_01",
    ),
    "ms_consensus": (4, 4, "t1 t2 flair", 4, "patient01", "patient01/patient01"),
    "isles2015": (4, 4, "t1 t2 flair dwi", 0, "1", "SISS2015_Training/1"),
    "isles2022": (
        4, 4, "dwi adc", 4, "sub-strokecase0001_ses-0001",
        "sub-strokecase0001/ses-0001/dwi/sub-strokecase0001_ses-0001",
    ),
    "kaggle_brats": (4, 4, "t1 t1ce t2 flair", 0, "BraTS2021_00001", "BraTS2021_00001/BraTS2021_00001"),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_data_sets_are_understood(tmp_path: Path, name: str):
    scans, labels, modalities, left_out, first, place = PUBLISHED[name]
    layout = find_layout(write_published(name, tmp_path))
    assert not layout.faults
    assert len(layout.scans) == scans and all(scan.labels for scan in layout.scans)
    assert sum(len(scan.labels) for scan in layout.scans) == labels
    assert " ".join(layout.modalities) == modalities
    assert len(layout.left_out) == left_out, layout.left_out
    assert (layout.scans[0].id, layout.scans[0].place) == (first, place)
    assert len({scan.id for scan in layout.scans}) == scans
    stated = name in ("acdc", "mms", "isic", "refuge", "drive", "amos")
    assert all((scan.split is not None) == stated for scan in layout.scans)
    used = {path for scan in layout.scans for path in (*scan.images, *scan.labels)}
    assert not used & layout.left_out.keys()


CLASSES: dict[str, dict[int, str]] = {
    "totalsegmentator": {1: "aorta", 2: "kidney_left", 3: "kidney_right"},
    "idrid": {1: "Haemorrhages", 2: "Microaneurysms"},
    "montgomery": {},
    "dsb2018": {},
}


@pytest.mark.parametrize("name", CLASSES)
def test_labels_in_files_of_recurring_names_are_classes_and_other_files_parts_of_a_label(
    tmp_path: Path, name: str
):
    layout = find_layout(write_published(name, tmp_path))
    assert layout.classes == CLASSES[name]
    for scan in layout.scans:
        numbers = sorted(scan.label_classes)
        assert numbers == [*CLASSES[name]]
        for path, number in zip(scan.labels, scan.label_classes, strict=False):
            assert CLASSES[name][number] in str(path)
    doubt = f"1 {CLASSES[name][1]}, 2" if CLASSES[name] else "is a class"
    assert any(doubt in sentence for sentence in layout.doubts) == bool(CLASSES[name])


def test_reasons_for_labels_that_are_left_out_are_true(tmp_path: Path):
    reasons = {
        name: set(find_layout(write_published(name, tmp_path)).left_out.values())
        for name in ("drive", "hrf", "kits21_all", "kits23", "isles2022")
    }
    view = "it may be a field of view, because observers have drawn other labels"
    assert view in reasons["drive"] and reasons["hrf"] == {view}
    assert "the label named MAJ, on which several agree, is used" in reasons["kits21_all"]
    assert reasons["kits23"] == {"the image of its case has a label by another name"}
    assert reasons["isles2022"] == {"it is not one of the stacked modalities of a case"}


def test_a_case_of_which_some_classes_are_missing_keeps_the_numbers_of_the_others(tmp_path: Path):
    for case, organs in (("s1", "liver spleen"), ("s2", "liver spleen"), ("s3", "spleen")):
        for name in ("ct", *(f"segmentations/{organ}" for organ in organs.split())):
            path = tmp_path / case / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    layout = find_layout(tmp_path)
    assert layout.classes == {1: "liver", 2: "spleen"}
    assert [scan.label_classes for scan in layout.scans] == [(1, 2), (1, 2), (2,)]


def test_more_files_of_classes_than_there_may_be_are_a_fault_with_a_way_out(tmp_path: Path):
    for case in ("s1", "s2"):
        for name in (
            "ct",
            *(f"segmentations/organ{letter}{other}" for letter in "abcdefgh" for other in "abcdefgh"),
        ):
            path = tmp_path / case / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    layout = find_layout(tmp_path)
    assert (
        not layout.labels and "named after 64 classes" in layout.faults[0] and "{class}" in layout.faults[0]
    )
