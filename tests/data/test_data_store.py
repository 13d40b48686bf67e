"""The content of a prepared dataset, and its way into the cache."""

import errno
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from image_folders import SIZE, mask, write

import ahm_gym.data.prepare as preparing
from ahm_gym.data import ImageDataset, open_data
from ahm_gym.data.prepare import cache_folder, prepare
from ahm_gym.data.sample import SPLITS, Record, Split
from ahm_gym.data.scaling import scale_intensities
from ahm_gym.data.store import StoreWriter, cover
from ahm_gym.data.told import Told
from ahm_gym.errors import InputError

RNG = np.random.default_rng(0)


@dataclass
class ListSource:
    """Records from memory."""

    items: list[Record]
    name: str = "list"
    num_images: int | None = None
    version: int = 0
    walks: list[int] = field(default_factory=list)

    def fingerprint(self) -> list:
        return [self.version]

    def records(self) -> Iterator[Record]:
        self.walks.append(1)
        yield from self.items


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AHM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def label_of(dataset: ImageDataset, index: int) -> torch.Tensor:
    label = dataset.sample(index).label
    assert label is not None
    return label


def record(name: str, image=None, label=None, split: Split | None = "train", **options) -> Record:
    image = RNG.integers(0, 200, (12, 10), dtype=np.uint8) if image is None else image
    return Record(image, label, name, name, f"{name}.png", f"{name}-label.png", split=split, **options)


def rgb(height: int, width: int) -> np.ndarray:
    return RNG.integers(0, 255, (height, width, 3), dtype=np.uint8)


def label_with(*values: int) -> np.ndarray:
    label = np.zeros((12, 10), np.uint8)
    label.flat[: len(values)] = values
    return label


def test_samples_equal_their_records():
    images = [rgb(12, 10), rgb(20, 9)]
    labels = [None, RNG.integers(0, 3, (20, 9))]
    items = [
        record("a", images[0]),
        record("b", images[1], labels[1], split="test", spacing=(0.5, 2.0), volume="v"),
    ]
    dataset = prepare(ListSource(items), shortest_side=None)
    assert (dataset.channels, dataset.num_classes, len(dataset)) == (3, 3, 2)
    first, second = dataset.sample(0), dataset.sample(1)
    for sample, image in ((first, images[0]), (second, images[1])):
        torch.testing.assert_close(sample.image, scale_intensities(image), atol=5e-4, rtol=0)
    assert first.label is None and first.spacing is None and (first.id, first.case) == ("a", "a")
    assert label_of(dataset, 1).tolist() == labels[1].tolist()
    assert (second.id, second.case, second.spacing) == ("b", "v", (0.5, 2.0))


def test_images_are_shrunk_and_labels_stay_at_their_native_resolution():
    item = record("a", rgb(40, 60), np.zeros((40, 60), np.uint8))
    dataset = prepare(ListSource([item]), shortest_side=16)
    assert dataset.sample(0).image.shape == (3, 16, 24) and label_of(dataset, 0).shape == (40, 60)


def test_indices_follow_the_split_and_the_labels():
    items = [
        record("a"),
        record("b", label=label_with(1)),
        record("c", split="val"),
        record("d", split="test"),
    ]
    dataset = prepare(ListSource(items), shortest_side=None)
    assert [dataset.indices(split) for split in SPLITS] == [[0, 1], [2], [3]]
    assert dataset.indices("train", labelled=True) == [1]
    assert str(dataset) == f"{dataset.name}: 4 images (2 train, 1 val, 1 test), 1 with labels"


