"""Downloaded folders, opened: what is read of them, and which sentence refuses them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from image_folders import RNG, SIZE, label_of, mask, names, write
from test_data_files import dicom

from ahm_gym.data import open_data
from ahm_gym.data.folder import FolderSource
from ahm_gym.data.modalities import MODALITIES
from ahm_gym.data.sample import SPLITS
from ahm_gym.data.search import find_layout
from ahm_gym.errors import InputError

VOLUME = (9, 8, 3)
COLOUR = (12, 10, 3)


def volume(path: Path, scale: float = 1) -> Path:
    return write(path, (RNG.random(VOLUME) * 900 * scale).astype(np.float32))


def test_modalities_are_channels_that_are_scaled_by_themselves(tmp_path: Path, capsys):
    for case in ("p1_a", "p2_a", "p3_a"):
        for name, scale in (("flair", 1e-6), ("t1", 1)):
            volume(tmp_path / case / f"{case}_{name}.nii.gz", scale)
        write(tmp_path / case / f"{case}_seg.nii.gz", mask(VOLUME))
    dataset = open_data(str(tmp_path), image_size=SIZE, need_labels=True)
    assert dataset.channels == 2 and dataset.sample(0).id == "p1_a_s000" and dataset.sample(0).case == "p1_a"
    assert all(channel.std() > 0.2 for channel in dataset.image(0))
    assert "2 modalities are the channels of each scan, in this order: t1, flair" in capsys.readouterr().err


def test_modalities_have_one_order():
    assert [name for name in MODALITIES if name in ("flair", "t1", "t1ce", "t2")] == [
        "t1",
        "t1ce",
        "t2",
        "flair",
    ]


def test_a_case_without_one_of_its_modalities_is_left_out_by_name(tmp_path: Path):
    for case, kinds in (("a", "t1 t2"), ("b", "t1 t2"), ("c", "t1")):
        for kind in kinds.split():
            volume(tmp_path / f"{case}_{kind}.nii.gz")
    layout = find_layout(tmp_path)
    assert [scan.id for scan in layout.scans] == ["a", "b"] and layout.modalities == ("t1", "t2")
    assert layout.doubts == ("the case c lacks t2 and is left out; complete it to use it",)
    assert [path.name for path in layout.left_out] == ["c_t1.nii.gz"]


@pytest.mark.parametrize("form", ["{0}_{1}.nii.gz", "{0}/{0}_{1}.nii.gz", "{0}/{1}.nii.gz"])
def test_the_label_of_a_case_that_is_left_out_is_left_out_too(tmp_path: Path, form: str):
    for case, kinds in (("a", "t1 t2"), ("b", "t1 t2"), ("c", "t1")):
        for kind in kinds.split():
            volume(tmp_path / form.format(case, kind))
        write(tmp_path / form.format(case, "seg"), mask(VOLUME))
    layout = find_layout(tmp_path)
    assert len(layout.scans) == 2 and all(scan.labels for scan in layout.scans) and layout.faults == ()
    assert set(layout.left_out.values()) == {"its case is left out"} and len(layout.left_out) == 2


def test_modalities_of_different_sizes_stay_images_of_their_own(tmp_path: Path):
    for case in "abc":
        volume(tmp_path / f"{case}_T1w.nii.gz")
        write(tmp_path / f"{case}_FLAIR.nii.gz", RNG.random((5, 5, 3)))
    layout = find_layout(tmp_path)
    assert len(layout.scans) == 6 and not layout.modalities
    assert "differ in size" in layout.doubts[0] and "resample" in layout.doubts[0]


def test_three_grey_pictures_of_nnunet_are_one_image(tmp_path: Path):
    for case in range(4):
        for channel in range(3):
            write(tmp_path / "imagesTr" / f"img_{case:03d}_{channel:04d}.png")
        write(tmp_path / "labelsTr" / f"img_{case:03d}.png", mask())
    description = {
        "channel_names": {"0": "red", "1": "green", "2": "blue"},
        "labels": {"background": 0, "cell": 1},
    }
    (tmp_path / "dataset.json").write_text(json.dumps(description | {"file_ending": ".png"}))
    layout = find_layout(tmp_path)
    assert layout.modalities == ("red", "green", "blue") and layout.classes == {0: "background", 1: "cell"}
    assert [scan.id for scan in layout.scans] == [f"img_{case:03d}" for case in range(4)]
    dataset = open_data(str(tmp_path), image_size=SIZE, need_labels=True)
    assert dataset.channels == 3 and len(dataset) == 4


def test_numbered_frames_are_not_channels_but_doubtful(tmp_path: Path):
    for video in "ab":
        for frame in range(3):
            write(tmp_path / "images" / f"{video}_{frame:04d}.png")
    layout = find_layout(tmp_path)
    assert len(layout.scans) == 6 and "put all images into a folder imagesTr" in layout.doubts[0]
    for video in "ab":
        for frame in range(3):
            write(tmp_path / "labels" / f"{video}_{frame:04d}.png", mask())
    layout = find_layout(tmp_path)
    assert len(layout.labels) == 6 and not layout.doubts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "dataset.json is not JSON .*correct it, or rename it"),
        ('{"labels": 3}', r"`labels` in .*dataset.json is 3 .*correct it"),
    ],
)
def test_a_broken_description_is_refused(tmp_path: Path, content: str, message: str):
    write(tmp_path / "imagesTr" / "a.png")
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(InputError, match=message):
        find_layout(tmp_path)


def test_the_lists_of_the_decathlon_are_compared_with_the_files(tmp_path: Path):
    write(tmp_path / "imagesTr" / "a.nii.gz", RNG.random(VOLUME))
    pair = {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}
    gone = {"image": "./imagesTr/b.nii.gz", "label": "./labelsTr/b.nii.gz"}
    described = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "liver"}}
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(described | {"training": [pair, gone]}))
    layout = find_layout(tmp_path)
    assert layout.classes == {0: "background", 1: "liver"}
    assert "lists 2 training images, of which 1 is missing, such as imagesTr/b.nii.gz" in layout.doubts[0]
    path.write_text(json.dumps(described | {"training": [gone]}))
    with pytest.raises(
        InputError, match="lists 1 training image such as imagesTr/b.nii.gz, and none is there"
    ):
        find_layout(tmp_path)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder whose images are a link to a store, with labels and a table beside the link."""
    rows = ["name,split"]
    for number in range(6):
        write(tmp_path / "store" / "ultrasound" / f"p{number}_1.png")
        write(tmp_path / "project" / "labels" / f"p{number}_1.png", mask())
        rows.append(f"p{number}_1,{'train' if number < 3 else 'val' if number < 5 else 'test'}")
    (tmp_path / "project" / "split.csv").write_text("\n".join(rows))
    (tmp_path / "project" / "images").symlink_to(tmp_path / "store" / "ultrasound")
    return tmp_path / "project"


