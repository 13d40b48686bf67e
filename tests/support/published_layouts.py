"""The files of published data sets under their own names, a few cases of each. Files are empty: only names count."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

CASES = (1, 2, 3, 4)


def busi() -> Iterator[str]:
    for kind in ("benign", "malignant", "normal"):
        for n in CASES:
            yield f"Dataset_BUSI_with_GT/{kind}/{kind} ({n}).png"
            yield f"Dataset_BUSI_with_GT/{kind}/{kind} ({n})_mask.png"
    yield "Dataset_BUSI_with_GT/benign/benign (4)_mask_1.png"


def brats2020() -> Iterator[str]:
    root = "MICCAI_BraTS2020_TrainingData"
    yield from (f"{root}/name_mapping.csv", f"{root}/survival_info.csv")
    for n in CASES:
        for kind in ("flair", "seg", "t1", "t1ce", "t2"):
            yield f"{root}/BraTS20_Training_{n:03d}/BraTS20_Training_{n:03d}_{kind}.nii.gz"


def brats2023() -> Iterator[str]:
    for n in CASES:
        for kind in ("seg", "t1c", "t1n", "t2f", "t2w"):
            yield f"BraTS-GLI-{n:05d}-000/BraTS-GLI-{n:05d}-000-{kind}.nii.gz"


def acdc() -> Iterator[str]:
    for split, first in (("training", 0), ("testing", 100)):
        yield f"database/{split}/MANDATORY_CITATION.md"
        for n in CASES:
            patient = f"patient{first + n:03d}"
            for ending in ("4d", "frame01", "frame01_gt", "frame12", "frame12_gt"):
                yield f"database/{split}/{patient}/{patient}_{ending}.nii.gz"
            yield f"database/{split}/{patient}/Info.cfg"


def mms() -> Iterator[str]:
    for folder, letter in (("Training/Labeled", "A"), ("Validation", "B"), ("Testing", "C")):
        for n in CASES:
            name = f"{letter}{n}S9V{n}"
            yield f"OpenDataset/{folder}/{name}/{name}_sa.nii.gz"
            yield f"OpenDataset/{folder}/{name}/{name}_sa_gt.nii.gz"
    yield "OpenDataset/211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"


def btcv() -> Iterator[str]:
    for n in CASES:
        yield f"RawData/Training/img/img{n:04d}.nii.gz"
        yield f"RawData/Training/label/label{n:04d}.nii.gz"
        yield f"RawData/Testing/img/img{n + 60:04d}.nii.gz"


def chase() -> Iterator[str]:
    for n in CASES:
        for eye in "LR":
            for ending in (".jpg", "_1stHO.png", "_2ndHO.png"):
                yield f"CHASEDB1/Image_{n:02d}{eye}{ending}"


def cvc() -> Iterator[str]:
    yield "metadata.csv"
    for n in CASES:
        for kind in ("Original", "Ground Truth"):
            yield f"PNG/{kind}/{n}.png"
            yield f"TIF/{kind}/{n}.tif"


def isic() -> Iterator[str]:
    for split, first in (("Training", 0), ("Test", 50)):
        images, labels = f"ISIC-2017_{split}_Data", f"ISIC-2017_{split}_Part1_GroundTruth"
        for n in CASES:
            name = f"ISIC_{first + n:07d}"
            yield from (f"{images}/{name}.jpg", f"{images}/{name}_superpixels.png")
            yield f"{labels}/{name}_segmentation.png"
        yield f"{images}/ISIC-2017_{split}_Data_metadata.csv"


def isic2018() -> Iterator[str]:
    for n in CASES:
        yield f"ISIC2018_Task1-2_Training_Input/ISIC_{n:07d}.jpg"
        yield f"ISIC2018_Task1_Training_GroundTruth/ISIC_{n:07d}_segmentation.png"
        yield f"ISIC2018_Task1-2_Test_Input/ISIC_{n + 90:07d}.jpg"
    yield "ISIC2018_Task1-2_Training_Input/ATTRIBUTION.txt"


def ph2() -> Iterator[str]:
    for n in CASES:
        case = f"IMD{n:03d}"
        folder = f"PH2Dataset/PH2 Dataset images/{case}"
        yield f"{folder}/{case}_Dermoscopic_Image/{case}.bmp"
        yield f"{folder}/{case}_lesion/{case}_lesion.bmp"
        yield f"{folder}/{case}_roi/{case}_R1_Label3.bmp"
    yield "PH2Dataset/PH2_dataset.xlsx"


def kits() -> Iterator[str]:
    for n in CASES:
        yield from (f"case_{n:05d}/imaging.nii.gz", f"case_{n:05d}/segmentation.nii.gz")
    yield "kits.json"


def decathlon() -> Iterator[str]:
    for n in CASES:
        for folder in ("imagesTr", "labelsTr"):
            yield from (f"{folder}/hippocampus_{n:03d}.nii.gz", f"{folder}/._hippocampus_{n:03d}.nii.gz")
        yield f"imagesTs/hippocampus_{n + 200:03d}.nii.gz"
    yield from ("imagesTr/.DS_Store", "imagesTr/Thumbs.db", "__MACOSX/imagesTr/._hippocampus_001.nii.gz")


def refuge() -> Iterator[str]:
    for n in CASES:
        for kind, letter in (("Glaucoma", "g"), ("Non-Glaucoma", "n")):
            yield f"Training400/{kind}/{letter}{n:04d}.jpg"
            yield f"Annotation-Training400/Disc_Cup_Masks/{kind}/{letter}{n:04d}.bmp"
        yield f"REFUGE-Validation400/V{n:04d}.jpg"
        yield f"REFUGE-Validation400-GT/Disc_Cup_Masks/V{n:04d}.bmp"


def dsb2018() -> Iterator[str]:
    for n in CASES:
        case = f"{n:02d}ae{n}c"
        yield f"stage1_train/{case}/images/{case}.png"
        yield from (f"stage1_train/{case}/masks/{letter}7{n}f.png" for letter in "abc")
        yield f"stage1_test/{n}f/images/{n}f.png"


def bids() -> Iterator[str]:
    yield from ("dataset_description.json", "participants.tsv", "README")
    for n in CASES:
        for session in (1, 2):
            folder, name = f"sub-{n:02d}/ses-{session}/anat", f"sub-{n:02d}_ses-{session}"
            yield from (f"{folder}/{name}_T1w.nii.gz", f"{folder}/{name}_T1w.json")
            yield f"derivatives/manual_masks/{folder}/{name}_space-orig_label-lesion_mask.nii.gz"
            yield f"derivatives/fmriprep/{folder}/{name}_desc-preproc_T1w.nii.gz"


def lgg() -> Iterator[str]:
    for n in CASES:
        for at in (1, 2):
            name = f"TCGA_CS_{n + 4940}_19930114"
            yield from (f"kaggle_3m/{name}/{name}_{at}.tif", f"kaggle_3m/{name}/{name}_{at}_mask.tif")
    yield from ("kaggle_3m/data.csv", "kaggle_3m/README.md")


def lits() -> Iterator[str]:
    for n in CASES:
        yield f"Training Batch {1 + n // 3}/volume-{n}.nii"
        yield f"Training Batch {1 + n // 3}/segmentation-{n}.nii"


def mmwhs() -> Iterator[str]:
    for n in CASES:
        yield from (
            f"ct_train/ct_train_{n + 1000}_image.nii.gz",
            f"ct_train/ct_train_{n + 1000}_label.nii.gz",
        )
        yield f"ct_test/ct_test_{n + 2000}_image.nii.gz"


def drive() -> Iterator[str]:
    for split, first in (("training", 20), ("test", 0)):
        for n in CASES:
            number = f"{first + n:02d}"
            yield f"{split}/images/{number}_{split}.tif"
            yield f"{split}/1st_manual/{number}_manual1.png"
            yield f"{split}/mask/{number}_{split}_mask.png"
            if split == "test":
                yield f"{split}/2nd_manual/{number}_manual2.png"


def kits21() -> Iterator[str]:
    for n in CASES:
        yield from (f"case_{n:05d}/imaging.nii.gz", f"case_{n:05d}/aggregated_MAJ_seg.nii.gz")
        yield f"case_{n:05d}/segmentations/kidney_instance-1_annotation-1.nii.gz"


def kits21_all() -> Iterator[str]:
    for n in CASES:
        case = f"case_{n:05d}"
        yield f"{case}/imaging.nii.gz"
        yield from (f"{case}/aggregated_{kind}_seg.nii.gz" for kind in ("AND", "MAJ", "OR"))
        yield from (f"{case}/segmentations/kidney_instance-1_annotation-{k}.nii.gz" for k in (1, 2, 3))


def kits23() -> Iterator[str]:
    for n in CASES:
        case = f"case_{n:05d}"
        yield from (f"{case}/imaging.nii.gz", f"{case}/segmentation.nii.gz")
        yield from (f"{case}/instances/kidney_instance-{k}_annotation-1.nii.gz" for k in (1, 2))


def drive_without_test_labels() -> Iterator[str]:
    yield from (file for file in drive() if not file.startswith(("test/1st", "test/2nd")))


def montgomery() -> Iterator[str]:
    for n in CASES:
        name = f"MCUCXR_{n:04d}_0"
        yield from (f"MontgomerySet/CXR_png/{name}.png", f"MontgomerySet/ClinicalReadings/{name}.txt")
        yield from (f"MontgomerySet/ManualMask/{side}Mask/{name}.png" for side in ("left", "right"))


def totalsegmentator() -> Iterator[str]:
    yield "meta.csv"
    for n in CASES:
        yield f"s{n:04d}/ct.nii.gz"
        yield from (
            f"s{n:04d}/segmentations/{organ}.nii.gz" for organ in ("aorta", "kidney_left", "kidney_right")
        )


def idrid() -> Iterator[str]:
    root = "A. Segmentation"
    for n in CASES:
        yield f"{root}/1. Original Images/a. Training Set/IDRiD_{n:02d}.jpg"
        for number, (name, short) in enumerate((("Microaneurysms", "MA"), ("Haemorrhages", "HE")), 1):
            folder = f"{root}/2. All Segmentation Groundtruths/a. Training Set/{number}. {name}"
            yield f"{folder}/IDRiD_{n:02d}_{short}.tif"


def isbi_ms() -> Iterator[str]:
    for n in CASES:
        for time in (1, 2):
            name = f"training{n:02d}_{time:02d}"
            kinds = ("flair", "mprage", "pd", "t2")
            yield from (f"training{n:02d}/preprocessed/{name}_{kind}_pp.nii" for kind in kinds)
            yield from (f"training{n:02d}/masks/{name}_mask{k}.nii" for k in (1, 2))


def ms_consensus() -> Iterator[str]:
    for n in CASES:
        yield from (
            f"patient{n:02d}/patient{n:02d}_{kind}.nii.gz" for kind in ("FLAIR", "T1", "T2", "consensus_gt")
        )
        yield f"patient{n:02d}/patient{n:02d}_mask1.nii.gz"


def isles2015() -> Iterator[str]:
    for n in CASES:
        for number, kind in enumerate(("MR_DWI", "MR_Flair", "MR_T1", "MR_T2", "OT")):
            name = f"VSD.Brain.XX.O.{kind}.{70600 + 5 * n + number}"
            yield f"SISS2015_Training/{n}/{name}/{name}.nii"


def isles2022() -> Iterator[str]:
    for n in CASES:
        case = f"sub-strokecase{n:04d}"
        name = f"{case}_ses-0001"
        yield from (
            f"{case}/ses-0001/dwi/{name}_{kind}.{end}"
            for kind in ("dwi", "adc")
            for end in ("nii.gz", "json")
        )
        yield f"{case}/ses-0001/anat/{name}_FLAIR.nii.gz"
        yield f"derivatives/{case}/ses-0001/{name}_msk.nii.gz"


def kaggle_brats() -> Iterator[str]:
    for n in CASES:
        case = f"BraTS2021_{n:05d}"
        yield from (
            f"{case}/{case}_{kind}.nii/{case}_{kind}.nii" for kind in ("flair", "t1", "t1ce", "t2", "seg")
        )


def stare() -> Iterator[str]:
    for n in CASES:
        yield from (f"im{n:04d}.png", f"labels-ah/im{n:04d}.ah.png")


def hrf() -> Iterator[str]:
    for n in CASES:
        yield f"images/{n:02d}_dr.JPG"
        yield from (f"manual1/{n:02d}_dr.tif", f"mask/{n:02d}_dr_mask.tif")


def pet_ct() -> Iterator[str]:
    for n in CASES:
        yield from (f"patient{n}/study/{kind}.nii.gz" for kind in ("PET", "CT", "SEG"))


def amos() -> Iterator[str]:
    for n in CASES:
        for folder, first in (("Tr", 0), ("Va", 100), ("Ts", 200)):
            yield f"images{folder}/amos_{first + n:04d}.nii.gz"
            if folder != "Ts":
                yield f"labels{folder}/amos_{first + n:04d}.nii.gz"


def write_published(name: str, root: Path) -> Path:
    """Makes the empty files of a data set; returns its folder."""
    for file in globals()[name]():
        path = root / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root / name