def test_the_statistics_are_those_of_the_train_split():
    items = [record(str(i), rgb(12, 10)) for i in range(4)] + [record("t", rgb(12, 10) // 2, split="test")]
    dataset = prepare(ListSource(items), shortest_side=None)
    images = torch.stack([dataset.image(index) for index in dataset.indices("train")])
    normalised = dataset.normalise(images)
    torch.testing.assert_close(normalised.mean(dim=(0, 2, 3)), torch.zeros(3), atol=2e-3, rtol=0)
    torch.testing.assert_close(normalised.std(dim=(0, 2, 3)), torch.ones(3), atol=2e-3, rtol=0)
    torch.testing.assert_close(dataset.denormalise(normalised), images)


def test_constant_images_alone_are_allowed_and_do_not_divide_by_zero():
    dataset = prepare(ListSource([record("a", np.full((12, 10), 9, np.uint8))]), shortest_side=None)
    assert dataset.std == (1.0,)
    assert not dataset.normalise(dataset.sample(0).image).any()


def test_images_of_another_channel_count_are_not_normalised():
    dataset = prepare(ListSource([record("a", rgb(12, 10))]), shortest_side=None)
    with pytest.raises(InputError, match="1 channels and the data 'list' has 3"):
        dataset.normalise(torch.zeros(2, 1, 4, 4))


def test_resized_images_are_whole_centred_and_normalised():
    dataset = prepare(ListSource([record("a", rgb(12, 30)), record("b", rgb(8, 8))]), shortest_side=None)
    images = dataset.resized([1, 0], (6, 6))
    assert images.shape == (2, 3, 6, 6)
    whole = torch.nn.functional.interpolate(
        dataset.image(0)[None], size=(6, 15), mode="bilinear", antialias=True
    )
    near_centre = [dataset.normalise(whole)[0, :, :, start : start + 6] for start in (4, 5)]
    assert any(torch.allclose(images[1], crop, atol=1e-5) for crop in near_centre)
    assert dataset.resized([], (6, 6)).shape == (0, 3, 6, 6)


@pytest.mark.parametrize("size", [(6, 6), (20, 6), (6, 40), (50, 50)])
def test_cover_returns_exactly_the_requested_size(size: tuple[int, int]):
    assert cover(torch.rand(1, 13, 29, generator=torch.Generator().manual_seed(0)), size).shape == (1, *size)


def test_a_pickled_dataset_opens_the_same_files_again():
    dataset = prepare(ListSource([record(str(i)) for i in range(30)]), shortest_side=None)
    data = pickle.dumps(dataset)
    assert len(data) < 1000
    again = pickle.loads(data)
    assert torch.equal(again.sample(7).image, dataset.sample(7).image) and again.mean == dataset.mean


def test_masks_of_0_and_255_become_0_and_1():
    items = [
        record("a", label=label_with()),
        record("b", label=label_with(255)),
        record("c", label=label_with(255)),
    ]
    dataset = prepare(ListSource(items), shortest_side=None)
    assert dataset.num_classes == 2
    assert [label_of(dataset, i).unique().tolist() for i in range(3)] == [[0], [0, 1], [0, 1]]


def test_255_together_with_other_classes_is_refused_with_its_file():
    items = [record("a", label=label_with(1)), record("b", label=label_with(255))]
    with pytest.raises(
        InputError, match=r"b-label\.png contains the value 255 and a-label\.png the value 1:"
    ):
        prepare(ListSource(items), shortest_side=None)


def test_a_class_that_is_missing_in_the_train_split_is_refused_with_its_file():
    items = [record("a", label=label_with(2)), record("b", label=label_with(3), split="val")]
    with pytest.raises(InputError, match=r"b-label\.png contains the value 3, expected 0 to 2 as in"):
        prepare(ListSource(items), shortest_side=None)


def test_labels_of_background_alone_still_make_two_classes():
    dataset = prepare(ListSource([record("a", label=label_with())]), shortest_side=None)
    assert dataset.num_classes == 2
    assert prepare(ListSource([record("a")], version=1), shortest_side=None).num_classes == 0


def test_mixed_channel_counts_are_refused_with_the_file():
    with pytest.raises(InputError, match=r"wrong channel count: b\.png has 3, expected 1"):
        prepare(ListSource([record("a"), record("b", rgb(12, 10))]), shortest_side=None)


def test_an_empty_train_split_is_refused():
    with pytest.raises(InputError, match="the train split of list is empty"):
        prepare(ListSource([record("a", split="test")]), shortest_side=None)


def test_a_source_without_records_is_refused():
    with pytest.raises(InputError, match="list has only constant slices"):
        prepare(ListSource([]), shortest_side=None)


def test_notes_on_stderr_say_how_the_data_is_split(capsys: pytest.CaptureFixture[str]):
    dataset = prepare(ListSource([record("a", split=None), record("b", split=None)]), shortest_side=None)
    told = capsys.readouterr().err
    assert "sure): 1/0/1 patients in train/val/test.\n" in told and "only 2 patients" in told
    assert len(dataset.indices("train")) == len(dataset.indices("test")) == 1


def test_a_source_is_read_once_until_it_changes_or_another_size_is_requested():
    source = ListSource([record("a", rgb(40, 40))])
    for _ in range(3):
        prepare(source, shortest_side=16)
    assert len(source.walks) == 1
    assert prepare(source, shortest_side=8).sample(0).image.shape == (3, 8, 8)
    source.version = 1
    prepare(source, shortest_side=16)
    assert len(source.walks) == 3


def test_a_failed_preparation_leaves_nothing_behind(own_cache: Path):
    with pytest.raises(InputError):
        prepare(ListSource([record("a"), record("b", rgb(12, 10))]), shortest_side=None)
    assert list(own_cache.iterdir()) == []


def test_a_full_disk_is_one_sentence_and_leaves_nothing_behind(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(writer: StoreWriter, image: torch.Tensor) -> list[int]:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(StoreWriter, "add_image", fail)
    with pytest.raises(InputError, match="has no space left: free some space there, or set AHM_CACHE"):
        prepare(ListSource([record("a")]), shortest_side=None)
    assert list(own_cache.iterdir()) == []


@pytest.mark.parametrize("name", ["file", "file/cache"])
def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch, name: str):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("AHM_CACHE", str(tmp_path / name))
    with pytest.raises(InputError, match=rf"the cache folder .*{name} cannot be written: .* AHM_CACHE"):
        prepare(ListSource([record("a")]), shortest_side=None)


def test_what_was_said_of_files_is_said_again_when_they_come_from_the_cache(tmp_path: Path, capsys):
    folder = tmp_path / "scans"
    for case in ("p1", "p2", "p3"):
        write(folder / case / "scan.png")
        write(folder / case / "drawn_by_one.png", mask())
    first = open_data(str(folder), image_size=SIZE)
    said = capsys.readouterr().err
    assert "used as the labels of these (likely)" in said
    again = open_data(str(folder), image_size=SIZE)
    assert again.folder == first.folder and capsys.readouterr().err == said


def test_other_code_prepares_the_data_again(own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    source = ListSource([record("a")])
    first = prepare(source, shortest_side=None).folder
    monkeypatch.setattr(preparing, "_code", lambda: "of another version")
    assert prepare(source, shortest_side=None).folder != first and len(source.walks) == 2


def test_two_processes_may_prepare_the_same_data(own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    source = ListSource([record("a")])
    write = preparing._write

    def write_after_the_other(
        source: ListSource, folder: Path, told: Told, shortest_side: int | None, patient_regex: str | None
    ) -> None:
        monkeypatch.setattr(preparing, "_write", write)
        prepare(source, shortest_side=shortest_side)
        write(source, folder, told, shortest_side, patient_regex)

    monkeypatch.setattr(preparing, "_write", write_after_the_other)
    dataset = prepare(source, shortest_side=None)
    assert len(source.walks) == 2 and len(dataset) == 1
    assert [folder.name for folder in own_cache.iterdir()] == [dataset.folder.name]


def test_old_leftovers_of_a_killed_preparation_are_removed(own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    folder = prepare(ListSource([record("a")]), shortest_side=None).folder
    fresh = own_cache / f".{folder.name}.abc"
    folder.rename(fresh)
    prepare(ListSource([record("a")]), shortest_side=None)
    assert fresh.exists()
    folder.rename(own_cache / "elsewhere")
    monkeypatch.setattr(preparing, "STALE_SECONDS", -1)
    prepare(ListSource([record("a")]), shortest_side=None)
    assert not fresh.exists()


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch):
    assert cache_folder().name == "cache"
    monkeypatch.delenv("AHM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/ahm-gym")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "ahm-gym"


def test_opening_a_dataset_reads_no_image(own_cache: Path):
    dataset = prepare(ListSource([record(str(i), rgb(64, 64)) for i in range(20)]), shortest_side=None)
    (dataset.folder / "images.float16").write_bytes(b"\0" * 64 * 64 * 3 * 2 * 20)
    assert not ImageDataset(dataset.folder).image(19).any()
