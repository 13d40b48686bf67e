"""Fine-tune an encoder for segmentation: `python examples/segment.py --encoder RUN_DIR --labels 10`."""

import dataclasses
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from ahm_gym.errors import InputError, command_line
from ahm_gym.runs.settings import flags_in
from ahm_gym.segmentation.config import FinetuneConfig, with_run_dir
from ahm_gym.segmentation.finetune import finetune, is_finished, run_probe


@dataclass(frozen=True)
class Arguments:
    """Segmentation with a pretrained encoder, or from scratch, on a number of labelled images."""

    encoder: str = FinetuneConfig.encoder
    """Folder of a pretraining run or of a recipe's, or none for an untrained encoder."""
    data: str | None = FinetuneConfig.data
    """Labelled images, as for pretraining; nothing takes those of the encoder's run, else the MNI152 brain."""
    data_root: Path | None = FinetuneConfig.data_root
    """Where relative names are looked up; the variable AHM_DATA does the same."""
    labels: int | None = FinetuneConfig.labels
    """Number of labelled training images; nothing takes all."""
    steps: int = FinetuneConfig.steps
    """Updates of the segmenter."""
    model: str | None = FinetuneConfig.model
    """tiny, small, base, unet, or a vision transformer of timm; nothing takes the encoder's, else tiny."""
    image_size: tuple[int, ...] | None = FinetuneConfig.image_size
    """Side of the training images in pixels, or height and width; nothing takes the encoder's, else 64."""
    patch_size: int | None = FinetuneConfig.patch_size
    """Side of a patch in pixels; nothing takes the encoder's, else 8."""
    batch_size: int = FinetuneConfig.batch_size
    """Images in an update."""
    learning_rate: float = FinetuneConfig.learning_rate
    """Of the decoder, after its warm-up; it decays towards the encoder's first layers."""
    seed: int = FinetuneConfig.seed
    """Of the choice of labelled images, their order and crops, and the weights."""
    device: str = FinetuneConfig.device
    """auto, cpu or cuda."""
    run_dir: Path | None = FinetuneConfig.run_dir
    """Where everything is written; nothing takes the first free runs/ENCODER-finetune-N, or -probe-N."""
    freeze: bool = FinetuneConfig.freeze
    """Keep the encoder as it is and train the decoder alone."""
    native_resolution: bool = FinetuneConfig.native_resolution
    """Segment images as large as they are, window by window, instead of shrinking them first."""
    checkpoint_every: int = FinetuneConfig.checkpoint_every
    """Updates between two checkpoints."""
    resume: bool = False
    """Go on with the run in --run-dir, with its own settings."""
    probe: bool = False
    """Only judge the encoder: a linear map from its frozen patch features, in seconds."""


def main() -> None:
    arguments = dataclasses.asdict(tyro.cli(Arguments, description=__doc__))
    resume, probe = arguments.pop("resume"), arguments.pop("probe")
    config = FinetuneConfig(**arguments)
    with command_line():
        if probe:
            if resume:
                raise InputError("--probe takes seconds and cannot be resumed: leave --resume out.")
            config = with_run_dir(config, "probe")
            report_probe(config, run_probe(config))
        else:
            if resume and is_finished(config.run_dir):
                print(f"{config.run_dir} has finished already.")
            config = config if resume else with_run_dir(config, "finetune")
            report(config, finetune(config, resume=resume, given=flags_in(sys.argv)))


def report(config: FinetuneConfig, results: dict[str, Any]) -> None:
    unit = results["hd95_unit"]
    print(f"\n{results['num_cases']} {results['split']} cases, {results['labels']} labelled training images")
    for name, row in [*results["per_class"].items(), ("mean", results)]:
        dice, iou, distance = (shown(row[metric]) for metric in ("dice", "iou", "hd95"))
        print(f"class {name}: Dice {dice}, IoU {iou}, HD95 {distance} {unit}")
    if absent := results.get("absent_classes"):
        listed = ", ".join(map(str, absent))
        print(f"No {results['split']} label has the class {listed}: it is left out of the mean.")
    print(f"Wrote {config.run_dir}/: results.json, figures/overlays.png, segmenter/, metrics.jsonl")
    if results["config"]["encoder"] == "none":
        print(f"Next: python examples/pretrain.py {same_images(results['config'])}")
        print("then this again with --encoder and that run's folder")
    else:
        print(f"Next: for comparison, the same command with --encoder none {same_images(results['config'])}")
        print("and another --run-dir where one was given")


def same_images(settings: dict[str, Any]) -> str:
    """Flags of an encoder of the same shape on the same images."""
    flags = {"--data": settings["data"] and shlex.quote(settings["data"]), "--model": settings["model"]}
    flags |= {
        "--image-size": " ".join(map(str, settings["image_size"])),
        "--patch-size": settings["patch_size"],
    }
    return " ".join(f"{flag} {value}" for flag, value in flags.items() if value is not None)


def report_probe(config: FinetuneConfig, results: dict[str, Any]) -> None:
    dice, images, labels = shown(results["patch_dice"]), results["num_images"], results["labels"]
    print(f"\nPatch Dice {dice} on {images} test images, {labels} labelled training images")
    print(f"Wrote {config.run_dir}/results.json")
    print(
        "Next: to fine-tune, the same command without --probe, and with another --run-dir where one was given"
    )


def shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
