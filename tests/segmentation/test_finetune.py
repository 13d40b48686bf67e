import copy
import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from timm.models import save_for_hf

from ahm_gym.errors import InputError, RunError
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.runs.folder import RunFolder
from ahm_gym.segmentation.config import EvaluationConfig, FinetuneConfig, ProbeConfig
from ahm_gym.segmentation.finetune import Finetuning, finetune, is_finished
from ahm_gym.segmentation.inputs import resolve
from ahm_gym.segmentation.probe_run import run_probe
from ahm_gym.segmentation.segmenter import load_segmenter


@pytest.fixture(scope="module")
def pretrained(discs, tmp_path_factory):
    """A pretraining run on the discs, as its exports leave it."""
    folder = tmp_path_factory.mktemp("runs") / "discs-random-1"
    RunFolder.create(folder, {"kind": "pretrain", "data": "discs.npz", "data_root": str(discs.parent)})
    encoder = build_autoencoder("tiny", image_size=(32, 32), patch_size=8, channels=1, seed=7).encoder
    statistics = {"mean": (0.5,), "std": (0.2,)}
    save_for_hf(encoder, str(folder / "encoder"), safe_serialization=True, data_config=statistics)
    return folder


@pytest.fixture
def config(discs, tmp_path):
    return FinetuneConfig(
        data=str(discs), image_size=(32,), labels=6, steps=6, batch_size=4, checkpoint_every=2,
        run_dir=tmp_path / "run",
    )  # fmt: skip


class Stop(Exception):
    pass


def stop_at(monkeypatch, step):
    """Ends the process in the middle of this step, as a kill would."""
    update = Finetuning.update

    def falls_over(self, number):
        if number == step:
            raise Stop
        return update(self, number)

    monkeypatch.setattr(Finetuning, "update", falls_over)


def weights(run_dir):
    return load_segmenter(run_dir / "segmenter").state_dict()


def assert_same(one, two):
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_a_few_labels_suffice_for_bright_discs(config, real_pictures):
    results = finetune(dataclasses.replace(config, steps=50, checkpoint_every=50))
    assert results["dice"] > 0.85
    assert (results["split"], results["labels"], results["num_cases"]) == ("test", 6, 8)
    assert results["hd95_unit"] == "pixels"
    assert (
        results["data"]["patients"] == 38 and "counts as a patient of its own" in results["data"]["doubts"][0]
    )
    assert results == json.loads((config.run_dir / "results.json").read_text())
    assert results["config"] == json.loads((config.run_dir / "config.json").read_text())
    names = {path.name for path in config.run_dir.iterdir()}
    assert {"config.json", "metrics.jsonl", "figures", "checkpoint", "segmenter", "results.json"} <= names
    assert (config.run_dir / "figures" / "overlays.png").stat().st_size > 10_000
    rows = RunFolder.open(config.run_dir, "finetune").metrics()
    assert [row["step"] for row in rows] == list(range(1, 51))
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(config, tmp_path):
    config = dataclasses.replace(config, steps=3, checkpoint_every=3)
    first = finetune(config)
    second = finetune(dataclasses.replace(config, run_dir=tmp_path / "again"))
    assert first["cases"] == second["cases"]
    assert_same(weights(config.run_dir), weights(tmp_path / "again"))
    other = finetune(dataclasses.replace(config, seed=1, run_dir=tmp_path / "other"))
    assert other["cases"] != first["cases"]


@pytest.mark.parametrize("step", [1, 4])
def test_a_resumed_run_ends_like_one_that_was_not_stopped(config, tmp_path, monkeypatch, step):
    whole = dataclasses.replace(config, run_dir=tmp_path / "whole")
    expected = finetune(whole)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_at(patch, step)
        finetune(config)
    assert not is_finished(config.run_dir)
    results = finetune(FinetuneConfig(run_dir=config.run_dir), resume=True)
    assert results["cases"] == expected["cases"]
    assert_same(weights(config.run_dir), weights(whole.run_dir))
    metrics = [(folder / "metrics.jsonl").read_text() for folder in (config.run_dir, whole.run_dir)]
    assert metrics[0] == metrics[1]


