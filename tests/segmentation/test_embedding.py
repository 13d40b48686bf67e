"""Features of images as a file."""

import dataclasses
import importlib.util
import json
import shutil
import sys
import types

import numpy as np
import pytest
import torch
from image_folders import write
from timm.models import save_for_hf

from ahm_gym.errors import InputError, Interrupted
from ahm_gym.model.encoders import load_encoder
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.runs.folder import RunFolder
from ahm_gym.runs.interrupt import Interrupt
from ahm_gym.segmentation import embedding
from ahm_gym.segmentation.config import EmbedConfig
from ahm_gym.segmentation.embedding import encode_features, run_embed


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "pretrained"
    RunFolder.create(folder, {"kind": "pretrain", "data": None})
    encoder = build_autoencoder("tiny", image_size=(32, 32), patch_size=8, channels=1, seed=7).encoder
    statistics = {"mean": (0.4,), "std": (0.3,)}
    save_for_hf(encoder, str(folder / "encoder"), safe_serialization=True, data_config=statistics)
    return folder


@pytest.fixture
def config(run, discs, tmp_path):
    return EmbedConfig(scans=str(discs), run=run, out=tmp_path / "out" / "features.npz", device="cpu")


def test_every_image_gets_the_mean_of_its_patches_by_the_statistics_of_the_run(config, discs, tmp_path):
    assert run_embed(config) == (38, 128)
    saved = np.load(config.out)
    assert saved["ids"][0] == "train_0" and len(saved["ids"]) == 38 and saved["features"].dtype == np.float32
    patches = dataclasses.replace(config, out=tmp_path / "patches.npz", per_patch=True)
    assert run_embed(patches) == (38, 16, 128)
    per_patch = np.load(patches.out)["features"]
    assert np.allclose(per_patch.mean(axis=1), saved["features"], atol=1e-5)
    picture = np.load(discs)["train_images"][2].astype(np.float32)
    low, high = np.percentile(picture, (0.5, 99.5))
    scaled = torch.from_numpy(((picture - low) / (high - low)).clip(0, 1)).float()[None, None]
    with torch.no_grad():
        expected = load_encoder(config.run).eval().forward_features((scaled - 0.4) / 0.3)[0, 1:]
    assert np.allclose(per_patch[2], expected.numpy(), atol=0.02)  # the cache keeps images in half precision


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": "features.csv"}, r"features.csv has another ending than .npz or .parquet"),
        ({"out": "there.npz"}, "there.npz exists already: choose another `out`"),
        ({"out": "features.parquet"}, r"a .parquet file needs pyarrow: install it with pip"),
        ({"scans": "colour.npz"}, "colour has images of 3 channels and the encoder was trained on 1"),
        ({"run": "nowhere"}, "nowhere"),
        ({"scans": "nowhere"}, "there is no data"),
    ],
)
def test_what_cannot_be_embedded_is_one_sentence(config, tmp_path, monkeypatch, changes, message):
    np.savez(tmp_path / "colour.npz", train_images=np.random.default_rng(0).integers(0, 255, (2, 9, 9, 3)))
    (tmp_path / "there.npz").write_bytes(b"")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        embedding.importlib.util,
        "find_spec",
        lambda name: (
            None if name == "pyarrow" else types.SimpleNamespace() if name == "pandas" else find(name)
        ),
    )
    given = {
        name: str(tmp_path / value) if name == "scans" else tmp_path / value
        for name, value in changes.items()
    }
    with pytest.raises(InputError, match=message):
        run_embed(dataclasses.replace(config, **given))
    assert not config.out.exists()


def test_a_table_has_a_column_of_ids_and_one_for_each_feature(config, monkeypatch):
    class Table:
        def __init__(self, values, columns):
            self.columns = dict(zip(columns, values.T, strict=True))

        def insert(self, place, name, values):
            self.columns = {name: values, **self.columns}

        def to_parquet(self, file, index):
            file.write(",".join(self.columns).encode())

    if importlib.util.find_spec("pyarrow") is None:
        monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=Table))
        content = encode_features(np.zeros((2, 3), np.float32), ["a", "b"], ".parquet")
        assert content == b"id,f0,f1,f2"
    else:
        pandas = importlib.import_module("pandas")
        run_embed(dataclasses.replace(config, out=config.out.with_suffix(".parquet")))
        table = pandas.read_parquet(config.out.with_suffix(".parquet"))
        assert table.shape == (38, 129) and table["id"][0] == "train_0"


def test_all_patches_do_not_fit_into_a_table(config, monkeypatch):
    monkeypatch.setattr(embedding.importlib.util, "find_spec", lambda name: types.SimpleNamespace())
    with pytest.raises(InputError, match=r"`per_patch=True` writes three axes, which .parquet has not"):
        run_embed(dataclasses.replace(config, out=config.out.with_suffix(".parquet"), per_patch=True))


def test_a_stop_leaves_nothing_behind(config, monkeypatch):
    monkeypatch.setattr(Interrupt, "requested", True)
    with pytest.raises(Interrupted, match="nothing was written"):
        run_embed(config)
    assert not config.out.parent.exists()


def test_images_are_prepared_as_those_of_the_run(run, tmp_path, monkeypatch):
    shutil.copytree(run, tmp_path / "run")
    described = {"kind": "pretrain", "data": None, "processing": {"scaling": {"low": 0.0, "high": 400.0}}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(described))
    image = np.random.default_rng(0).integers(0, 100, (32, 32), np.uint8)
    write(tmp_path / "scans" / "a.png", image)
    seen = []
    monkeypatch.setattr(
        embedding,
        "embed",
        lambda encoder, dataset, *rest, **more: seen.append(dataset) or np.zeros((1, 2), np.float32),
    )
    run_embed(EmbedConfig(scans=str(tmp_path / "scans"), run=tmp_path / "run", out=tmp_path / "a.npz"))
    assert seen[0].image(0)[0].numpy() == pytest.approx(image / 400, abs=1e-3)