@pytest.mark.parametrize("given", [".", "images"])
def test_what_lies_beside_a_link_belongs_to_it(project: Path, given: str):
    dataset = open_data(str(project / given), image_size=SIZE, need_labels=True)
    assert [len(dataset.indices(split, labelled=True)) for split in SPLITS] == [3, 2, 1]


def test_what_lies_beside_the_target_of_a_link_counts_if_nothing_lies_beside_the_link(tmp_path: Path):
    write(tmp_path / "store" / "images" / "a.png")
    write(tmp_path / "store" / "masks" / "a.png", mask())
    (tmp_path / "link").symlink_to(tmp_path / "store" / "images")
    assert find_layout(tmp_path / "link").labels["a"] == (tmp_path / "store" / "masks" / "a.png",)


def test_links_in_a_circle_are_followed_once(tmp_path: Path):
    write(tmp_path / "p1" / "a.png")
    (tmp_path / "p1" / "again").symlink_to(tmp_path)
    assert len(find_layout(tmp_path).scans) == 1


def test_folders_state_the_split(tmp_path: Path, capsys):
    for split in SPLITS:
        for number in range(2):
            write(tmp_path / split / "images" / f"{number}.png")
            write(tmp_path / split / "masks" / f"{number}.png", mask())
    dataset = open_data(str(tmp_path), image_size=SIZE, need_labels=True)
    assert names(dataset, "test") == ["test_0", "test_1"] and names(dataset, "train") == [
        "train_0",
        "train_1",
    ]
    assert "its folders state the split: 2 train, 2 val, 2 test scans" in capsys.readouterr().err


