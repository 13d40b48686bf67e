"""Tests of scaling over a whole data set: what is found in the training images, and where it is kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from image_folders import write

from ahm_gym.data import open_data, statistics
from ahm_gym.data.processing import DatasetScaling, Processing
from ahm_gym.errors import InputError

SIZE = (8, 8)
SPLITS = {"train": ["a", "b", "c"], "val": ["d"], "test": ["e"]}
RNG = np.random.default_rng(0)


def folder(
    path: Path, scaling: object, channels: tuple[str, ...] = ("ct",), **keys
) -> tuple[str, dict[str, np.ndarray]]:
    """A folder of float images, those of test far brighter, with a label of 1 in a corner and of 255 in another."""
    images = {}
    for name in "abcde":
        for channel in channels:
            images[name + channel] = RNG.normal(100 + 5000 * (name == "e"), 50, (12, 12)).astype(np.float32)
            write(path / "i" / f"{name}_{channel}.npy", images[name + channel])
        label = np.zeros((12, 12), np.uint8)
        label[:4, :5], label[8:, 8:] = 1, 255
        write(path / "l" / f"{name}.npy", label)
    content = {
        "ahm_gym": 1,
        "images": "i/{case}_{modality}.npy",
        "labels": "l/{case}.npy",
        "modalities": {channel: channel.upper() for channel in channels},
        "ignore": [255],
        "splits": SPLITS,
        "scaling": scaling,
        **keys,
    }
    (path / "dataset.json").write_text(json.dumps(content))
    return str(path), images


@pytest.mark.parametrize(
    ("scaling", "percentiles", "shown"),
    [
        ({"kind": "dataset"}, (0.5, 99.5), np.s_[:, :]),
        ({"kind": "dataset", "percentiles": [10, 80]}, (10, 80), np.s_[:, :]),
        ({"kind": "dataset", "over": "foreground"}, (0.5, 99.5), np.s_[:4, :5]),
    ],
)
def test_the_percentiles_are_those_of_the_training_images_alone(
    tmp_path: Path, capsys, scaling, percentiles, shown
):
    spec, images = folder(tmp_path, scaling)
    dataset = open_data(spec, image_size=SIZE, need_labels=True)
    values = np.concatenate([images[f"{name}ct"][shown].ravel() for name in "abc"])
    low, high = np.percentile(values, percentiles)
    window = dataset.processing["scaling"]["CT"]
    assert (window["low"], window["high"]) == (pytest.approx(low), pytest.approx(high))
    for index, name in enumerate("abcde"):
        expected = ((images[f"{name}ct"] - low) / (high - low)).clip(0, 1)
        assert dataset.image(index)[0].numpy() == pytest.approx(expected, abs=1e-3)
    of = "the structures in " if "over" in scaling else ""
    sentence = f"intensities of CT from {low:.5g} to {high:.5g} become 0 to 1: the {percentiles[0]:g} and "
    said = capsys.readouterr().err
    assert sentence + f"{percentiles[1]:g} percentiles of {of}3 training images" in said
    open_data(spec, image_size=SIZE)
    assert sentence in capsys.readouterr().err  # each time


def test_each_modality_has_its_own_and_others_keep_theirs(tmp_path: Path):
    spec, images = folder(tmp_path, {"CT": {"kind": "dataset"}, "PET": "channel"}, ("ct", "pet"))
    found = open_data(spec, image_size=SIZE).processing["scaling"]
    values = np.concatenate([images[f"{name}ct"].ravel() for name in "abc"])
    assert found["PET"] == "channel" and found["CT"]["low"] == pytest.approx(np.percentile(values, 0.5))
    (tmp_path / "dataset.json").unlink()
    spec, images = folder(tmp_path, {"kind": "dataset"}, ("ct", "pet"))
    found = open_data(spec, image_size=SIZE).processing["scaling"]
    lows = [
        np.percentile(np.concatenate([images[n + kind].ravel() for n in "abc"]), 0.5)
        for kind in ("ct", "pet")
    ]
    assert [found["CT"]["low"], found["PET"]["low"]] == pytest.approx(lows)


def test_images_without_modalities_share_one_window(tmp_path: Path):
    spec, images = folder(tmp_path, {"kind": "dataset"}, modalities={}, images="i/{case}_ct.npy")
    low = np.percentile(np.concatenate([images[f"{name}ct"].ravel() for name in "abc"]), 0.5)
    assert open_data(spec, image_size=SIZE).processing["scaling"]["low"] == pytest.approx(low)


def test_of_many_values_evenly_spaced_ones_are_kept(tmp_path: Path, monkeypatch):
    spec, images = folder(tmp_path, {"kind": "dataset", "percentiles": [0, 100]})
    monkeypatch.setattr(statistics, "MAX_VALUES", 12)
    found = open_data(spec, image_size=SIZE).processing["scaling"]["CT"]
    places = np.linspace(0, 143, 12).round().astype(int)
    values = np.concatenate([images[f"{name}ct"].ravel()[places] for name in "abc"])
    assert (found["low"], found["high"]) == (pytest.approx(values.min()), pytest.approx(values.max()))


def test_more_values_than_memory_should_hold_are_thinned_out():
    values = statistics._Values()
    values.limit = 8
    for _ in range(3):
        values.add(np.arange(8.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "MAX_TOTAL", 20)
        values.add(np.arange(8.0))
        assert values.limit == 4 and {len(kept) for kept in values.of_images} == {4}
        assert values.total == 16
        values.add(np.arange(8.0))
    assert values.of_images[-1].tolist() == [0, 2, 5, 7] and values.total == 20


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        (
            {"kind": "dataset", "percentiles": [80, 20]},
            r"percentiles are \(80.0, 20.0\): expected the lower one first",
        ),
        (
            {"kind": "dataset", "percentiles": [-1, 20]},
            "scaling.dataset.percentiles.0` in .*greater than or equal to 0",
        ),
        ({"kind": "dataset", "over": "background"}, "input should be 'image' or 'foreground'"),
        ({"kind": "dataset", "percentiles": [0, 0.0001], "over": "foreground"}, None),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path: Path, scaling, message):
    spec, _ = folder(tmp_path, scaling)
    if message is None:
        for name in "abcde":
            write(tmp_path / "i" / f"{name}_ct.npy", np.tile(np.float32([1, 1, 1, 1, 1, 2]), (12, 2)))
        message = "of which the 0 and 0.0001 percentiles are both 1: choose others"
    with pytest.raises(InputError, match=message):
        open_data(spec, image_size=SIZE, need_labels=True)


def test_the_foreground_needs_labels(tmp_path: Path):
    spec, _ = folder(tmp_path, {"kind": "dataset", "over": "foreground"}, labels=[])
    with pytest.raises(InputError, match='none has any: choose "over": "image", or add labels'):
        open_data(spec, image_size=SIZE)


def test_a_resolved_scaling_is_read_again_as_it_was():
    scaling = {"CT": DatasetScaling(kind="dataset"), "PET": "channel"}
    processing = Processing(modalities={"0": "CT", "1": "PET"}, scaling=scaling)
    assert Processing.model_validate_json(json.dumps(processing.model_dump(mode="json"))) == processing
