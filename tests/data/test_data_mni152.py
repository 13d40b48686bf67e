"""The offline default."""

import socket

import numpy as np
import pytest

from ahm_gym.data import ImageDataset, open_data
from ahm_gym.data.mni152 import GAP, Mni152Source, split_slabs, tissue_classes


@pytest.fixture(scope="module")
def template() -> ImageDataset:
    def refuse(*_: object) -> None:
        raise AssertionError("the default data used the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        return open_data(None, image_size=(64, 64), need_labels=True)


def test_the_template_has_three_labelled_splits_of_three_classes(template: ImageDataset):
    counts = [len(template.indices(split, labelled=True)) for split in ("train", "val", "test")]
    assert counts[0] > 60 and min(counts) >= 8
    assert (template.name, template.channels, template.num_classes) == ("mni152", 1, 3)
    for split in ("train", "val", "test"):
        sample = template.sample(template.indices(split)[-1])
        assert sample.label is not None
        shares = np.bincount(sample.label.flatten(), minlength=3) / sample.label.numel()
        assert shares.min() > 0.05
        assert sample.spacing == (1.0, 1.0)


def test_white_matter_is_brighter_than_grey_and_grey_than_background():
    dataset = open_data(None, image_size=(64, 64), native_resolution=True)
    sample = dataset.sample(40)
    assert sample.label is not None and sample.image.shape[1:] == sample.label.shape
    background, grey, white = (sample.image[0][sample.label == index].mean() for index in range(3))
    assert background < grey < white


def test_the_splits_are_slabs_with_a_gap_between_them():
    slabs = split_slabs(list(range(100, 200)))
    assert [len(slabs[split]) for split in ("train", "val", "test")] == [65, 9, 18]
    assert slabs["val"][0] - slabs["train"][-1] == GAP + 1 == slabs["test"][0] - slabs["val"][-1]


def test_the_likelier_tissue_wins_if_it_is_likely_enough():
    grey, white = np.array([[0.1, 0.6, 0.4]], np.float32), np.array([[0.2, 0.3, 0.5]], np.float32)
    assert tissue_classes(grey, white).tolist() == [[0, 1, 2]]


def test_a_prepared_template_is_not_loaded_again(template: ImageDataset, monkeypatch: pytest.MonkeyPatch):
    def refuse(_: Mni152Source) -> None:
        raise AssertionError("the template was loaded")

    monkeypatch.setattr(Mni152Source, "records", refuse)
    assert open_data(None, image_size=(64, 64)).folder == template.folder