def test_a_run_continues_without_the_encoder_that_it_started_from(pretrained, config, monkeypatch, tmp_path):
    copy = shutil.copytree(pretrained, tmp_path / "encoder_run")
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_at(patch, 3)
        finetune(dataclasses.replace(config, encoder=str(copy)))
    shutil.rmtree(copy)
    assert finetune(FinetuneConfig(run_dir=config.run_dir), resume=True)["labels"] == 6


def test_a_finished_run_returns_its_results(config, monkeypatch):
    config = dataclasses.replace(config, steps=1)
    results = finetune(config)
    stop_at(monkeypatch, 1)
    assert finetune(FinetuneConfig(run_dir=config.run_dir), resume=True) == results
    assert finetune(dataclasses.replace(config, image_size=(32, 32)), resume=True) == results


@pytest.mark.parametrize(
    ("flag", "change"),
    [
        ("`labels=3` differs from the 6", {"labels": 3}),
        ("`steps=12` differs from the 6", {"steps": 12}),
        ("`image_size=64 64` differs from the 32 32", {"image_size": (64,)}),
        ("`freeze=True` differs from the False", {"freeze": True}),
        ("`encoder=.*elsewhere` differs from the none", {"encoder": "elsewhere"}),
    ],
)
def test_flags_that_differ_from_the_run_are_refused_by_name(config, monkeypatch, flag, change):
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_at(patch, 1)
        finetune(config)
    with pytest.raises(InputError, match=flag):
        finetune(FinetuneConfig(run_dir=config.run_dir, **change), resume=True)


def test_the_pattern_of_patients_goes_with_the_data_of_the_encoder(pretrained, tmp_path, discs):
    run = shutil.copytree(pretrained, tmp_path / "run")
    saved = json.loads((run / "config.json").read_text()) | {"patient_regex": r"_(\d+)"}
    (run / "config.json").write_text(json.dumps(saved))
    assert resolve(FinetuneConfig(encoder=str(run))).patient_regex == r"_(\d+)"
    assert resolve(FinetuneConfig(encoder=str(run), patient_regex=".")).patient_regex == "."
    assert resolve(FinetuneConfig(encoder=str(run), data=str(discs))).patient_regex is None


def test_shapes_and_data_default_to_those_of_the_encoder(pretrained, tmp_path, discs, monkeypatch):
    monkeypatch.delenv("AHM_DATA", raising=False)
    resolved = resolve(FinetuneConfig(encoder=str(pretrained), run_dir=tmp_path / "run"))
    assert (resolved.model, resolved.image_size, resolved.patch_size) == ("tiny", (32, 32), 8)
    assert (resolved.data, resolved.data_root) == ("discs.npz", discs.parent)
    other = resolve(FinetuneConfig(encoder=str(pretrained), data=str(discs), image_size=(64,), patch_size=16))
    assert (other.data, other.data_root) == (str(discs), None)
    assert (other.image_size, other.patch_size) == ((64, 64), 16)
    scratch = resolve(FinetuneConfig())
    assert (scratch.model, scratch.image_size, scratch.patch_size) == ("tiny", (64, 64), 8)


def test_an_encoder_is_fine_tuned_from_its_weights_and_a_frozen_one_keeps_them(pretrained, config):
    finetune(dataclasses.replace(config, encoder=str(pretrained), freeze=True, steps=2))
    start = build_autoencoder("tiny", image_size=(32, 32), patch_size=8, channels=1, seed=7).encoder
    assert_same(load_segmenter(config.run_dir / "segmenter").encoder.state_dict(), start.state_dict())
    moved = dataclasses.replace(
        config, encoder=str(pretrained), steps=2, run_dir=config.run_dir.with_name("moved")
    )
    finetune(moved)
    tuned = load_segmenter(moved.run_dir / "segmenter").encoder.state_dict()["blocks.5.attn.qkv.weight"]
    before = start.state_dict()["blocks.5.attn.qkv.weight"]
    assert 0 < (tuned - before).abs().max() < 0.05


