"""A MONAI bundle around an exported segmenter: its network, its description and how to run it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ahm_gym._compat  # noqa: F401

import monai
import numpy as np
import torch

VERSION: str = "0.1.0"
"""Version of the layout of the bundle."""


def write_bundle(
    folder: Path,
    model: bytes,
    metadata: dict[str, Any],
    image_size: tuple[int, ...],
    native_resolution: bool,
) -> None:
    """Writes the files of a bundle into an empty folder: configs, the network and a page of text.

    Args:
        folder: where to write.
        model: the network as TorchScript.
        metadata: what `describe` returned.
        image_size: rows and columns of the network's images.
        native_resolution: whether images keep their size.
    """
    for name in ("configs", "models", "docs"):
        (folder / name).mkdir()
    (folder / "models" / "model.ts").write_bytes(model)
    _write_json(folder / "configs" / "metadata.json", metadata)
    _write_json(folder / "configs" / "inference.json", _inference(image_size, native_resolution))
    channels = metadata["network_data_format"]["inputs"]["image"]["num_channels"]
    page = _page(metadata["name"], image_size, channels)
    (folder / "docs" / "README.md").write_text(page, encoding="utf-8")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


def describe(run: str, size: tuple[int, ...], channels: int, num_classes: int) -> dict[str, Any]:
    """The content of `metadata.json`, in the form that MONAI describes.

    Args:
        run: name of the run.
        size: rows and columns of the network's images.
        channels: number of image channels.
        num_classes: number of classes with the background.
    """
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": "n/a",
        "num_channels": channels,
        "spatial_shape": list(size),
        "dtype": "float32",
        "value_range": [0, 1],
        "is_patch_data": True,
        "channel_def": {str(index): f"channel {index}" for index in range(channels)},
    }
    classes = {str(index): "background" if index == 0 else f"class {index}" for index in range(num_classes)}
    logits = image | {
        "format": "segmentation",
        "num_channels": num_classes,
        "value_range": [],
        "channel_def": classes,
    }
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json",
        "version": VERSION,
        "changelog": {VERSION: "exported"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {},
        "name": run,
        "task": "segmentation of two-dimensional images",
        "description": f"A segmenter that ahm-gym fine-tuned in the run {run}; it returns logits.",
        "authors": "the authors of the run",
        "copyright": "the authors of the run",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": logits}},
    }


def _inference(size: tuple[int, ...], native_resolution: bool) -> dict[str, Any]:
    """The content of `inference.json`: from the pictures in `dataset_dir` to masks in `output_dir`."""
    rows, columns = size
    covering = (
        f"$lambda image: torch.nn.functional.interpolate(image[None], size=[max(round(side * max({rows} / "
        f"image.shape[-2], {columns} / image.shape[-1])), least) for side, least in zip(image.shape[-2:], "
        f"({rows}, {columns}))], mode='bilinear', antialias=True)"
    )
    native = (
        f"$lambda image: image[None] if image.shape[-2] >= {rows} and image.shape[-1] >= {columns} else "
        "@covering(image)"
    )
    pixels = {"keys": "image", "lower": 0.5, "upper": 99.5, "b_min": 0.0, "b_max": 1.0, "clip": True}
    return {
        "imports": ["$import glob", "$import numpy", "$import os", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network": "$torch.jit.load(@bundle_root + '/models/model.ts', map_location=@device).eval()",
        "datalist": "$[{'image': path} for path in sorted(glob.glob(os.path.join(@dataset_dir, '*.*')))]",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "LoadImaged",
                    "keys": "image",
                    "reader": "PILReader",
                    "reverse_indexing": False,
                },
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "ScaleIntensityRangePercentilesd", **pixels},
                {"_target_": "EnsureTyped", "keys": "image", "track_meta": False},
            ],
        },
        "covering": covering,
        "resized": native if native_resolution else "$@covering",
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(size),
            "sw_batch_size": 8,
            "overlap": 0.5,
            "mode": "gaussian",
        },
        "logits": "$lambda image: torch.nn.functional.interpolate(@inferer(@resized(image).to(@device), @network), "
        "size=list(image.shape[-2:]), mode='bilinear', antialias=True)[0]",
        "segment": "$lambda item: @logits(@preprocessing(item)['image']).argmax(dim=0)",
        "save": "$lambda item: numpy.save(os.path.join(@output_dir, "
        "os.path.splitext(os.path.basename(item['image']))[0] + '.npy'), @segment(item).cpu().numpy().astype('uint8'))",
        "run": [
            "$os.makedirs(@output_dir, exist_ok=True)",
            "$torch.set_grad_enabled(False)",
            "$[@save(item) for item in @datalist]",
        ],
    }


def _page(run: str, size: tuple[int, ...], channels: int) -> str:
    return f"""# {run}

A segmenter of two-dimensional images that ahm-gym fine-tuned and exported.

- `models/model.ts`: TorchScript. Input: (B, {channels}, {size[0]}, {size[1]}), float32 in [0, 1]; the normalisation of
  the training images is inside. Output: class logits (B, K, {size[0]}, {size[1]}).
- Intensities are scaled image by image: clipped at the 0.5 and 99.5 percentiles over all channels, then 0 to 1.
- `configs/inference.json`: `python -m monai.bundle run --config_file configs/inference.json --bundle_root .
  --dataset_dir PICTURES --output_dir MASKS` writes a mask (.npy, rows and columns of the picture) of every picture.
"""
