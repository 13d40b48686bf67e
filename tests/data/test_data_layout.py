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


def test_files_of_the_same_names_for_every_case_are_classes_and_no_parts_of_a_label(tmp_path: Path):
    for case in ("s1", "s2", "s3"):
        for name in ("ct", "segmentations/liver", "segmentations/spleen"):
            path = tmp_path / case / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    layout = find_layout(tmp_path)
    assert len(layout.scans) == 3 and not any(scan.labels for scan in layout.scans)
    assert "each may be a class of its own" in layout.faults[0]
