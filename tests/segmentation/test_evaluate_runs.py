"""Scores of fine-tuned runs on other images."""

import dataclasses
import json

import numpy as np
import pytest
from image_folders import write

from ahm_gym.errors import InputError
from ahm_gym.segmentation.config import EvaluateConfig, FinetuneConfig
from ahm_gym.segmentation.evaluate_runs import run_evaluate
from ahm_gym.segmentation.finetune import finetune
from ahm_gym.segmentation.inputs import resolve


@pytest.fixture(scope="module")
def run(discs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    settings = FinetuneConfig(data=str(discs), image_size=(32,), steps=12, batch_size=8, run_dir=folder)
    finetune(resolve(settings))
    return folder


@pytest.fixture
def config(run, discs, tmp_path):
    return EvaluateConfig(scans=str(discs), run=run, out=tmp_path / "out", device="cpu")


def site_b(discs, path, **changes):
    """Darker images of another contrast, with their own splits."""
    arrays = dict(np.load(discs))
    arrays = {name: value // 2 + 20 if "images" in name else value for name, value in arrays.items()}
    np.savez(path, **(arrays | changes))
    return path


def test_on_its_own_test_images_a_run_has_the_scores_of_its_results(config, run, capsys):
    results, own = run_evaluate(config), json.loads((run / "results.json").read_text())
    assert results["split"] == "test" and results == json.loads((config.out / "results.json").read_text())
    for name in ("dice", "iou", "hd95", "hd95_unit", "per_class", "cases", "num_cases", "undefined"):
        assert results[name] == own[name], name
    assert (config.out / "overlays.png").is_file()
    assert "the test images are scored, because this is the data of the run" in capsys.readouterr().err


def test_the_images_are_normalised_by_the_statistics_of_the_run(config, run, discs, tmp_path, monkeypatch):
    """Per image, intensities are scaled between percentiles: with other statistics the classes would change."""
    copy = tmp_path / "copy"
    other = site_b(discs, tmp_path / "b.npz")
    inverted = {f"train_{kind}": np.load(discs)[f"train_{kind}"] for kind in ("images", "label")}
    inverted["train_images"] = 255 - inverted["train_images"]  # would change the mean of the data a lot
    skewed = site_b(discs, tmp_path / "skewed.npz", **inverted)
    scores = []
    for number, data in enumerate((other, skewed)):
        given = dataclasses.replace(config, scans=str(data), split="test", out=copy / str(number))
        scores.append(run_evaluate(given)["cases"])
    assert scores[0] == scores[1]


def test_all_labelled_images_are_scored_where_the_data_names_no_test_images(config, discs, tmp_path, capsys):
    arrays, folder = np.load(discs), tmp_path / "site_b"
    for index in range(5):
        write(folder / "images" / f"p{index}.png", arrays["test_images"][index])
        write(folder / "labels" / f"p{index}.png", arrays["test_label"][index])
    given = dataclasses.replace(config, scans=str(folder))
    results = run_evaluate(given)
    assert results["split"] == "all" and results["num_cases"] == 5
    said = capsys.readouterr().err
    assert "the all images are scored" not in said and "all labelled images are scored" in said
    (folder / "images" / "split.csv").write_text(
        "name,split\n"
        + "".join(f"p{i},{s}\n" for i, s in enumerate(("train", "val", "test", "test", "test")))
    )
    named = run_evaluate(dataclasses.replace(given, out=tmp_path / "named"))
    assert named["split"] == "test" and named["num_cases"] == 3
    train = run_evaluate(dataclasses.replace(given, out=tmp_path / "train", split="train"))
    assert [case["case"] for case in train["cases"]] == ["p0"]


def test_scores_on_the_training_images_come_with_a_warning(config, capsys):
    results = run_evaluate(dataclasses.replace(config, split="all"))
    assert results["num_cases"] == 38
    assert "scores on them are too high" in capsys.readouterr().err


def test_a_rare_class_in_a_part_of_the_images_is_scored_and_an_absent_one_left_out(config, discs, tmp_path):
    label = np.load(discs)["train_label"] * 0
    label[3, :9, :9] = 1
    data = site_b(discs, tmp_path / "b.npz", train_label=label)
    results = run_evaluate(dataclasses.replace(config, scans=str(data), split="train"))
    assert results["num_cases"] == 24 and results["absent_classes"] == []
    empty = site_b(discs, tmp_path / "c.npz", test_label=np.load(discs)["test_label"] * 0)
    results = run_evaluate(
        dataclasses.replace(config, scans=str(empty), split="test", out=tmp_path / "empty")
    )
    assert results["absent_classes"] == [1] and results["dice"] is None


def test_an_ensemble_is_scored_by_its_mean(config, run, discs, tmp_path):
    alone = run_evaluate(config)
    twice = run_evaluate(dataclasses.replace(config, run=(run, run), out=tmp_path / "twice"))
    assert twice["dice"] == pytest.approx(alone["dice"], abs=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "tset"}, "unknown split 'tset': did you mean 'test'"),
        ({"scans": "nowhere"}, "there is no data at"),
        ({"scans": "colour"}, "colour has images of 3 channels and the run was trained on 1"),
        ({"scans": "classes"}, "the labels of classes have 3 classes and the run knows 2"),
        ({"scans": "bare"}, "bare has no labels to score"),
        ({"scans": "unlabelled", "split": "test"}, "no labelled images to score in `split=test`"),
        ({"out": "full"}, "holds results already: choose another `out`"),
    ],
)
def test_what_does_not_fit_is_one_sentence_and_nothing_is_written(config, discs, tmp_path, changes, message):
    arrays = dict(np.load(discs))
    labels = {name: value for name, value in arrays.items() if "label" in name}
    colour = {name: np.stack([value] * 3, axis=3) for name, value in arrays.items() if "images" in name}
    np.savez(tmp_path / "colour.npz", **(arrays | colour))
    site_b(
        discs,
        tmp_path / "classes.npz",
        train_label=arrays["train_label"] * 2,
        test_label=arrays["test_label"],
    )
    images = {name: value for name, value in arrays.items() if name not in labels}
    np.savez(tmp_path / "bare.npz", **images)
    np.savez(tmp_path / "unlabelled.npz", **(images | {"train_label": arrays["train_label"]}))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "results.json").write_text("{}")
    paths = {name: value if name == "split" else str(tmp_path / value) for name, value in changes.items()}
    if "scans" in paths and changes["scans"] != "nowhere":
        paths["scans"] += ".npz"
    given = {name: tmp_path / value if name == "out" else paths[name] for name, value in changes.items()}
    with pytest.raises(InputError, match=message):
        run_evaluate(dataclasses.replace(config, **given))
    assert not config.out.exists()
