"""The segmenter: an encoder with a light decoder, or only with a head if it has its own decoder."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import ahm_gym._compat  # noqa: F401

import safetensors.torch
import torch
from jaxtyping import Float, Int
from monai.inferers.utils import sliding_window_inference
from pydantic import Field
from safetensors import SafetensorError
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from ahm_gym.data.store import working_size
from ahm_gym.data.stream import derive_seed
from ahm_gym.errors import InputError
from ahm_gym.model.decoders import build_decoder, default_decoder, resize
from ahm_gym.model.encoders import as_encoder, export_encoder, load_encoder
from ahm_gym.runs.schema import Schema, checked, fits, read_json
from ahm_gym.runs.storage import as_os_error, check_loaded
from ahm_gym.segmentation.parts import padded_to, resized_in_parts

WEIGHT_DECAY: float = 0.05
"""Weight decay of the matrices; other parameters have none."""
WINDOWS: int = 8
"""Largest number of windows that are segmented at once."""
WINDOW_VALUES: int = 2**20
"""Largest number of voxels in them, of a volume."""


class SegmenterFile(Schema):
    """The `config.json` of a segmenter."""

    num_classes: int = Field(ge=2, le=1 << 16)
    feature_size: int = Field(ge=1, le=1 << 12)
    freeze: bool = False
    decoder: str = "unetr"


class Segmenter(nn.Module):
    """Computes class logits for every pixel of images, or voxel of volumes, from the features of an encoder.

    Args:
        encoder: network of a class that `as_encoder` knows; it sets the image size, patch size and channels.
        num_classes: number of classes including the background, at least 2.
        feature_size: width of the decoder at full resolution.
        freeze: train only the decoder.
        decoder: one of `DECODERS`; None: `default_decoder`.

    Raises:
        InputError: if there are fewer than 2 classes, or the decoder is unknown or does not go with the encoder.
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_classes: int,
        *,
        feature_size: int = 16,
        freeze: bool = False,
        decoder: str | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise InputError(
                f"the number of classes is {num_classes}: expected the background and at least one more."
            )
        self.encoder: nn.Module = encoder.requires_grad_(not freeze)
        self.num_classes: int = num_classes
        self.feature_size: int = feature_size
        self.freeze: bool = freeze
        described = as_encoder(encoder)
        self.image_size: tuple[int, ...] = described.image_size
        self.channels: int = described.channels
        self.decoder_name: str = default_decoder(described) if decoder is None else decoder
        self.decoder: nn.Module = build_decoder(self.decoder_name, described, num_classes, feature_size)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def autocast(self) -> torch.autocast:
        """The precision of a forward pass: bfloat16 on a GPU."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def train(self, mode: bool = True) -> Segmenter:
        """Sets the training mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.freeze:
            self.encoder.eval()
        return self

    def features(self, images: Float[Tensor, "B C *S"]) -> list[Float[Tensor, "B D *s"]]:
        """The feature maps of the encoder, the shallowest first."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            return as_encoder(self.encoder).feature_maps(images)

    def forward(self, images: Float[Tensor, "B C *S"]) -> Float[Tensor, "B K *S"]:
        """Class logits for every pixel of normalised images."""
        return self.decoder(images, self.features(images))


def build_segmenter(
    encoder: nn.Module, num_classes: int, *, freeze: bool = False, decoder: str | None = None, seed: int = 0
) -> Segmenter:
    """A segmenter with a decoder that is initialised from the seed alone; see `Segmenter`."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, 4))
        return Segmenter(encoder, num_classes, freeze=freeze, decoder=decoder)


def parameter_groups(segmenter: Segmenter, encoder_rate: float = 1.0) -> list[dict[str, Any]]:
    """Parameter groups for the optimiser; `lr_scale` of a group multiplies its learning rate.

    In a vision transformer the learning rates decay from the decoder down to the patch embedding. `new` is True for
    the layers that the segmenter adds to the encoder, and `encoder_rate` multiplies the rates of all others.
    """
    encoder = as_encoder(segmenter.encoder).parameter_groups(WEIGHT_DECAY)
    new = param_groups_weight_decay(segmenter.decoder, WEIGHT_DECAY)
    return [
        *(group | {"lr_scale": encoder_rate * group.get("lr_scale", 1.0), "new": False} for group in encoder),
        *(group | {"lr_scale": 1.0, "new": True} for group in new),
    ]


def predict(
    segmenter: Segmenter,
    image: Float[Tensor, "C *S"],
    size: tuple[int, ...],
    *,
    native_resolution: bool = False,
) -> Int[Tensor, "*S0"]:
    """The class of every pixel of an image or a volume, of the given `size`; see `predict_logits`."""
    logits = window_logits(segmenter, image[None], native_resolution=native_resolution)
    return torch.cat([part[0].argmax(dim=0).cpu() for part in resized_in_parts(logits, size)])


