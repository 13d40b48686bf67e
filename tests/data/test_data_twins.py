"""Images that look nearly the same in different splits."""

from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_folders import SIZE, write

from ahm_gym.data import open_data
from ahm_gym.data.twins import Twins, near_hashes

RNG = np.random.default_rng(1)


def smooth(seed: int, size: int = 48) -> np.ndarray:
    noise = np.random.default_rng(seed).random((6, 6)).astype(np.float32)
    return cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC).clip(0, 1)


def pairs(images: list[np.ndarray], splits: list[str], volumes: list[str | None] | None = None):
    twins = Twins()
    for image in images:
        twins.add(torch.from_numpy(image)[None])
    return twins.pairs(splits, volumes or [None] * len(images))


def test_a_compressed_resized_or_brighter_copy_is_found_and_other_images_are_not():
    copies = [smooth(0), smooth(0, 40), (smooth(0) + RNG.normal(0, 0.01, (48, 48)).astype(np.float32)) * 0.9]
    images = [smooth(0), *map(smooth, range(1, 9)), *copies]
    assert pairs(images, ["train"] * 9 + ["test"] * 3) == [(9, 0), (10, 0), (11, 0)]
    assert pairs(images, ["train"] * 12) == []


def test_nearly_flat_images_and_slices_of_one_volume_are_not_compared():
    flat = np.full((48, 48), 0.5, np.float32)
    assert pairs([flat, flat + 0.001 * smooth(0)], ["train", "test"]) == []
    assert pairs([smooth(0)] * 2, ["train", "test"], ["v", "v"]) == []
    assert pairs([smooth(0)] * 2, ["train", "test"], ["v", "w"]) == [(1, 0)]


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6), st.sets(st.integers(0, 63), max_size=4))
def test_near_hashes_are_those_of_at_most_two_different_bits(hashes: list[int], bits: set[int]):
    flipped = hashes[0] ^ sum(1 << bit for bit in bits)
    near = near_hashes(np.array([flipped], np.uint64), np.array(sorted(set(hashes)), np.uint64))
    expected = {value for value in hashes if (value ^ flipped).bit_count() <= 2}
    assert set(near.get(flipped, [])) == expected


@pytest.mark.parametrize("pair", list(combinations(("train", "val", "test"), 2)))
def test_a_note_names_images_of_two_splits(tmp_path: Path, capsys, pair: tuple[str, str]):
    lines = ["name,split", f"a1,{pair[0]}", f"b1,{pair[1]}", "c1,train"]
    for name, seed in (("a1", 0), ("b1", 0), ("c1", 1)):
        write(tmp_path / f"{name}.png", (255 * smooth(seed)).astype(np.uint8))
    (tmp_path / "split.csv").write_text("\n".join(lines))
    open_data(str(tmp_path), image_size=SIZE)
    told = capsys.readouterr().err
    assert (
        "1 image looks nearly the same as an image of another split: " in told
        and "a1" in told
        and "b1" in told
    )
