"""Exports networks for programs without ahm-gym: ONNX, TorchScript, MONAI and nnU-Net."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.onnx import register_custom_op_symbolic

from ahm_gym.data.processing import PLAIN, differences
from ahm_gym.errors import InputError, RunError, say, unknown_name
from ahm_gym.model.encoder_base import as_encoder
from ahm_gym.model.encoders import load_encoder, statistics_of
from ahm_gym.model.nnunet import HEADS, check_plan, checkpoint, read_plan
from ahm_gym.model.resenc import ResEncUNet
from ahm_gym.runs.storage import make_folder, replace_folder, write_atomically
from ahm_gym.segmentation.bundle import describe, write_bundle
from ahm_gym.segmentation.config import FORMATS, ExportConfig
from ahm_gym.segmentation.monai_encoder import as_monai, patch_features, write_monai_encoder
from ahm_gym.segmentation.predictor import Predictor
from ahm_gym.segmentation.segmenter import Segmenter

OPSET: int = 18
"""Version of ONNX's operators."""
TOLERANCE: float = 1e-4
"""Largest difference of an exported network from the original one, relative to the largest output and at least 1."""
BATCHES: tuple[int, ...] = (1, 3)
"""Numbers of images with which an exported network is checked."""


class Normalised(nn.Module):
    """A segmenter, or an encoder, with the normalisation of its training images inside.

    Args:
        network: a `Segmenter`, or a network of a class that `as_encoder` knows.
        mean: mean of each channel of the training images.
        std: standard deviation of each channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network: nn.Module = network
        ones = [1] * len(image_size_of_network(network))
        self.register_buffer("mean", torch.tensor(mean).view(-1, *ones))
        self.register_buffer("std", torch.tensor(std).view(-1, *ones))

    def forward(self, images: Tensor) -> Tensor:
        """Of images in [0, 1]: class logits (B, K, ...), or the features of patches (B, L, D) in reading order."""
        normalised = self.normalised(images)
        if isinstance(self.network, Segmenter):
            return self.network(normalised)
        return as_encoder(self.network).patch_features(normalised)

    def normalised(self, images: Tensor) -> Tensor:
        """Images as the network inside takes them."""
        return (images - self.mean) / self.std


def image_size_of_network(network: nn.Module) -> tuple[int, ...]:
    """The length of each axis of the images of a segmenter or an encoder."""
    return (network if isinstance(network, Segmenter) else as_encoder(network)).image_size


@dataclass(frozen=True)
class Exportable:
    """A network to export, and the shape of its images."""

    network: Normalised
    image_size: tuple[int, ...]
    channels: int
    output: str
    """Name of the output: logits or features."""
    num_classes: int = 0
    """Number of classes of a segmenter; 0 for an encoder."""
    native_resolution: bool = False


def run_export(config: ExportConfig) -> Path:
    """Writes the network in the format that was asked for, once it is checked; returns its path.

    Raises:
        InputError: if the run or the format cannot be used, or there is something at `out`; nothing is written.
        RunError: if the exported network does not give the numbers of the original one.
    """
    if config.format not in FORMATS:
        raise unknown_name("format", config.format, FORMATS)
    if config.out.exists():
        raise InputError(f"{config.out} exists already: choose another `out`.")
    if config.format == "onnx" and importlib.util.find_spec("onnx") is None:
        raise InputError(
            "`format=onnx` needs the package onnx: install it with pip install 'ahm-gym[export]'."
        )
    if config.plans is not None and config.format != "nnunet":
        raise InputError(f"`plans` goes with `format=nnunet`, and `format` is {config.format}: leave it out.")
    found = exportable(config.run, config.select)
    if config.format == "monai":
        (_export_bundle if found.num_classes else _export_monai_encoder)(found, config)
        return config.out
    if config.format == "nnunet":
        content = to_nnunet(found, config)
    else:
        content = to_onnx(found) if config.format == "onnx" else to_torchscript(found)
    make_folder(config.out.parent, "`out`")
    write_atomically(config.out, content)
    return config.out


def to_nnunet(found: Exportable, config: ExportConfig) -> bytes:
    """The residual U-Net of a pretraining run as a checkpoint of nnU-Net; says which weights it holds.

    Raises:
        InputError: if the run has another network, or `plans` plans one with other weights.
    """
    network = found.network.network
    if not isinstance(network, ResEncUNet):
        raise InputError(
            f"`format=nnunet` is for pretraining runs of `model=resenc`, and {config.run} is none: choose another "
            "`format`."
        )
    order = None
    if config.plans is None:
        say(
            "note: the weights were not compared with those that nnU-Net has planned, and nnU-Net refuses weights "
            "of other shapes: give `plans` to compare them."
        )
    else:
        order = read_plan(config.plans, len(network.image_size)).order
        number = check_plan(network, config.plans)
        say(f"note: all {number} weights have the names and shapes that {config.plans} plans.")
    say(f"note: nnU-Net's segmentation heads ({HEADS}*) are not among them, and start anew there.")
    return checkpoint(network, order)


def _export_monai_encoder(found: Exportable, config: ExportConfig) -> None:
    """Writes a pretrained encoder for MONAI's own network, once that gives the same features."""
    network, (mean, std) = found.network.network, statistics_of(config.run)
    encoder, patch_size = as_monai(network, config.run), as_encoder(network).patch_size
    if encoder.needs_einops and importlib.util.find_spec("einops") is None:
        say("note: einops, which MONAI's ViT needs, is not installed, so the weights were not checked.")
    else:
        built = encoder.build()
        _check(found, lambda images: patch_features(built, found.network.normalised(images), patch_size))
    make_folder(config.out.parent, "`out`")
    name = config.run.absolute().name
    replace_folder(config.out, lambda folder: write_monai_encoder(folder, encoder, name, mean, std))