def test_a_cases_folder_is_understood_alone_and_among_others(tmp_path: Path):
    for case in range(3):
        volume(tmp_path / f"case_{case:05d}" / "imaging.nii.gz")
        write(tmp_path / f"case_{case:05d}" / "segmentation.nii.gz", mask(VOLUME))
    dataset = open_data(str(tmp_path), image_size=SIZE, need_labels=True)
    assert {dataset.sample(at).case for at in range(9)} == {f"case_{case:05d}_imaging" for case in range(3)}
    assert [len(dataset.indices(split)) for split in SPLITS] == [3, 3, 3]
    (scan,) = find_layout(tmp_path / "case_00001").scans
    assert scan.id == "imaging" and scan.labels == (tmp_path / "case_00001" / "segmentation.nii.gz",)


def test_every_record_says_where_its_file_lies(tmp_path: Path):
    write(tmp_path / "sub-01" / "ses-1" / "anat" / "sub-01_T1w.nii.gz", RNG.random(VOLUME))
    records = list(FolderSource(tmp_path).records())
    assert {record.place for record in records} == {"sub-01/ses-1/anat/sub-01_T1w"} and len(records) == 3


@pytest.mark.parametrize("first", [".bmp", ".jpg"])
def test_of_two_files_of_one_name_the_one_with_few_values_is_the_label(tmp_path: Path, first: str):
    for name in ("001", "002"):
        write(tmp_path / f"{name}{first}", RNG.integers(0, 255, COLOUR, dtype=np.uint8))
        write(tmp_path / f"{name}.png", mask())
    layout = find_layout(tmp_path)
    assert layout.labels == {name: (tmp_path / f"{name}.png",) for name in ("001", "002")}
    assert "2 .png files have the names of other images and few values" in layout.doubts[0]


@pytest.mark.parametrize(
    "label", [np.full((12, 10), 128, np.uint8), RNG.integers(0, 255, COLOUR, dtype=np.uint8), mask((12, 9))]
)
def test_labels_that_cannot_be_used_do_not_stop_pretraining(tmp_path: Path, capsys, label: np.ndarray):
    for name in "abc":
        write(tmp_path / "images" / f"{name}.png")
        write(tmp_path / "masks" / f"{name}.png", label)
    for need in (None, True):
        with pytest.raises(InputError, match=r"masks/a\.png"):
            open_data(str(tmp_path), image_size=SIZE, need_labels=need)
    for _ in range(2):  # prepared, and from the cache
        dataset = open_data(str(tmp_path), image_size=SIZE, need_labels=False)
        assert len(dataset) == 3 and dataset.num_classes == 0
    assert "its labels are left out, because" in capsys.readouterr().err


def test_images_prepared_for_pretraining_stay_when_labels_are_refused(tmp_path: Path, capsys):
    for name in "abc":
        write(tmp_path / "images" / f"{name}.png")
        write(tmp_path / "masks" / f"{name}.png", mask((12, 9)))
    folder = open_data(str(tmp_path), image_size=SIZE, need_labels=False).folder
    with pytest.raises(InputError, match=r"masks/a\.png"):
        open_data(str(tmp_path), image_size=SIZE, need_labels=True)
    assert folder.is_dir() and "damaged" not in capsys.readouterr().err


def test_labels_without_an_image_do_not_stop_pretraining(tmp_path: Path):
    write(tmp_path / "images" / "a.png")
    write(tmp_path / "masks" / "b.png", mask())
    assert len(open_data(str(tmp_path), image_size=SIZE, need_labels=False)) == 1


def test_good_labels_are_prepared_once_for_pretraining_and_segmentation(tmp_path: Path):
    write(tmp_path / "images" / "a.png")
    write(tmp_path / "masks" / "a.png", mask())
    first = open_data(str(tmp_path), image_size=SIZE, need_labels=False)
    assert open_data(str(tmp_path), image_size=SIZE, need_labels=True).folder == first.folder