@pytest.mark.parametrize("model", ["tiny", "unet"])
def test_in_its_first_updates_only_the_new_layers_learn_if_that_is_asked_for(config, model):
    config = dataclasses.replace(config, model=model, frozen_steps=2, steps=3)
    finetuning = Finetuning(resolve(config))
    encoder, new = finetuning.segmenter.encoder.state_dict, finetuning.segmenter.decoder.state_dict
    encoder_before, new_before = copy.deepcopy(encoder()), copy.deepcopy(new())
    for step in (1, 2):
        finetuning.update(step)
    assert_same(encoder(), encoder_before)
    assert any(not torch.equal(value, new_before[name]) for name, value in new().items())
    finetuning.update(3)
    assert any(not torch.equal(value, encoder_before[name]) for name, value in encoder().items())


def test_the_encoder_learns_at_its_own_rate(config):
    rates = {}
    for factor in (1.0, 0.25):
        finetuning = Finetuning(resolve(dataclasses.replace(config, encoder_rate=factor)))
        finetuning.update(1)
        groups = finetuning.optimizer.param_groups
        rates[factor] = [[group["lr"] for group in groups if group["new"] is new] for new in (False, True)]
    assert rates[0.25][0] == pytest.approx([0.25 * rate for rate in rates[1.0][0]])
    assert rates[0.25][1] == rates[1.0][1]


def test_a_loss_that_is_not_finite_names_the_step_and_leaves_the_checkpoint(config, monkeypatch):
    batches = Finetuning.__init__

    def spoiled(self, *arguments):
        batches(self, *arguments)
        own = self.batches
        self.batches = {i: own[i] if i < 3 else (own[i][0] * float("nan"), own[i][1]) for i in range(6)}

    monkeypatch.setattr(Finetuning, "__init__", spoiled)
    with pytest.raises(RunError, match=r"the loss is nan .* at step 4"):
        finetune(config)
    assert RunFolder.open(config.run_dir, "finetune").checkpoint_step() == 2


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("`labels=25` is out of range: discs has 24", {"labels": 25}),
        ("`labels` is 0: choose a whole number", {"labels": 0}),
        ("`steps` is 0: choose a whole number", {"steps": 0}),
        ("`seed` is -1: choose a whole number", {"seed": -1}),
        ("`learning_rate` is nan", {"learning_rate": float("nan")}),
        ("`encoder_rate` is 0", {"encoder_rate": 0.0}),
        ("`frozen_steps` is 6: choose from 0 to 5", {"frozen_steps": 6}),
        ("patch size 5 does not divide", {"patch_size": 5}),
        ("unknown model 'tinny': did you mean 'tiny'", {"model": "tinny"}),
        ("`encoder=.*nowhere` does not exist", {"encoder": "nowhere"}),
        ("image size 1 2 3 4", {"image_size": (1, 2, 3, 4)}),
        ("nowhere.npz", {"data": "nowhere.npz"}),
        ("`device=moon`", {"device": "moon"}),
    ],
)
@pytest.mark.parametrize("program", [finetune, run_probe])
def test_a_refused_run_leaves_no_folder_behind(program, config, message, change):
    kind = ProbeConfig if program is run_probe else FinetuneConfig
    if not change.keys() <= {field.name for field in dataclasses.fields(kind)}:
        pytest.skip("a probe has no such setting")
    with pytest.raises(InputError, match=message):
        shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(EvaluationConfig)}
        given = ProbeConfig(**shared) if program is run_probe else config
        program(dataclasses.replace(given, **change))
    assert not config.run_dir.exists()


def test_data_without_labels_is_refused(config, discs, tmp_path):
    arrays = {key: value for key, value in np.load(discs).items() if key.endswith("images")}
    np.savez(tmp_path / "bare.npz", **arrays)
    with pytest.raises(InputError, match="bare has no training labels"):
        finetune(dataclasses.replace(config, data=str(tmp_path / "bare.npz")))
    assert not config.run_dir.exists()


