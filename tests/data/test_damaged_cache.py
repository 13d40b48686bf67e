"""A damaged cache of prepared data is found and prepared again."""

import numpy as np
import pytest
from programs import write_discs

from ahm_gym.data import checksums, open_data


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("AHM_CACHE", str(tmp_path / "cache"))
    checksums._has_content.cache_clear()
    return str(write_discs(tmp_path / "discs.npz"))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lose(path):
    path.unlink()


def nonsense(path):
    path.write_text("[1]")


@pytest.mark.parametrize("name", ["index.json", "images.float16", "labels.uint8", "checksums.json"])
@pytest.mark.parametrize("damage", [truncate, flip, lose, nonsense])
def test_a_damaged_file_is_prepared_again(data, damage, name, capsys):
    first = open_data(data, image_size=(32, 32))
    image, digest = first.image(0).clone(), first.content_digest()
    damage(first.folder / name)
    again = open_data(data, image_size=(32, 32))
    assert again.image(0).equal(image)
    assert again.content_digest() == digest
    if (name, damage) != ("checksums.json", lose):
        assert "is damaged and is prepared again" in capsys.readouterr().err
    open_data(data, image_size=(32, 32))
    assert "damaged" not in capsys.readouterr().err
    assert [item.name for item in first.folder.parent.iterdir()] == [first.folder.name]


def test_a_sound_cache_is_opened_as_it_is_and_hashed_once(data, monkeypatch):
    folder = open_data(data, image_size=(32, 32)).folder
    written = (folder / "index.json").stat().st_mtime_ns
    hashed = []
    real = checksums._hash
    monkeypatch.setattr(checksums, "_hash", lambda path: hashed.append(path.name) or real(path))
    for _ in range(3):
        open_data(data, image_size=(32, 32))
    assert sorted(hashed) == ["images.float16", "index.json", "labels.uint8"]
    assert (folder / "index.json").stat().st_mtime_ns == written


def test_the_digest_of_the_content_sees_an_image_of_any_split(tmp_path):
    path = write_discs(tmp_path / "discs.npz")
    before = open_data(str(path), image_size=(32, 32)).content_digest()
    arrays = dict(np.load(path))
    arrays["test_images"][0, 0, 0] += 1
    np.savez_compressed(path, **arrays)
    assert open_data(str(path), image_size=(32, 32)).content_digest() != before
