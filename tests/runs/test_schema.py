"""Files that are read: what is wrong in one is said in a sentence that names the file and the key."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from programs import write_discs

from ahm_gym.errors import InputError
from ahm_gym.model.encoders import find_encoder, load_encoder
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.pretraining.run import pretrain
from ahm_gym.pretraining.trained_agent import from_run
from ahm_gym.runs import schema
from ahm_gym.runs.lines import complete_lines
from ahm_gym.runs.storage import load_state, save_state
from ahm_gym.segmentation.segmenter import build_segmenter, load_segmenter, save_segmenter


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("schema")
    data = write_discs(folder / "discs.npz")
    return PretrainConfig(
        data=str(data), image_size=32, batch_size=4, steps=4, checkpoint_every=2, run_dir=folder / "run"
    )


@pytest.fixture(scope="module")
def finished(config):
    return pretrain(config)


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def change(path, **values):
    """Replaces keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_a_file_beyond_the_limit_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(schema, "MAX_BYTES", 10)
    (tmp_path / "config.json").write_text(json.dumps(list(range(10))))
    with pytest.raises(InputError, match=r"config\.json is larger than"):
        schema.read_json(tmp_path / "config.json")


@pytest.mark.parametrize("read", [schema.read_json, complete_lines])
def test_a_device_is_not_read_to_its_end_which_never_comes(tmp_path, read):
    (tmp_path / "state.json").symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"state\.json is a folder, a device or a pipe: restore the file"):
        read(tmp_path / "state.json")


@pytest.mark.parametrize("name", ["data", "steps", "image_size"])
def test_a_run_without_a_setting_that_every_run_has_is_not_resumed(run, name):
    content = json.loads((run / "config.json").read_text())
    del content[name]
    (run / "config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"`{name}` is missing in the settings of this run"):
        pretrain(PretrainConfig(run_dir=run), resume=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"img_size": "32"}, r"`model_args\.img_size.*` in .*config\.json is '32'"),
        ({"patch_size": None}, r"`model_args\.patch_size` is missing in .*config\.json"),
        ({"img_size": [32]}, r"`model_args\.img_size"),
        ({"in_chans": 0}, r"`model_args\.in_chans` in .*config\.json is 0"),
        ({"depth": 10**9}, r"`model_args\.depth` in .*config\.json is 1000000000"),
        ({"img_size": 10**9}, r"`model_args\.img_size"),
        ({"embed_dim": 130}, "cannot be used"),
    ],
)
def test_a_wrong_value_in_an_exported_encoder_is_named(run, arguments, message):
    path = run / "encoder" / "config.json"
    saved = json.loads(path.read_text())["model_args"] | arguments
    change(path, model_args={key: value for key, value in saved.items() if value is not None})
    with pytest.raises(InputError, match=message):
        load_encoder(run)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": 3}, "`data` in"),
        ({"data_root": ["a"]}, "`data_root` in"),
        ({"kind": ["pretrain"]}, "is a .* run"),
    ],
)
def test_a_wrong_value_in_the_run_of_an_encoder_is_refused(run, settings, message):
    change(run / "config.json", **settings)
    with pytest.raises(InputError, match=message):
        find_encoder(run)


