"""Features of images by the encoder of a pretraining run, as a table for other programs."""

from __future__ import annotations

import importlib
import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from ahm_gym.data import ImageDataset
from ahm_gym.data.processing import PLAIN, Processing
from ahm_gym.data.sample import OneSplit
from ahm_gym.data.sources import as_trained, find_source, open_source
from ahm_gym.data.store import cover
from ahm_gym.device.choice import pick_device
from ahm_gym.errors import InputError, Interrupted
from ahm_gym.model.encoder_base import Encoder, as_encoder
from ahm_gym.model.encoders import find_encoder, load_encoder, statistics_of
from ahm_gym.runs.interrupt import Interrupt
from ahm_gym.runs.progress import Progress
from ahm_gym.runs.schema import read_object
from ahm_gym.runs.storage import make_folder, write_atomically
from ahm_gym.segmentation.config import EmbedConfig
from ahm_gym.segmentation.views import parts_of, patches_inside, windows_over

SUFFIXES: tuple[str, ...] = (".npz", ".parquet")
BATCH: int = 32
"""Number of images that are embedded at once."""


def run_embed(config: EmbedConfig) -> tuple[int, ...]:
    """Writes the features and ids of all images; returns the shape of the features, (N, D) or (N, L, D).

    Raises:
        InputError: if the run, the images or the file cannot be used; nothing is written.
        Interrupted: on Ctrl-C or SIGTERM; nothing is written.
    """
    check_file(config)
    network = load_encoder(config.run).to(pick_device(config.device)).eval()
    encoder = as_encoder(network)
    if config.per_patch and len(encoder.image_size) == 3:
        raise InputError(
            "`per_patch=True` needs images of one size, and volumes differ in their number of patches: leave it out."
        )
    source = find_source(config.scans, config.data_root, encoder.image_size)
    source = OneSplit(as_trained(source, processing_of(config.run)))
    dataset = open_source(source, image_size=encoder.image_size)
    if dataset.channels != encoder.channels:
        raise InputError(
            f"{dataset.name} has images of {dataset.channels} channels and the encoder was trained on "
            f"{encoder.channels}: convert them, or choose another `run`."
        )
    features = embed(
        encoder, dataset, statistics_of(config.run), pick_device(config.device), per_patch=config.per_patch
    )
    ids = list(dataset.ids)
    make_folder(config.out.parent, "`out`")
    write_atomically(config.out, encode_features(features, ids, config.out.suffix))
    return features.shape


def processing_of(run: Path) -> Processing:
    """How the images of a pretraining run were prepared; `PLAIN` for an encoder without its run, which does not say."""
    path = find_encoder(run).path.parent / "config.json"
    return Processing.model_validate(read_object(path).get("processing", {})) if path.is_file() else PLAIN


def check_file(config: EmbedConfig) -> None:
    """Raises InputError if the file exists, or its format or the packages for it are not there."""
    if config.out.suffix not in SUFFIXES:
        raise InputError(
            f"{config.out} has another ending than {' or '.join(SUFFIXES)}: choose one for `out`."
        )
    if config.out.exists():
        raise InputError(f"{config.out} exists already: choose another `out`.")
    if config.out.suffix == ".npz":
        return
    missing = [name for name in ("pandas", "pyarrow") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"a .parquet file needs {' and '.join(missing)}: install it with pip, or choose an `out` in .npz."
        )
    if config.per_patch:
        raise InputError(
            "`per_patch=True` writes three axes, which .parquet has not: choose an `out` in .npz."
        )


def embed(
    encoder: Encoder,
    dataset: ImageDataset,
    statistics: tuple[Sequence[float], Sequence[float]],
    device: torch.device,
    *,
    per_patch: bool = False,
) -> Float32[np.ndarray, "N *L D"]:
    """The features of all images in the order of the dataset, each image resized and cropped to its centre.

    A volume is covered by windows at its own resolution.

    Args:
        encoder: an encoder on `device`.
        dataset: the images.
        statistics: mean and deviation of each channel, by which images are normalised.
        device: where the encoder is.
        per_patch: (N, L, D) in reading order, instead of the mean over the patches (N, D).

    Raises:
        Interrupted: on Ctrl-C or SIGTERM.
    """
    in_volumes = len(encoder.image_size) == 3
    shape = (-1, *[1] * len(encoder.image_size))
    mean, std = (torch.tensor(values).view(shape) for values in statistics)
    together = 1 if in_volumes else BATCH
    parts: list[Tensor] = []
    interrupt = Interrupt()
    with (
        interrupt,
        torch.inference_mode(),
        Progress("embedding", total=len(dataset), images_per_step=1) as bar,
    ):
        for first in range(0, len(dataset), together):
            indices = range(first, min(first + together, len(dataset)))
            images = _views(dataset, indices, encoder.image_size)
            features = torch.cat(
                [
                    encoder.patch_features(((part - mean) / std).to(device)).float().cpu()
                    for part in parts_of(images)
                ]
            )
            if in_volumes:
                inside = patches_inside(dataset.size_of(first), encoder.image_size, encoder.patch_size)
                features = features[inside][None]
            parts.append(features if per_patch else features.mean(dim=1))
            bar.advance(indices[-1] + 1)
            if interrupt.requested:
                raise Interrupted("stopped; nothing was written.", interrupt.signal or 2)
    return torch.cat(parts).numpy()


def _views(dataset: ImageDataset, indices: Sequence[int], size: tuple[int, ...]) -> Float[Tensor, "V C *S"]:
    """Images in [0, 1], fitted to the size, or the windows over volumes."""
    if len(size) == 2:
        return torch.stack([cover(dataset.image(index), size) for index in indices])
    places = ((index, starts) for index in indices for starts in windows_over(dataset.size_of(index), size))
    return torch.stack([dataset.crop(index, starts, size) for index, starts in places])


def encode_features(features: Float32[np.ndarray, "N *L D"], ids: list[str], suffix: str) -> bytes:
    """A file with one row an image: .npz with `features` and `ids`, or .parquet with `id`, `f0`, `f1` and so on."""
    content = io.BytesIO()
    if suffix == ".npz":
        np.savez_compressed(content, features=features, ids=np.array(ids))
        return content.getvalue()
    pandas = importlib.import_module("pandas")
    columns = [f"f{number}" for number in range(features.shape[1])]
    table = pandas.DataFrame(features, columns=columns)
    table.insert(0, "id", ids)
    table.to_parquet(content, index=False)
    return content.getvalue()
