"""The run of a probe: it opens the data and the encoder, and writes the scores into a run folder."""

from __future__ import annotations

import json
from typing import Any

from ahm_gym.data.draws import describe_draw, report_draw
from ahm_gym.data.labelled import choose_labelled
from ahm_gym.device.choice import pick_device
from ahm_gym.runs.folder import RunFolder
from ahm_gym.runs.settings import to_json
from ahm_gym.runs.storage import write_atomically
from ahm_gym.segmentation.config import EvaluationConfig, ProbeConfig
from ahm_gym.segmentation.inputs import open_labelled, resolve, starting_encoder, with_run_dir
from ahm_gym.segmentation.pixel_probe import PixelProbe
from ahm_gym.segmentation.probe import Probe


def run_probe(config: ProbeConfig) -> dict[str, Any]:
    """Probes the encoder with `config.labels` labelled images; returns the content of `results.json`.

    Raises:
        InputError: if settings or data cannot be used; no folder is left behind.
    """
    config = resolve(with_run_dir(config, "probe"))
    assert config.run_dir is not None, "chosen above"
    probe = build_probe(config, config.head)
    indices = choose_labelled(probe.dataset, config.labels, config.seed, config.labelled_patients)
    draw = describe_draw(probe.dataset, indices, labelled_patients=config.labelled_patients, seed=config.seed)
    report_draw(probe.dataset, draw, config.labels)
    results = probe(labels=config.labels, seed=config.seed, patients=config.labelled_patients)
    run = RunFolder.create(config.run_dir, {"kind": "probe", **to_json(config)})
    run.close()
    names = {str(index): name for index, name in probe.dataset.class_names.items()}
    data = probe.dataset.describe_patients()
    results = {
        "split": "test",
        **results,
        "class_names": names,
        "draw": draw,
        "data": data,
        "config": run.config,
    }
    write_atomically(run.path / "results.json", json.dumps(results, indent=2) + "\n")
    return results


def build_probe(config: EvaluationConfig, head: str = "patch") -> Probe | PixelProbe:
    """The probe of the encoder that the settings name, with one of `HEADS`; they must have been through `resolve`.

    Raises:
        InputError: if settings or data cannot be used.
    """
    dataset = open_labelled(config)
    probe = PixelProbe if head == "pixel" else Probe
    return probe(starting_encoder(config, dataset).to(pick_device(config.device)), dataset)