@pytest.mark.parametrize("stages", [["."], [".."], [], "1-reconstructor", [3], ["/"]])
def test_stages_of_a_recipe_are_folders_in_it(tmp_path, stages):
    (tmp_path / "config.json").write_text(json.dumps({"kind": "recipe", "stages": stages}))
    with pytest.raises(InputError, match=r"`stages.*` in .*config\.json"):
        find_encoder(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"grid": [4]}, "`grid` in .*state.json"),
        ({"agent": 3}, "`agent` in .*state.json"),
        ({"observation_shape": ["a", "b"]}, "`observation_shape"),
        ({"channels": "1"}, "`channels` in"),
        ({"agent": "nobody"}, "unknown agent"),
        ({"state": {}}, "agent does not fit this run"),
        ({"options": {"nothing": 1}}, "agent does not fit this run"),
        ({"embedding": {"weight": 1}}, "`embedding.weight` in"),
    ],
)
def test_a_wrong_value_in_a_saved_agent_is_named(run, wrong, message):
    saved = load_state(run / "agent")
    shutil.rmtree(run / "agent")
    save_state(run / "agent", saved | wrong)
    autoencoder = build_autoencoder("tiny", image_size=(32, 32), patch_size=8, channels=1)
    with pytest.raises(InputError, match=message):
        from_run(autoencoder, str(run))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"agent": None}, "`agent` in .*checkpoint is None"),
        ({"counts": {"loss": "many"}}, "`counts.loss` in"),
        ({"pretrainer": {"updates": 2}}, "`pretrainer.autoencoder` is missing"),
        ({"agent": {"network": {}}}, "checkpoint does not fit this run"),
        ({"env": {"seed": 1}}, "checkpoint does not fit this run"),
    ],
)
def test_a_wrong_value_in_a_checkpoint_is_named(run, wrong, message):
    shutil.rmtree(run / "checkpoint" / "step-4")
    folder = run / "checkpoint" / "step-2"
    state = load_state(folder)
    shutil.rmtree(folder)
    save_state(folder, state | wrong)
    with pytest.raises(InputError, match=message):
        pretrain(PretrainConfig(run_dir=run), resume=True)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"num_classes": "2"}, "`num_classes` in"), ({"feature_size": 10**9}, "`feature_size` in"),
     ({"decoder": 3}, "`decoder` in"), ({"num_classes": 3}, "does not fit")],
)  # fmt: skip
def test_a_wrong_value_in_a_segmenter_is_named(tmp_path, wrong, message):
    encoder = build_autoencoder("tiny", image_size=(32, 32), patch_size=8, channels=1).encoder
    save_segmenter(build_segmenter(encoder, 2), tmp_path, mean=(0.5,), std=(0.2,))
    change(tmp_path / "config.json", **wrong)
    with pytest.raises(InputError, match=message):
        load_segmenter(tmp_path)


def test_every_run_records_the_versions_the_data_and_the_threads(finished):
    config = json.loads((finished / "config.json").read_text())
    assert config["versions"]["torch"] == torch.__version__
    assert set(config["versions"]) == {"ahm_gym", "torch", "python"}
    assert len(config["data_digest"]) == 12
    assert config["threads"] == torch.get_num_threads()


def test_a_run_of_other_versions_and_threads_resumes_with_a_note(run, capsys):
    shutil.rmtree(run / "checkpoint" / "step-4")
    change(run / "config.json", threads=64, versions={"torch": "1.0"})
    pretrain(PretrainConfig(run_dir=run), resume=True)
    err = capsys.readouterr().err
    assert "note: this run was started with threads 64 and torch 1.0" in err


def test_a_run_without_a_record_of_its_data_resumes_with_a_note(run, capsys):
    shutil.rmtree(run / "checkpoint" / "step-4")
    change(run / "config.json", data_digest=None, versions=None, threads=None)
    pretrain(PretrainConfig(run_dir=run), resume=True)
    assert "note: this run does not record its data" in capsys.readouterr().err


def test_images_that_changed_between_stop_and_resume_end_it(config, tmp_path):
    data = write_discs(tmp_path / "discs.npz")
    begun = replace(config, data=str(data), run_dir=tmp_path / "run")
    run = pretrain(begun)
    shutil.rmtree(run / "checkpoint" / "step-4")
    write_discs(data, count=25)
    with pytest.raises(
        InputError, match=r"discs\.npz has changed since this run was started .*name their place"
    ):
        pretrain(PretrainConfig(run_dir=run), resume=True)


def test_data_that_has_moved_can_be_named_anew(config, tmp_path):
    data = write_discs(tmp_path / "discs.npz")
    begun = replace(config, data=str(data), run_dir=tmp_path / "run")
    run = pretrain(begun)
    whole = load_state(run / "checkpoint" / "step-4")
    shutil.rmtree(run / "checkpoint" / "step-4")
    moved = data.rename(tmp_path / "moved.npz")
    pretrain(PretrainConfig(run_dir=run, data=str(moved)), resume=True, given=("data",))
    again = load_state(run / "checkpoint" / "step-4")["pretrainer"]["autoencoder"]
    assert all(torch.equal(value, again[name]) for name, value in whole["pretrainer"]["autoencoder"].items())
    assert json.loads((run / "config.json").read_text())["data"] == str(moved)