def _export_bundle(found: Exportable, config: ExportConfig) -> None:
    if len(found.image_size) != 2:
        raise InputError(
            f"`format=monai` writes bundles that segment pictures, and {config.run} segments volumes: choose onnx or "
            "torchscript."
        )
    size, native = found.image_size, found.native_resolution
    metadata = describe(config.run.absolute().name, size, found.channels, found.num_classes)
    model = to_torchscript(
        found, {"metadata.json": json.dumps(metadata)}
    )  # where MONAI's loader looks for it
    make_folder(config.out.parent, "`out`")
    replace_folder(config.out, lambda folder: write_bundle(folder, model, metadata, size, native))


def exportable(run: Path, select: str | None = None) -> Exportable:
    """The segmenter of a fine-tuning run, or the encoder of a pretraining run.

    Raises:
        InputError: if the folder holds neither.
    """
    if _kind_of(run) == "finetune":
        predictor = Predictor.of_run(run, "cpu", select)
        segmenter = predictor.segmenter
        if different := [name for name in differences(predictor.processing, PLAIN) if name != "volumes"]:
            say(
                f"note: the images of {run} were prepared by a {' and a '.join(different)} (processing in its "
                "config.json). The exported network expects the same, and does not do it itself; nor does a bundle."
            )
        network = Normalised(segmenter, predictor.mean, predictor.std).eval()
        shape = segmenter.image_size, segmenter.channels
        return Exportable(network, *shape, "logits", segmenter.num_classes, predictor.native_resolution)
    if select is not None:
        raise InputError(f"`select={select}` goes with fine-tuning runs, and {run} is none: leave it out.")
    encoder = load_encoder(run).eval()
    described = as_encoder(encoder)
    network = Normalised(encoder, *statistics_of(run)).eval()
    return Exportable(network, described.image_size, described.channels, "features")


def to_torchscript(found: Exportable, texts: dict[str, str] | None = None) -> bytes:
    """The traced network as a file of TorchScript, checked against the original.

    Args:
        found: the network.
        texts: texts to keep in the file, by name.

    Raises:
        RunError: if the numbers differ.
    """
    content = io.BytesIO()
    with _quiet():
        traced: Any = torch.jit.trace(found.network, _example(found, 2))
        torch.jit.save(traced, content, _extra_files=texts)
    _check(found, lambda images: traced(images))
    return content.getvalue()


def to_onnx(found: Exportable) -> bytes:
    """The network as a file of ONNX with a free number of images, checked with onnxruntime if it is installed.

    Raises:
        RunError: if the numbers differ.
    """
    content: Any = io.BytesIO()  # torch takes it, but does not say so
    register_custom_op_symbolic("aten::_upsample_bilinear2d_aa", _resize_symbol, OPSET)
    with _quiet():
        torch.onnx.export(
            found.network,
            (_example(found, 2),),
            content,
            dynamo=False,  # the newer exporter needs a further package
            opset_version=OPSET,
            input_names=["images"],
            output_names=[found.output],
            dynamic_axes={"images": {0: "batch"}, found.output: {0: "batch"}},
        )
    if importlib.util.find_spec("onnxruntime") is None:
        say(
            "note: onnxruntime is not installed, so the file was not checked against torch.",
        )
        return content.getvalue()
    onnxruntime: Any = importlib.import_module("onnxruntime")
    session = onnxruntime.InferenceSession(content.getvalue(), providers=["CPUExecutionProvider"])
    _check(found, lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]))
    return content.getvalue()


def _kind_of(run: Path) -> str | None:
    path = run / "config.json"
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None  # the readers of runs and encoders say what is wrong with it
    return config.get("kind") if isinstance(config, dict) else None


def _example(found: Exportable, batch: int) -> Float[Tensor, "B C *S"]:
    shape = (batch, found.channels, *found.image_size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(batch))


def _check(found: Exportable, exported: Callable[[Tensor], Tensor]) -> None:
    """Raises RunError if the exported network gives other numbers than the original one."""
    for batch in BATCHES:
        images = _example(found, batch)
        with torch.no_grad():
            expected, given = found.network(images), exported(images)
        largest = max(float(expected.abs().max()), 1.0)
        difference = float((expected - given).abs().max()) / largest
        if not difference <= TOLERANCE:
            raise RunError(
                f"the exported network differs from the original one by {difference:.2g}: not written."
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps torch's exporters from warning that they are being replaced, and of shapes that are checked anyway."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _resize_symbol(graph: Any, images: Any, size: Any, *_: Any) -> Any:
    """ONNX's operator for a bilinear, antialiased resize of rows and columns, which torch has none for."""
    empty = graph.op("Constant", value_t=torch.tensor([], dtype=torch.float32))
    return graph.op(
        "Resize",
        images,
        empty,
        empty,
        size,
        axes_i=[2, 3],
        mode_s="linear",
        coordinate_transformation_mode_s="half_pixel",
        antialias_i=1,
        exclude_outside_i=1,
    )