@pytest.mark.parametrize(
    ("name", "content", "way"),
    [
        (
            "labels/a.txt",
            "0 0.5 0.5 0.2 0.2",
            "1 .txt file looks like labels, .* draw their boxes or polygons",
        ),
        ("labels/a.xml", "<annotation/>", "1 .xml file looks like labels"),
        (
            "annotations.json",
            '{"annotations": []}',
            "1 .json file looks like labels, .* draw their polygons \\(COCO, LabelMe\\) as masks",
        ),
        ("a.mat", "", "1 .mat file looks like labels, .* save their arrays"),
        ("masks.zip", "", "1 .zip file looks like labels, .* unpack it"),
    ],
)
def test_labels_of_a_kind_that_is_not_read_are_named(
    tmp_path: Path, capsys, name: str, content: str, way: str
):
    path = write(tmp_path / "images" / "a.png").parents[1] / name
    path.parent.mkdir(exist_ok=True)
    if name == "a.mat":
        path = tmp_path / "images" / name
    path.write_text(content)
    with pytest.raises(InputError, match=f"has no training labels that can be read: {way}"):
        open_data(str(tmp_path), image_size=SIZE, need_labels=True)
    assert "cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("images.zip", "is an archive: .* unpack it and give the folder"),
        ("dataset.json", "dataset.json is not JSON .*utf-8.*correct it"),
        ("volumes.h5", "is a .h5 file: .* save its arrays"),
    ],
)
def test_a_file_that_holds_no_images_is_refused_by_its_kind(tmp_path: Path, name: str, message: str):
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr("a.png", b"")
    with pytest.raises(InputError, match=message):
        open_data(str(tmp_path / name), image_size=SIZE)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("all.zip", "unpack all.zip and give the folder"),
        ("case0005_slice000.npz", "it holds 1 .npz files such as case0005_slice000.npz"),
        ("a.mhdx", r"it holds other kinds \(1 \.mhdx\)"),
        ("masks/a.png", "is a label by its name or folder; put the images into a folder images"),
    ],
)
def test_a_folder_without_images_says_what_it_holds(tmp_path: Path, name: str, message: str):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=f"holds no images: .*{message}"):
        find_layout(tmp_path)


def test_images_that_show_nothing_are_refused_if_all_are_so(tmp_path: Path, capsys):
    black = np.zeros((12, 10), np.uint8)
    for number in range(4):
        write(tmp_path / f"f{number}.png", black)
    with pytest.raises(InputError, match=r"has only constant images, such as .*f0\.png"):
        open_data(str(tmp_path), image_size=SIZE)
    write(tmp_path / "f1.png")
    assert len(open_data(str(tmp_path), image_size=SIZE)) == 4
    assert "3 of 4 images have one value everywhere" in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_images_are_only_a_trial(tmp_path: Path, count: int):
    for number in range(count):
        write(tmp_path / f"f{number}.png")
    few = "1 image is too few" if count == 1 else "2 images are too few"
    assert few in find_layout(tmp_path).doubts[0]


def write_series(folder: Path, suffix: str = ".dcm", uid: str = "1.2", **tags) -> np.ndarray:
    """Four slices in another order than their names; returns the volume."""
    array = RNG.integers(0, 900, (9, 8, 4), dtype=np.int16)
    folder.mkdir(parents=True, exist_ok=True)
    for number, at in enumerate((2, 0, 3, 1)):
        position = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "ImagePositionPatient": [0, 0, 5 * at]}
        named = position | {"SeriesInstanceUID": uid, "InstanceNumber": number} | tags
        dicom(folder / f"IM{number}{suffix}", np.ascontiguousarray(array[:, :, at]), **named)
    return array


@pytest.mark.parametrize("suffix", [".dcm", "", ".IMA"])
def test_the_slices_of_a_dicom_series_are_one_volume(tmp_path: Path, suffix: str):
    arrays = [write_series(tmp_path / f"P{n}" / "T1", suffix, f"1.{n}", PatientID=f"X{n}") for n in range(3)]
    source = FolderSource(tmp_path)
    records = list(source.records())
    assert [scan.id for scan in source.layout.scans] == ["P0_T1", "P1_T1", "P2_T1"]
    assert all(scan.series and scan.place.endswith("/T1") for scan in source.layout.scans)
    assert [record.id for record in records[:4]] == [f"P0_T1_s{at:03d}" for at in range(4)]
    right = [
        array[:, ::-1] for array in arrays
    ]  # DICOM's columns run to the left, all volumes here to the right
    assert all((record.image == right[0][:, :, at]).all() for at, record in enumerate(records[:4]))
    assert {record.patient for record in records} == {"X0", "X1", "X2"}


def test_contours_beside_a_series_are_left_out_and_several_series_of_a_folder_stay_apart(tmp_path: Path):
    write_series(tmp_path, "-1.dcm", "1.1", SeriesNumber=4)
    write_series(tmp_path, "-2.dcm", "1.2", SeriesNumber=7)
    dicom(tmp_path / "rt.dcm", np.zeros((9, 8), np.int16), Modality="RTSTRUCT")
    layout = find_layout(tmp_path)
    assert [scan.id for scan in layout.scans] == [f"{tmp_path.name}_4", f"{tmp_path.name}_7"]
    assert "RTSTRUCT" in layout.left_out[tmp_path / "rt.dcm"]


