"""Who is one patient: by pattern, by what files state, by folders and by names; and what is doubtful."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_folders import RNG, SIZE, write
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from ahm_gym.data import ImageDataset, open_data
from ahm_gym.data.patients import Evidence, Patients, find_patients
from ahm_gym.data.sample import SPLITS
from ahm_gym.data.splits import choose_splits
from ahm_gym.errors import InputError


def found(names: list[str], stated: list[str | None] | None = None, pattern: str | None = None) -> Patients:
    given = stated or [None] * len(names)
    evidence = [Evidence(name, one) for name, one in zip(names, given, strict=True)]
    return find_patients(evidence, pattern)


def formed(form: str, *parts: object) -> list[str]:
    """All combinations of the parts, in a form such as `{}_{:02d}`; a number n stands for 0 to n - 1."""
    return [
        form.format(*p) for p in product(*(range(p) if isinstance(p, int) else str(p).split() for p in parts))
    ]


SCHEMES = [
    (formed("{1}_A{0}S{0}V{0}_sa", 12, "ED ES"), lambda name: name.split("_")[1]),
    (formed("{1}_A{0}S{0}V{0}", 8, "xx yy"), lambda name: name.split("_")[1]),
    (formed("LIDC-{:04d}-slice{:03d}", 8, 6), lambda name: name[:9]),
    (formed("case{:02d}.slice{:02d}", 8, 6), lambda name: name[:6]),
    (formed("patient{:02d} ({})", 8, 6), lambda name: name[:9]),
    (formed("case{:03d}slice{:03d}", 8, 6), lambda name: name[:7]),
    (formed("patient{:02d}_slice_{:02d}_t1", 8, 6), lambda name: name[:9]),
    (formed("slice{1:03d}_LIDC{0:02d}", 12, 4), lambda name: name.split("_")[1]),
    (formed("{:02d}[{}]", 8, 6), lambda name: name[:2]),
    (formed("scan{:02d}.{:02d}", 8, 6), lambda name: name[:6]),
    (formed("P{}S{}", 8, 6), lambda name: name[:2]),
    (formed("patient{:04d}_{}_{}", 15, "2CH 4CH", "ED ES"), lambda name: name[:11]),
    (formed("BraTS-GLI-{:05d}-000-{}", 15, "t1c t1n t2f t2w"), lambda name: name[:15]),
    (formed("Image_{:02d}{}", 14, "L R"), lambda name: name[:8]),
    (formed("{1}{0:02d}", 14, "OD OS"), lambda name: name[2:]),
    (formed("{:08d}_{:03d}", 15, 3), lambda name: name[:8]),
    (formed("TCGA_{0}_49{1}_19960909_{2}", "CS DU", "41 42 43 44 45 46", 3), lambda name: name[:12]),
    (formed("2019-03-1{1}_{0:04d}_{2}", 15, 4, 2), lambda name: name[11:15]),
    (formed("{}_{:02d}", "anna bert carl dora", 4), lambda name: name[:4]),
    (formed("sub-{0:02d}/ses-{1}/anat/sub-{0:02d}_ses-{1}_T1w", 12, 2), lambda name: name[:6]),
    (formed("patient{0:03d}/patient{0:03d}_frame{1}", 12, 2), lambda name: name[:10]),
    (formed("{}/A{:03d}/IM{}", "benign malignant", 12, 2), lambda name: name.split("/")[1]),
    (formed("{:03d}_{}/IM{}", 12, "T1 T2", 2), lambda name: name[:3]),
    (formed("{}/p{:03d}", "T1 T2", 12), lambda name: name[3:]),
    (formed("{}_{:03d}", "benign malignant", 30), lambda name: name),
    (formed("{}/{:03d}", "train test", 30), lambda name: name),
    (formed("img_{:03d}", 300), lambda name: name),
    (["001_HC", "010_HC", "010_2HC", *formed("0{}_HC", "11 12 13 14 15 16 17 18")], lambda name: name[:3]),
]  # fmt: skip


@pytest.mark.parametrize(("names", "patient"), SCHEMES, ids=[names[0] for names, _ in SCHEMES])
def test_the_patient_is_found_in_names(names: list[str], patient):
    result = found(names)
    assert result.of_images == [patient(name) for name in names]
    assert [example[0] for example in result.examples] == [names[0], names[len(names) // 2], names[-1]]


def test_numbered_images_and_images_of_classes_are_on_their_own_with_a_doubt():
    numbered, classes = found(formed("img_{:03d}", 30)), found(formed("{} ({})", "benign malignant", 30))
    assert numbered.series and "neighbours in a numbered series may show one patient" in numbered.doubts[0]
    assert classes.series and "words such as benign are classes" in classes.doubts[0]
    assert numbered.certainty == classes.certainty == "guess"
    assert all("--patient-regex or a split.csv settles it" in d for d in numbered.doubts + classes.doubts)


def test_the_pattern_decides_by_its_first_group_or_its_match():
    names = formed("{1}_A{0}_sa", 12, "ED ES")
    assert found(names, pattern=r"A\d+").of_images == [name.split("_")[1] for name in names]
    result = found(names, pattern=r"_A(\d+)")
    assert result.of_images == [name.split("_")[1][1:] for name in names]
    assert result.certainty == "sure" and result.doubts == ()


def test_a_part_that_recurs_in_several_patients_is_doubtful():
    doubts = found(formed("{1}_A{0}S{0}_sa", 12, "ED ES"), pattern="^[^_]+_[^_]+").doubts
    assert (
        len(doubts) == 1
        and "'a0s0' stands in the names of several patients, such as ED_A0S0 and ES" in doubts[0]
    )


@pytest.mark.parametrize(
    ("pattern", "message"), [("A([", "is not a regular expression"), ("B", "finds no patient in 'A1_1'")]
)
def test_a_pattern_that_does_not_fit_is_refused(pattern: str, message: str):
    with pytest.raises(InputError, match=rf"`patient_regex=.*{message}"):
        found(["A1_1", "A1_2"], pattern=pattern)


@pytest.mark.parametrize(
    "placeholder", ["ANON", "anonymized", "Anonymous", " ", "0", "000000", "N/A", "XXXX", "same1"]
)
def test_patients_that_identify_nobody_are_left_to_the_names(placeholder: str):
    names = formed("pat{}_{}", 4, 2)
    result = found(names, [placeholder] * 8)
    assert result.of_images == [name[:4] for name in names]
    assert "it is not used" in result.doubts[0] or placeholder == " "


def test_files_state_their_patients():
    result = found(formed("IM{:04d}", 40), [f"ANON{i // 2:03d}" for i in range(40)])
    assert (len(set(result.of_images)), result.certainty, result.doubts) == (20, "sure", ())
    only = found(formed("IM{:04d}", 40), ["X77"] * 40)
    assert set(only.of_images) == {"X77"} and "only one patient, X77" in only.doubts[0]


def test_files_that_state_no_patient_join_that_of_their_name():
    result = found(formed("pat{}_{}", 3, 2), ["X0", None, "X1", "X1", None, "ANON"])
    assert result.of_images == ["X0", "X0", "X1", "X1", "pat2", "pat2"]
    assert any("3 of 6 images state no patient" in doubt for doubt in result.doubts)


def test_slices_of_one_volume_have_one_patient():
    evidence = [Evidence(f"s{i}", f"X{i // 2}", volume=f"v{i // 3}") for i in range(12)]
    patients = find_patients(evidence).of_images
    assert len({(one.volume, p) for one, p in zip(evidence, patients, strict=True)}) == 4
    assert len({(one.stated, p) for one, p in zip(evidence, patients, strict=True)}) == 6


def test_few_and_uneven_patients_are_doubtful():
    doubts = found([f"p{0 if i < 20 else i}_{i}" for i in range(24)]).doubts
    assert any("only 5 patients" in doubt for doubt in doubts)
    assert any("20 of 24 images are of one patient, p0" in doubt for doubt in doubts)


NAMES = st.lists(st.text("ab01_- /sp.", min_size=1, max_size=8), min_size=1, max_size=40, unique=True)


@given(names=NAMES, stated=st.lists(st.sampled_from([None, "A", "B", "C", "ANON"]), min_size=40, max_size=40))
def test_no_patient_is_in_two_splits_whatever_the_names(names: list[str], stated: list[str | None]):
    evidence = [Evidence(name, one, name[:2]) for name, one in zip(names, stated, strict=False)]
    patients = find_patients(evidence)
    splits = choose_splits([None] * len(names), evidence, patients, None)
    assert len(set(zip(patients.of_images, splits, strict=True))) == len(set(patients.of_images))
    volumes = {(one.volume, split) for one, split in zip(evidence, splits, strict=True)}
    assert len(volumes) == len({one.volume for one in evidence})


def splits_of_patients(dataset: ImageDataset) -> dict[str, set[str]]:
    own: dict[str, set[str]] = {}
    for split in SPLITS:
        for index in dataset.indices(split):
            own.setdefault(dataset.found["patients"][index], set()).add(split)
    return own


def volumes(folder: Path) -> Iterator[Path]:
    for patient, phase in product(range(12), ("ED", "ES")):
        yield folder / f"{phase}_A{patient}S{9 - patient % 5}V{patient}_sa.nii.gz"


def test_phases_of_a_patient_stay_together_and_it_is_told_at_every_opening(tmp_path: Path, capsys):
    for path in volumes(tmp_path):
        nibabel.save(nibabel.Nifti1Image(RNG.integers(0, 900, (9, 8, 3)).astype(np.int16), np.eye(4)), path)
    for _ in range(2):
        dataset = open_data(str(tmp_path), image_size=SIZE)
        told = capsys.readouterr().err
        assert ": 72 images of 12 patients (by their names: ED_A0S9V0_sa → A0S9V0, " in told
        assert "; likely): 9/1/2 patients in train/val/test.\n" in told
    own = splits_of_patients(dataset)
    assert len(own) == 12 and all(len(splits) == 1 for splits in own.values())
    assert dataset.describe_patients() == {
        "patients": 12, "rule": "by their names", "certainty": "likely", "doubts": [],
    }  # fmt: skip


def test_the_pattern_is_part_of_the_cache(tmp_path: Path):
    for name in formed("{}_x{}", "a b c d", 3):
        write(tmp_path / f"{name}.png")
    by_letter, by_number = (
        open_data(str(tmp_path), image_size=SIZE, patient_regex=pattern) for pattern in ("^.", r"\d")
    )
    assert set(splits_of_patients(by_letter)) == set("abcd") and set(splits_of_patients(by_number)) == set(
        "012"
    )


def write_dicom(path: Path, patient: str) -> None:
    file = pydicom.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = generate_uid()
    file.PatientID, file.PhotometricInterpretation, file.SamplesPerPixel = patient, "MONOCHROME2", 1
    file.Rows, file.Columns, file.BitsAllocated, file.BitsStored, file.HighBit = 12, 10, 8, 8, 7
    file.PixelRepresentation, file.PixelData = 0, RNG.integers(0, 200, (12, 10), dtype=np.uint8).tobytes()
    file.save_as(path, enforce_file_format=True)


def test_dicom_of_anonymous_patients_is_split_by_names(tmp_path: Path, capsys):
    for name in formed("pat{}_{}", 4, 2):
        write_dicom(tmp_path / f"{name}.dcm", "ANON")
    assert set(splits_of_patients(open_data(str(tmp_path), image_size=SIZE))) == set(formed("pat{}", 4))
    assert "the PatientID of 8 images identifies nobody (ANON)" in capsys.readouterr().err


def test_a_table_that_divides_a_patient_is_used_and_reported(tmp_path: Path, capsys):
    for name in formed("case{}_{}", 3, 2):
        write(tmp_path / f"{name}.png")
    (tmp_path / "split.csv").write_text("name,split\ncase0_0,test\ncase0_1,train\ncase1,train\ncase2,val\n")
    dataset = open_data(str(tmp_path), image_size=SIZE)
    assert [len(dataset.indices(split)) for split in SPLITS] == [3, 2, 1]
    assert "1 of 3 patients is in more than one split: case0; scores on patients" in capsys.readouterr().err


def test_folders_inside_the_folder_of_a_patient_are_not_patients():
    people = ("anna", "bert", "carl", "dora", "emil", "fred")
    places = [f"{name}/{name}{visit}/scan{n}" for name in people for visit in (1, 2) for n in (1, 2)]
    found = find_patients([Evidence(place) for place in places])
    assert len(set(found.of_images)) == 6
    assert all(len({found.of_images[at] for at in range(first, first + 4)}) == 1 for first in range(0, 24, 4))


def test_folders_of_sites_with_many_patients_are_passed_over_as_a_guess():
    letters = np.random.default_rng(0).integers(97, 123, (3, 12, 7))
    places = [
        f"{site}/{''.join(map(chr, name))}/a{k}"
        for site, names in zip(("berlin", "paris", "rome"), letters, strict=True)
        for name in names
        for k in (1, 2)
    ]
    found = find_patients([Evidence(place) for place in places])
    assert (len(set(found.of_images)), found.certainty) == (36, "guess")