def test_labels_of_background_alone_are_refused(config, discs, tmp_path):
    arrays = {key: value * ("label" not in key) for key, value in np.load(discs).items()}
    np.savez(tmp_path / "empty.npz", **arrays)
    with pytest.raises(InputError, match="the training labels of empty hold only background"):
        finetune(dataclasses.replace(config, data=str(tmp_path / "empty.npz")))
    assert not config.run_dir.exists()


def test_an_existing_folder_and_a_run_of_another_kind_are_refused(config, pretrained):
    config.run_dir.mkdir()
    (config.run_dir / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"exists already.*`run_dir`"):
        finetune(config)
    with pytest.raises(InputError, match="is not a run folder"):
        finetune(config, resume=True)
    with pytest.raises(InputError, match="is a pretrain run"):
        finetune(FinetuneConfig(run_dir=pretrained), resume=True)
    assert [path.name for path in config.run_dir.iterdir()] == ["thesis.txt"]


def test_the_pixel_head_writes_its_own_scores(config, pretrained):
    config = ProbeConfig(
        encoder=str(pretrained),
        data=config.data,
        labels=4,
        run_dir=config.run_dir,
        device="cpu",
        head="pixel",
    )
    results = run_probe(config)
    assert results == json.loads((config.run_dir / "results.json").read_text())
    assert results["config"]["head"] == "pixel" and "patch_dice" not in results
    assert {"ap", "dice", "log_loss", "absent_classes"} <= results.keys()


def test_the_probe_writes_its_results_into_a_run_folder(config, pretrained):
    config = ProbeConfig(
        encoder=str(pretrained), data=config.data, image_size=(32,), labels=4, run_dir=config.run_dir
    )
    results = run_probe(config)
    assert results["labels"] == 4 and results["patch_dice"] > 0.7
    assert (results["data"]["rule"], results["data"]["certainty"]) == ("every image on its own", "guess")
    assert results == json.loads((config.run_dir / "results.json").read_text())
    assert json.loads((config.run_dir / "config.json").read_text())["kind"] == "probe"


def test_native_resolution_runs_to_its_end(config):
    results = finetune(dataclasses.replace(config, image_size=(16,), steps=2, native_resolution=True))
    assert results["num_cases"] == 8


def test_small_batches_of_one_and_colour_images_of_odd_sizes_work(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (6, 40, 72, 3), dtype=np.uint8)
    label = rng.integers(0, 3, (6, 40, 72), dtype=np.uint8)
    np.savez(tmp_path / "c.npz", train_images=images, train_label=label, test_images=images, test_label=label)
    config = FinetuneConfig(
        data=str(tmp_path / "c.npz"), image_size=(32, 48), patch_size=16, labels=1, steps=2, batch_size=1,
        run_dir=tmp_path / "run",
    )  # fmt: skip
    results = finetune(config)
    assert set(results["per_class"]) == {"1", "2"} and results["split"] == "test"


def test_a_run_resumes_with_the_same_data_elsewhere_and_not_with_other_data(
    config, discs, tmp_path, monkeypatch
):
    data = shutil.copy(discs, tmp_path / "discs.npz")
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_at(patch, 5)
        finetune(dataclasses.replace(config, data=str(data)))
    (tmp_path / "discs.npz").rename(tmp_path / "moved.npz")
    arrays = dict(np.load(tmp_path / "moved.npz"))
    arrays["train_images"][0, 0, 0] ^= 1
    np.savez(tmp_path / "discs.npz", **arrays)
    resumed = FinetuneConfig(run_dir=config.run_dir)
    with pytest.raises(InputError, match=r"discs\.npz has changed since this run was started"):
        finetune(resumed, resume=True)
    finetune(dataclasses.replace(resumed, data=str(tmp_path / "moved.npz")), resume=True)
    saved = json.loads((config.run_dir / "config.json").read_text())
    assert saved["data"] == str(tmp_path / "moved.npz")
