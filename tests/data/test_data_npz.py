"""Archives with the keys of MedSegBench and MedMNIST."""

import struct
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from ahm_gym.data import open_data
from ahm_gym.data.npz import NpzSource, array_rows
from ahm_gym.data.sample import SPLITS
from ahm_gym.data.scaling import scale_intensities
from ahm_gym.errors import InputError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 255, (6, 12, 10), dtype=np.uint8)
LABELS = RNG.integers(0, 3, (6, 12, 10), dtype=np.uint8)


def saved(path: Path, **arrays) -> str:
    np.savez_compressed(path, **arrays)
    return str(path)


def test_a_note_names_splits_that_are_not_read(tmp_path: Path, capsys):
    spec = saved(tmp_path / "data.npz", train_images=IMAGES, valid_images=IMAGES)
    assert len(open_data(spec, image_size=(8, 8))) == len(IMAGES)
    assert "valid_images are left out; splits are named train, val, test" in capsys.readouterr().err


def test_images_labels_and_names_are_read(tmp_path: Path):
    ids = np.array(["p1_a", "p1_b", "p2_a", "p3_a", "p4_a", "p5_a"])
    spec = saved(
        tmp_path / "data.npz", train_images=IMAGES, train_label=LABELS, train_id=ids, test_images=IMAGES[:2]
    )
    dataset = open_data(spec, image_size=(8, 8), need_labels=True)
    assert (dataset.name, dataset.channels, dataset.num_classes) == ("data", 1, 3)
    assert [len(dataset.indices(split)) for split in SPLITS] == [6, 0, 2]
    sample = dataset.sample(1)
    assert (sample.id, sample.case, sample.spacing) == ("p1_b", "p1", None)
    assert sample.label is not None and sample.label.tolist() == LABELS[1].tolist()
    torch.testing.assert_close(sample.image, scale_intensities(IMAGES[1][:, :, None]), atol=5e-4, rtol=0)
    assert dataset.sample(7).id == "test_1" and dataset.sample(7).label is None


@pytest.mark.parametrize(
    ("name", "channels", "classes", "counts", "image_id", "case"),
    [
        ("hc18_128", 1, 2, [693, 97, 209], "010_2HC", "010"),
        ("dsb18_128", 3, 2, [465, 66, 133], "00071198d059ba7f", "00071198d059ba7f"),
        ("hippocampus_128", 1, 3, [1222, 178, 357], "hippocampus_001_x12", "hippocampus_001"),
    ],
)
def test_the_shared_sets_open_as_described(shared_data, name, channels, classes, counts, image_id, case):
    dataset = open_data(name, root=shared_data, image_size=(64, 64))
    assert (dataset.channels, dataset.num_classes) == (channels, classes)
    assert [len(dataset.indices(split, labelled=True)) for split in SPLITS] == counts
    assert {sample.id: sample.case for sample in map(dataset.sample, range(8))}[image_id] == case


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_images_have_any_number_of_channels(tmp_path: Path, channels: int, dtype: type):
    images = (RNG.random((3, 9, 11, channels)) * 200 - 50).astype(dtype)
    dataset = open_data(saved(tmp_path / "data.npz", train_images=images), image_size=(8, 8))
    assert dataset.channels == channels and dataset.sample(0).image.shape == (channels, 9, 11)


def test_class_vectors_of_medmnist_are_not_labels(tmp_path: Path):
    spec = saved(tmp_path / "path.npz", train_images=IMAGES, train_labels=np.zeros((6, 1), np.uint8))
    assert open_data(spec, image_size=(8, 8)).num_classes == 0
    with pytest.raises(InputError, match="path has no training labels: expected train_label"):
        open_data(spec, image_size=(8, 8), need_labels=True)


def test_cubes_of_medmnist_become_slices(tmp_path: Path):
    cubes = RNG.integers(0, 255, (3, 7, 7, 7), dtype=np.uint8)
    dataset = open_data(saved(tmp_path / "cubes.npz", train_images=cubes), image_size=(8, 8))
    assert len(dataset) == 21 and dataset.channels == 1
    sample = dataset.sample(9)
    assert (sample.id, sample.case) == ("train_1_s002", "train_1")
    torch.testing.assert_close(sample.image, scale_intensities(cubes[1, :, :, 2:3]), atol=5e-4, rtol=0)


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_read_row_by_row_in_either_order(tmp_path: Path, order: Literal["C", "F"]):
    source = NpzSource(Path(saved(tmp_path / "data.npz", train_images=np.array(IMAGES, order=order))))
    with zipfile.ZipFile(source.path) as archive:
        assert (np.stack(list(array_rows(archive, "train_images"))) == IMAGES).all()
    assert source.num_images == 6


