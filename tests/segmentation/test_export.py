"""Exported networks give the numbers of the original ones, in other programs."""

import contextlib
import io
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from jaxtyping import config as checks
from monai.bundle import ConfigParser, load
from timm.models import save_for_hf

from ahm_gym.data.formats import read_pixels
from ahm_gym.errors import InputError, RunError
from ahm_gym.model.encoders import export_encoder, load_encoder
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.runs.folder import RunFolder
from ahm_gym.segmentation import export
from ahm_gym.segmentation.config import ExportConfig, FinetuneConfig
from ahm_gym.segmentation.export import (
    Exportable,
    Normalised,
    exportable,
    run_export,
    to_onnx,
    to_torchscript,
)
from ahm_gym.segmentation.finetune import finetune
from ahm_gym.segmentation.inputs import resolve
from ahm_gym.segmentation.predictor import Ensemble
from ahm_gym.segmentation.segmenter import build_segmenter

pytestmark = pytest.mark.filterwarnings(  # torch.jit gives way to torch.export, and MONAI still loads it
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:NvImgCodec:UserWarning"
)


@pytest.fixture(scope="module", autouse=True)
def unchecked_tracing():
    """While a network is traced its shapes are tensors, so that annotations do not hold."""
    quiet = export._quiet

    @contextlib.contextmanager
    def quiet_and_unchecked():
        checks.update("jaxtyping_disable", True)
        with quiet():
            yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_quiet", quiet_and_unchecked)
        yield


@pytest.fixture(scope="module")
def run(discs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    settings = FinetuneConfig(
        data=str(discs), model="unet", image_size=(32,), steps=30, batch_size=8, run_dir=folder
    )
    finetune(resolve(settings))
    return folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "pretrained"
    RunFolder.create(folder, {"kind": "pretrain", "data": None})
    encoder = build_autoencoder("tiny", image_size=(32, 32), patch_size=8, channels=1, seed=7).encoder
    statistics = {"mean": (0.5,), "std": (0.2,)}
    save_for_hf(encoder, str(folder / "encoder"), safe_serialization=True, data_config=statistics)
    return folder


def images(batch, channels=1, size=(32, 32)):
    return torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(batch))


def run_onnx(content, given):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (node,) = session.get_inputs()
    assert node.name == "images" and isinstance(node.shape[0], str)
    return torch.from_numpy(session.run(None, {"images": given.numpy()})[0])


@pytest.mark.parametrize(
    ("model", "decoder", "size", "patch_size", "channels"),
    [
        ("tiny", "unetr", (32, 48), 8, 3),
        ("tiny", "plain", (32, 32), 8, 1),
        ("tiny", "unetr", (48, 48), 12, 1),
        ("tiny_conv", "unetr", (32, 32), 8, 1),
        ("unet", "unetr", (32, 32), 8, 1),
        ("resenc", "unetr", (64, 64), 8, 1),
    ],
)
def test_every_architecture_gives_the_same_numbers(model, decoder, size, patch_size, channels):
    pytest.importorskip("onnx")
    encoder = load_encoder(None, model=model, image_size=size, patch_size=patch_size, channels=channels)
    segmenter = build_segmenter(encoder, 3, decoder=decoder).eval()
    network = Normalised(segmenter, (0.4,) * channels, (0.3,) * channels).eval()
    found = Exportable(network, size, channels, "logits", 3)
    given = images(5, channels, size)
    with torch.no_grad():
        expected = segmenter((given - 0.4) / 0.3)
        traced = torch.jit.load(io.BytesIO(to_torchscript(found)))(given)
    assert torch.allclose(traced, expected, atol=1e-4)
    assert torch.allclose(run_onnx(to_onnx(found), given), expected, atol=1e-4)