def test_slices_at_the_same_positions_are_time_points(tmp_path: Path):
    write_series(tmp_path, "-1.dcm")
    write_series(tmp_path, "-2.dcm")
    layout = find_layout(tmp_path)
    assert [len(scan.images) for scan in layout.scans] == [
        4,
        4,
    ] and "2 files at every position" in layout.doubts[0]


def test_series_in_time_are_told_once(tmp_path: Path):
    for patient in "abc":
        for time in "12":
            write_series(tmp_path / patient, f"-{time}.dcm")
    (doubt,) = (doubt for doubt in find_layout(tmp_path).doubts if "time points" in doubt)
    assert "a (and 2 more folders like it) has 2 files at every position" in doubt


def test_pictures_that_label_the_slices_of_a_series_have_a_way_out(tmp_path: Path):
    for patient in "abc":
        write_series(tmp_path / patient / "DICOM_anon")
        for number in range(4):
            write(tmp_path / patient / "Ground" / f"liver_GT_{number:03d}.png", mask((9, 8)))
    layout = find_layout(tmp_path)
    (fault,) = layout.faults
    assert "a/Ground holds 4 pictures, which seem to label the slices of the DICOM series in" in fault
    assert "(and 2 more such folders)" in fault and "dcm2niix" in fault and len(layout.scans) == 3
    assert len(open_data(str(tmp_path), image_size=SIZE, need_labels=False)) == 12


def test_a_table_goes_before_folders_that_state_a_split(tmp_path: Path, capsys):
    for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
        write(tmp_path / split / "images" / f"{name}.png")
    (tmp_path / "split.csv").write_text("name,split\na,test\nb,train\nc,train\n")
    dataset = open_data(str(tmp_path), image_size=SIZE)
    said = capsys.readouterr().err
    assert (
        names(dataset, "test") == ["a"]
        and "split.csv states the split, and the names of folders do not" in said
    )
    assert "its folders" not in said and "add a" not in said and "or a split.csv" not in said
    assert "settles it, while the splits stay as the data states them" in said


@pytest.mark.parametrize("what", ["image", "volume"])
def test_one_image_or_volume_is_not_said_to_be_in_two_splits(tmp_path: Path, capsys, what: str):
    write(
        tmp_path / ("brain.png" if what == "image" else "brain.nii.gz"),
        None if what == "image" else RNG.random(VOLUME),
    )
    open_data(str(tmp_path), image_size=SIZE)
    said = capsys.readouterr().err
    assert (
        f"of 1 patient (a single {what}; sure)" in said
        and f"there is only one {what}, so that all of it" in said
    )
    assert "two splits" not in said and " 1 images" not in said and " 1 files" not in said


def test_parts_of_a_label_that_show_the_same_are_told(tmp_path: Path, capsys):
    for case in ("c1", "c2", "c3"):
        write(tmp_path / f"{case}.png")
        for number in (1, 2):
            write(tmp_path / f"{case}_mask{number}.png", mask())
    open_data(str(tmp_path), image_size=SIZE, need_labels=True)
    said = capsys.readouterr().err
    assert (
        "3 of 3 files: in several files that show much the same, as drawings of several observers do" in said
    )


def test_runs_predictions_and_hidden_folders_are_not_searched(tmp_path: Path):
    write(tmp_path / "a.png")
    for name, files in (("run", "config.json metrics.jsonl"), ("found", "predictions.jsonl"), (".git", "x")):
        write(tmp_path / name / "figures.png")
        for file in files.split():
            (tmp_path / name / file).touch()
    layout = find_layout(tmp_path)
    assert len(layout.scans) == 1 and {path.name for path in layout.left_out} == {"run", "found"}


def test_the_parts_of_a_merged_label_are_read_together(tmp_path: Path):
    for case in ("c1", "c2", "c3"):
        write(tmp_path / case / "images" / f"{case}.png")
        for row in range(3):
            label = np.zeros((12, 10), np.uint8)
            label[row] = 255
            write(tmp_path / case / "masks" / f"{row}e.png", label)
    dataset = open_data(str(tmp_path), image_size=SIZE, native_resolution=True, need_labels=True)
    assert all(label_of(dataset, at)[:4, 0].tolist() == [1, 1, 1, 0] for at in range(3))