def predict_logits(
    segmenter: Segmenter,
    images: Float[Tensor, "B C *S"],
    size: tuple[int, ...],
    *,
    native_resolution: bool = False,
) -> Float[Tensor, "B K *S0"]:
    """The class logits of every pixel of some images, of the given `size`, on the segmenter's device.

    An image larger than the segmenter's size is covered by overlapping windows. Volumes are never shrunk: theirs are
    windows of the resolution that is given, and the logits are in main memory.

    Args:
        segmenter: segmenter in evaluation mode.
        images: normalised images or volumes.
        size: length of each axis of the result.
        native_resolution: do not shrink the images to the segmenter's size.
    """
    logits = window_logits(segmenter, images, native_resolution=native_resolution)
    return torch.cat(list(resized_in_parts(logits, size)), dim=2)


def window_logits(
    segmenter: Segmenter, images: Float[Tensor, "B C *S"], *, native_resolution: bool = False
) -> Float[Tensor, "B K *S2"]:
    """The class logits at the resolution at which images are segmented; the arguments are those of `predict_logits`.

    The windows overlap by half and are weighted by a Gaussian, as in nnU-Net. A volume of N voxels takes about 4 * (C +
    K + 1) * N bytes of main memory, beside what the network needs for its windows.
    """
    stored = tuple(images.shape[2:])
    if len(stored) == 3:
        return _volume_logits(segmenter, images)
    worked = working_size(stored, segmenter.image_size, native_resolution)
    with torch.no_grad(), segmenter.autocast():
        resized = resize(images.to(segmenter.device), worked)
        if worked == segmenter.image_size:
            logits = segmenter(resized)
        else:
            logits = sliding_window_inference(
                resized,
                segmenter.image_size,
                sw_batch_size=WINDOWS,
                predictor=segmenter,
                overlap=0.5,
                mode="gaussian",
            )
    return torch.as_tensor(logits).float()


def _volume_logits(segmenter: Segmenter, volumes: Float[Tensor, "B C *S"]) -> Float[Tensor, "B K *S"]:
    """The logits of volumes in main memory, of which only the windows are on the segmenter's device."""
    size = segmenter.image_size
    padded, inside = padded_to(volumes.cpu(), size)
    with torch.no_grad(), segmenter.autocast():
        logits = sliding_window_inference(
            padded,
            size,
            sw_batch_size=max(1, min(WINDOWS, WINDOW_VALUES // math.prod(size))),
            predictor=segmenter,
            overlap=0.5,
            mode="gaussian",
            sw_device=segmenter.device,
            device=torch.device("cpu"),
        )
    return torch.as_tensor(logits)[(..., *inside)].float()


def save_segmenter(
    segmenter: Segmenter, folder: Path, *, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    """Writes a segmenter for `load_segmenter`, with its encoder in the subfolder `encoder`; see `export_encoder`.

    Args:
        segmenter: segmenter to write.
        folder: folder to write to; created if it is missing.
        mean: mean of each channel of the training images; saved with the encoder.
        std: standard deviation of each channel.
    """
    folder.mkdir(parents=True, exist_ok=True)
    export_encoder(segmenter.encoder, folder / "encoder", mean=mean, std=std)
    weights = {name: value.contiguous() for name, value in segmenter.decoder.state_dict().items()}
    with as_os_error(folder):
        safetensors.torch.save_file(weights, folder / "decoder.safetensors")
    config = {
        "num_classes": segmenter.num_classes,
        "feature_size": segmenter.feature_size,
        "freeze": segmenter.freeze,
        "decoder": segmenter.decoder_name,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_segmenter(folder: Path) -> Segmenter:
    """Loads the segmenter that a fine-tuning run exported to `RUN_DIR/segmenter`.

    Raises:
        InputError: if the folder holds no segmenter.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} holds no segmenter: give the segmenter folder of a fine-tuning run.")
    config = checked(SegmenterFile, read_json(folder / "config.json"), folder / "config.json")
    try:
        weights = safetensors.torch.load_file(folder / "decoder.safetensors")
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder / 'decoder.safetensors'} cannot be read ({error}): restore it.") from error
    check_loaded(weights, folder / "decoder.safetensors")
    with torch.random.fork_rng(devices=[]):
        segmenter = Segmenter(load_encoder(folder / "encoder"), **config.model_dump())
    with fits(folder / "decoder.safetensors"):
        segmenter.decoder.load_state_dict(weights)
    return segmenter