def test_names_may_be_bytes_or_numbers(tmp_path: Path):
    spec = saved(
        tmp_path / "data.npz",
        train_images=IMAGES[:2],
        train_id=np.array([b"x", b"y"]),
        val_images=IMAGES[:1],
        val_id=np.array([[7]]),
    )
    dataset = open_data(spec, image_size=(8, 8))
    assert [dataset.sample(i).id for i in range(3)] == ["x", "y", "7"]


def test_missing_keys_are_named_with_those_found_and_expected(tmp_path: Path):
    with pytest.raises(InputError, match=r"data\.npz has the keys images, masks: expected train_images"):
        open_data(saved(tmp_path / "data.npz", images=IMAGES, masks=LABELS), image_size=(8, 8))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"train_images": IMAGES[:0]}, "the train split of .* is empty"),
        ({"train_images": np.float32(3)}, r"train_images of the shape \(\): expected images, rows"),
        (
            {"train_images": IMAGES, "train_label": LABELS[:5]},
            r"train_label of the shape \(5, 12, 10\): .* 6 images",
        ),
        ({"train_images": IMAGES, "train_id": np.array(["a"])}, "train_id of the shape"),
        ({"train_images": IMAGES, "train_label": LABELS[:, :6]}, r"train_label\[0\]\) is 6x10 pixels"),
        (
            {"train_images": IMAGES, "val_images": IMAGES[..., None].repeat(3, 3)},
            r"val_images\[0\]\) has 3, expected 1",
        ),
        (
            {"train_images": IMAGES, "train_label": LABELS + 100},
            r"class index out of range: .*train_label\[0\]",
        ),
        ({"train_images": np.full((1, 4, 4), np.nan)}, r"train_images\[0\]\) contains NaN"),
        (
            {"train_images": np.array([[[None]]])},
            "train_images as an array of Python objects: expected numbers",
        ),
        (
            {"train_images": IMAGES, "train_id": np.array(list("abcdef"), object)},
            r"train_id as an array of Python objects: .*astype\(str\)",
        ),
        (
            {"train_images": np.zeros((6, 3, 32, 40))},
            r"train_images\[0\]\) has the shape \(3, 32, 40\), apparently channels first",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, arrays: dict, message: str):
    with pytest.raises(InputError, match=message):
        open_data(saved(tmp_path / "data.npz", **arrays), image_size=(8, 8))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_archives_are_refused(tmp_path: Path, share: float):
    path = Path(saved(tmp_path / "data.npz", train_images=IMAGES))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=r"data\.npz cannot be read .*: expected a complete \.npz file"):
        open_data(str(path), image_size=(8, 8))


def test_damaged_archives_are_refused(tmp_path: Path):
    path = Path(saved(tmp_path / "data.npz", train_images=IMAGES))
    data = bytearray(path.read_bytes())
    data[300:330] = bytes(30)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"data\.npz cannot be read"):
        open_data(str(path), image_size=(8, 8))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [(6, 1, "is encrypted"), (6, 0x20, "patched data"), (8, 99, "method is not supported")],
)
def test_an_archive_that_zipfile_cannot_unpack_is_refused(
    tmp_path: Path, place: int, value: int, message: str
):
    spec = saved(tmp_path / "data.npz", train_images=IMAGES)
    content = bytearray(Path(spec).read_bytes())
    for mark, at in ((b"PK\x03\x04", place), (b"PK\x01\x02", place + 2)):  # both headers of the only member
        struct.pack_into("<H", content, content.find(mark) + at, value)
    Path(spec).write_bytes(content)
    with pytest.raises(InputError, match=f"data.npz cannot be read .*{message}.* save its arrays again"):
        open_data(spec, image_size=(8, 8))


def test_ids_without_any_text_are_refused(tmp_path: Path):
    spec = saved(tmp_path / "data.npz", train_images=IMAGES, train_id=np.zeros((6, 0), "U3"))
    with pytest.raises(InputError, match=r"has train_id of the shape \(6, 0\): expected one for each"):
        open_data(spec, image_size=(8, 8))