def test_the_onnx_file_of_a_run_segments_like_the_run(run, discs, tmp_path):
    onnx = pytest.importorskip("onnx")
    path = run_export(ExportConfig(run=run, out=tmp_path / "models" / "model.onnx"))
    assert onnx.load(path).opset_import[0].version == export.OPSET
    ensemble = Ensemble.of_runs((run,), "cpu")
    picture = np.load(discs)["test_images"][0]
    scaled = ensemble.scaled(picture, "picture")
    logits = run_onnx(path.read_bytes(), scaled[None])
    assert torch.allclose(logits, ensemble.members[0].logits(scaled[None], (32, 32)), atol=1e-4)
    assert torch.equal(logits[0].argmax(dim=0), ensemble.classes(scaled, (32, 32)))


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_the_encoder_of_a_pretraining_run_gives_its_features(pretrained, tmp_path, kind):
    pytest.importorskip("onnx")
    path = run_export(ExportConfig(run=pretrained, out=tmp_path / "encoder", format=kind))
    given = images(4)
    encoder = load_encoder(pretrained).eval()
    with torch.no_grad():
        expected = encoder.forward_features((given - 0.5) / 0.2)[:, 1:]
        if kind == "onnx":
            features = run_onnx(path.read_bytes(), given)
        else:
            features = torch.jit.load(path)(given)
    assert features.shape == (4, 16, 128) and torch.allclose(features, expected, atol=1e-4)


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory):
    return run_export(ExportConfig(run=run, out=tmp_path_factory.mktemp("bundles") / "discs", format="monai"))


def test_monai_loads_the_network_of_a_bundle(run, bundle):
    network, metadata, _ = load(name=bundle.name, bundle_dir=str(bundle.parent), load_ts_module=True)
    assert {"monai_version", "pytorch_version", "numpy_version", "task"} <= metadata.keys()
    shape = metadata["network_data_format"]["inputs"]["image"]
    given = images(2, shape["num_channels"], shape["spatial_shape"])
    with torch.no_grad():
        assert torch.allclose(network(given), exportable(run).network(given), atol=1e-5)


