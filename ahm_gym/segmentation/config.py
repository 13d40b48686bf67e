"""Settings of a fine-tuning run, and what they name: labelled images and the encoder to start from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ahm_gym.data import ImageDataset, open_data
from ahm_gym.data.sources import absolute, stem_of
from ahm_gym.errors import InputError
from ahm_gym.model.encoders import Encoder, find_encoder, load_encoder
from ahm_gym.model.patches import image_size_of
from ahm_gym.runs.folder import free_run_dir


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of a fine-tuning run; `examples/segment.py` documents each."""

    encoder: str = "none"
    data: str | None = None
    data_root: Path | None = None
    labels: int | None = None
    steps: int = 300
    model: str | None = None
    image_size: tuple[int, ...] | None = None
    patch_size: int | None = None
    batch_size: int = 8
    learning_rate: float = 3e-3
    seed: int = 0
    device: str = "auto"
    run_dir: Path | None = None
    freeze: bool = False
    native_resolution: bool = False
    checkpoint_every: int = 100


def resolve(config: FinetuneConfig) -> FinetuneConfig:
    """The settings with what was left out taken from the encoder's run, or from the defaults.

    Raises:
        InputError: where a number is out of range, or the encoder cannot be found.
    """
    for name, least in (("labels", 1), ("steps", 1), ("batch_size", 1), ("checkpoint_every", 1), ("seed", 0)):
        value = getattr(config, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} {value} is out of range: choose {least} or more.")
    if not config.learning_rate > 0:
        raise InputError(f"--learning-rate {config.learning_rate}: choose a positive value such as 0.001.")
    config = spelled_out(config)
    if config.encoder == "none":
        return replace(
            config,
            model=config.model or "tiny",
            image_size=config.image_size or (64, 64),
            patch_size=8 if config.patch_size is None else config.patch_size,
        )
    found = find_encoder(Path(config.encoder))
    return replace(
        config,
        data=found.data if config.data is None else config.data,
        data_root=found.data_root if config.data is None and config.data_root is None else config.data_root,
        model=config.model or found.model,
        image_size=config.image_size or found.image_size,
        patch_size=found.patch_size if config.patch_size is None else config.patch_size,
    )


def spelled_out(config: FinetuneConfig) -> FinetuneConfig:
    """The same settings as `config.json` holds them: two image sizes, absolute paths."""
    data, root = (None, config.data_root) if config.data is None else absolute(config.data, config.data_root)
    encoder = config.encoder if config.encoder == "none" else str(Path(config.encoder).absolute())
    size = None if config.image_size is None else image_size_of(config.image_size)
    return replace(config, encoder=encoder, image_size=size, data=data, data_root=root)


def with_run_dir(config: FinetuneConfig, what: str) -> FinetuneConfig:
    """The settings with a run folder: unless it is given, the first free `runs/ENCODER-WHAT-N`.

    ENCODER is the folder of the encoder's run, DATA-scratch where there is none.
    """
    if config.encoder == "none":
        start = f"{stem_of(config.data)}-scratch"
    else:
        folder = Path(config.encoder).absolute()
        start = folder.parent.name if folder.name == "encoder" else folder.name
    return replace(config, run_dir=config.run_dir or free_run_dir(f"{start}-{what}"))


def shape_of(config: FinetuneConfig) -> tuple[tuple[int, int], int]:
    assert config.image_size is not None and config.patch_size is not None, "resolved"
    return image_size_of(config.image_size), config.patch_size


def open_labelled(config: FinetuneConfig) -> ImageDataset:
    return open_data(
        config.data,
        root=config.data_root,
        image_size=shape_of(config)[0],
        native_resolution=config.native_resolution,
        need_labels=True,
    )


def starting_encoder(config: FinetuneConfig, dataset: ImageDataset) -> Encoder:
    image_size, patch_size = shape_of(config)
    return load_encoder(
        None if config.encoder == "none" else Path(config.encoder),
        model=config.model,
        image_size=image_size,
        patch_size=patch_size,
        channels=dataset.channels,
        seed=config.seed,
    )