def test_the_inference_of_a_bundle_segments_pictures_like_the_run(run, bundle, discs, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index, image in enumerate(np.load(discs)["test_images"][:3]):
        resized = cv2.resize(image, (40, 36)) if index == 2 else image
        cv2.imwrite(str(pictures / f"{index}.png"), resized)
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    for name, value in {
        "bundle_root": bundle,
        "dataset_dir": pictures,
        "output_dir": tmp_path / "out",
    }.items():
        parser[name] = str(value)
    parser.get_parsed_content("run")
    torch.set_grad_enabled(True)
    ensemble = Ensemble.of_runs((run,), "cpu")
    for path in sorted(pictures.iterdir()):
        found = np.load(tmp_path / "out" / f"{path.stem}.npy")
        expected = ensemble.segment(read_pixels(path), str(path)).mask
        assert found.shape == expected.shape and (found == expected).mean() > 0.99 and expected.any()


def pretrained_on(folder, model, size, **sizes):
    """A pretraining run as its exports leave it."""
    RunFolder.create(folder, {"kind": "pretrain", "data": None})
    encoder = build_autoencoder(model, image_size=size, patch_size=8, channels=2, seed=7, **sizes).encoder
    export_encoder(encoder, folder / "encoder", mean=(0.5, 0.25), std=(0.2, 0.1))
    return folder, encoder.eval()


@pytest.mark.parametrize(
    ("model", "size"), [("tiny", (16, 24, 32)), ("unet", (16, 32, 16)), ("unet", (32, 48))]
)
def test_monai_builds_a_pretrained_encoder_from_its_folder_alone(model, size, tmp_path, monkeypatch):
    pytest.importorskip("einops")
    run, encoder = pretrained_on(tmp_path / "run", model, size)
    out = run_export(ExportConfig(run=run, out=tmp_path / "out", format="monai"))
    page = (out / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    config = json.loads((out / "network.json").read_text())
    mean, std = (torch.tensor(config[name]).view(-1, *[1] * len(size)) for name in ("mean", "std"))
    given = (images(2, 2, size) - mean) / std
    names = {"images": given}
    monkeypatch.chdir(out)
    exec(code, names)
    with torch.no_grad():
        if model == "tiny":
            found, expected = names["features"], encoder.forward_features(given)
        else:
            network = names["network"].eval()
            network.final_conv = torch.nn.Identity()
            found, expected = network(given), encoder(given)
    assert (found - expected).abs().max() < 1e-5 and "0.5 and 99.5 percentiles" in page


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_the_encoder_of_volumes_is_exported(tmp_path, kind):
    pytest.importorskip("onnx")
    run, encoder = pretrained_on(tmp_path / "run", "tiny", (16, 24, 32))
    path = run_export(ExportConfig(run=run, out=tmp_path / "encoder", format=kind))
    given = images(3, 2, (16, 24, 32))
    mean, std = (torch.tensor(pair).view(2, 1, 1, 1) for pair in ((0.5, 0.25), (0.2, 0.1)))
    with torch.no_grad():
        expected = encoder.forward_features((given - mean) / std)
        found = run_onnx(path.read_bytes(), given) if kind == "onnx" else torch.jit.load(path)(given)
    assert torch.allclose(found, expected, atol=1e-4)


def test_nnu_net_is_given_all_weights_and_the_comparison_with_its_plans_is_told(tmp_path, capsys):
    run, encoder = pretrained_on(tmp_path / "run", "resenc", (32, 32))
    path = run_export(ExportConfig(run=run, out=tmp_path / "nnunet.pth", format="nnunet"))
    weights = torch.load(path, weights_only=True)["network_weights"]
    assert torch.equal(weights["encoder.stem.convs.0.conv.weight"], encoder.encoder.stem.convs[0].conv.weight)
    told = capsys.readouterr().err
    assert "note: the weights were not compared" in told and "decoder.seg_layers.*" in told
    with pytest.raises(InputError, match="plans.json cannot be read"):
        plans = tmp_path / "plans.json"
        run_export(ExportConfig(run=run, out=tmp_path / "other.pth", format="nnunet", plans=plans))


def test_a_network_that_differs_is_not_written(run, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(RunError, match="differs from the original one by .*: not written"):
        run_export(ExportConfig(run=run, out=tmp_path / "model.ts", format="torchscript"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_could_not_be_checked_is_announced(pretrained, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnx")
    find = export.importlib.util.find_spec
    monkeypatch.setattr(
        export.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name)
    )
    run_export(ExportConfig(run=pretrained, out=tmp_path / "model.onnx"))
    assert "note: onnxruntime is not installed" in capsys.readouterr().err
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"`format=onnx` needs the package onnx: .*ahm-gym\[export\]"):
        run_export(ExportConfig(run=pretrained, out=tmp_path / "again.onnx"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "onx"}, "unknown format 'onx': did you mean 'onnx'"),
        ({"format": "monai", "kind": "pretrained"}, "`format=monai` is for segmenters, U-Nets"),
        (
            {"format": "nnunet", "kind": "pretrained"},
            "`format=nnunet` is for pretraining runs of `model=resenc`",
        ),
        ({"format": "nnunet"}, "`format=nnunet` is for pretraining runs of `model=resenc`"),
        ({"plans": Path("plans.json")}, "`plans` goes with `format=nnunet`, and `format` is torchscript"),
        ({"select": "best", "kind": "pretrained"}, "`select=best` goes with fine-tuning runs"),
        ({"out": "."}, "exists already: choose another `out`"),
        ({"kind": "nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(run, pretrained, tmp_path, settings, message):
    runs = {"run": run, "pretrained": pretrained, "nowhere": tmp_path / "nowhere"}
    given = {"out": tmp_path / settings.pop("out", "model"), "run": runs[settings.pop("kind", "run")]}
    with pytest.raises(InputError, match=message):
        run_export(ExportConfig(**{"format": "torchscript", **given, **settings}))
    assert list(tmp_path.iterdir()) == []


def test_a_note_says_how_the_images_of_a_run_were_prepared(run, tmp_path, capsys):
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    config["processing"] = {"volumes": True, "spacing": [1.0, 1.0, 2.0]}
    (copy / "config.json").write_text(json.dumps(config))
    exportable(copy)
    assert "were prepared by a spacing (processing in" in capsys.readouterr().err


def test_the_description_of_a_bundle_has_the_names_of_its_run(bundle):
    described = json.loads((bundle / "configs" / "metadata.json").read_text())
    outputs = described["network_data_format"]["outputs"]["pred"]
    assert described["name"] == "run" and outputs["num_channels"] == 2
    assert "32, 32" in (bundle / "docs" / "README.md").read_text()
