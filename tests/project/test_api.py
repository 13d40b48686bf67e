"""The Python API: what `import ahm_gym` offers."""

import inspect
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from programs import ROOT

import ahm_gym
from ahm_gym.errors import InputError
from ahm_gym.pretraining.config import Pretrain

SMALL = {"batch_size": 4, "image_size": 32, "device": "cpu"}


@pytest.fixture(scope="module")
def pretrained(discs, tmp_path_factory):
    """A pretraining run of two steps."""
    folder = tmp_path_factory.mktemp("runs") / "pretrained"
    return ahm_gym.pretrain(data=discs, steps=2, run_dir=folder, **SMALL)


def python(code):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_importing_the_package_imports_no_torch():
    done = python("import sys, ahm_gym; dir(ahm_gym); assert 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there_and_others_are_not():
    for name in ahm_gym.__all__:
        assert getattr(ahm_gym, name) is not None and name in dir(ahm_gym)
    with pytest.raises(AttributeError, match="has no attribute 'pretrian'"):
        _ = ahm_gym.pretrian


def test_the_signature_of_a_program_lists_its_settings():
    signature = inspect.signature(ahm_gym.pretrain)
    assert list(signature.parameters) == list(inspect.signature(Pretrain).parameters)
    assert signature.return_annotation in (ahm_gym.PretrainResult, "PretrainResult")


def test_the_paths_of_a_pretraining_result_exist(pretrained):
    for path in (pretrained.encoder, pretrained.agent):
        assert path.is_dir() and path.is_relative_to(pretrained.run_dir)
    for path in (pretrained.masks, pretrained.curves, pretrained.metrics):
        assert path.is_file() and path.is_relative_to(pretrained.run_dir)
    assert pretrained.stages == ()


def test_a_mask_policy_leaves_no_agent(discs, tmp_path):
    run = ahm_gym.pretrain(data=str(discs), policy="random", steps=2, run_dir=str(tmp_path / "run"), **SMALL)
    assert run.agent is None and run.encoder.is_dir() and run.run_dir == tmp_path / "run"


@pytest.mark.parametrize("kind", ["result", "path", "text"])
def test_a_pretraining_run_is_fine_tuned_and_probed(pretrained, tmp_path, kind):
    encoder = {"result": pretrained, "path": pretrained.run_dir, "text": str(pretrained.run_dir)}[kind]
    probed = ahm_gym.probe(encoder=encoder, labels=4, run_dir=tmp_path / "probe", device="cpu")
    assert 0 <= probed.patch_dice <= 1 and probed.run_dir == tmp_path / "probe"
    assert probed.scores == json.loads((probed.run_dir / "results.json").read_text())
    if kind == "result":
        pixels = ahm_gym.probe(
            encoder=encoder, labels=4, head="pixel", run_dir=tmp_path / "pixels", device="cpu"
        )
        assert 0 <= pixels.ap <= 1 and pixels.patch_dice is None and probed.ap is None
        tuned = ahm_gym.finetune(
            encoder=encoder, labels=4, steps=2, batch_size=2, run_dir=str(tmp_path / "tuned"), device="cpu"
        )
        assert 0 <= tuned.dice <= 1 and tuned.run_dir == tmp_path / "tuned"
        assert tuned.scores == json.loads((tuned.run_dir / "results.json").read_text())
        assert tuned.segmenter.is_dir() and tuned.overlays.is_file()


def test_a_fine_tuned_run_is_used_on_other_images_and_exported(pretrained, discs, tmp_path):
    tuned = ahm_gym.finetune(
        encoder=pretrained, labels=4, steps=2, batch_size=2, run_dir=tmp_path / "tuned", device="cpu"
    )
    cv2.imwrite(str(tmp_path / "scan.png"), np.load(discs)["test_images"][0])
    masks = ahm_gym.predict(
        scans=tmp_path / "scan.png", run=[tuned, tuned], out=tmp_path / "masks", device="cpu"
    )
    assert (masks.run_dir / masks.rows[0]["mask"]).is_file() and masks.areas.is_file()
    scored = ahm_gym.evaluate(scans=discs, run=tuned, out=str(tmp_path / "scores"), device="cpu")
    assert scored.dice == tuned.dice and scored.overlays.is_file()
    assert scored.scores == json.loads((scored.run_dir / "results.json").read_text())
    features = ahm_gym.embed(scans=discs, run=pretrained, out=tmp_path / "features.npz", device="cpu")
    assert np.load(features)["features"].shape == (38, 128)


def test_an_encoder_is_loaded_from_a_result_a_run_or_its_folder(pretrained):
    states = [
        ahm_gym.load_encoder(place).state_dict()
        for place in (pretrained, str(pretrained.run_dir), pretrained.encoder)
    ]
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(state[name], states[0][name]) for name in state)
    assert not ahm_gym.load_encoder(pretrained).training


def test_an_environment_is_made_by_its_form(discs):
    env = ahm_gym.make_vec(4, form="MultiBinaryMasking", data=str(discs), image_size=32, patch_size=8)
    observation, _ = env.reset(seed=0)
    assert env.num_envs == 4 and len(observation) == 4
    env.close()


def test_a_run_is_resumed_and_keeps_its_settings(discs, tmp_path):
    folder = tmp_path / "run"
    ahm_gym.pretrain(data=discs, policy="random", steps=2, run_dir=folder, **SMALL)
    resumed = ahm_gym.pretrain(resume=True, run_dir=str(folder))
    assert resumed.run_dir == folder
    with pytest.raises(InputError, match="`batch_size=8` differs from the 4 that this run was started with"):
        ahm_gym.pretrain(resume=True, run_dir=folder, batch_size=8)
    with pytest.raises(InputError, match="`steps=1200` differs from the 2"):
        ahm_gym.pretrain(
            resume=True, run_dir=folder, steps=Pretrain.steps
        )  # given, although it is the default
    assert ahm_gym.pretrain(resume=True, run_dir=folder, batch_size=4).run_dir == folder


def test_a_wrong_type_in_the_settings_of_a_run_is_one_sentence(discs, tmp_path):
    folder = tmp_path / "run"
    ahm_gym.pretrain(data=discs, policy="random", steps=2, run_dir=folder, **SMALL)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"patch_size": "abc"}))
    with pytest.raises(InputError) as caught:
        ahm_gym.pretrain(resume=True, run_dir=folder)
    assert str(caught.value) == "`patch_size` in the settings of this run is 'abc': expected a whole number."


@pytest.mark.parametrize(
    ("program", "settings", "message"),
    [
        ("pretrain", {"stepz": 3}, r"^unknown setting 'stepz': did you mean 'steps'\?"),
        ("finetune", {"encodr": "x"}, r"^unknown setting 'encodr': did you mean 'encoder'\?"),
        ("probe", {"label": 3}, r"^unknown setting 'label': did you mean 'labels'\?"),
        ("pretrain", {"steps": "many"}, r"^`steps` in the call of pretrain\(\) is 'many': expected a whole number\.$"),
        ("pretrain", {"steps": 1.5}, r"^`steps` in .* is 1\.5: expected a whole number\.$"),
        ("pretrain", {"data": 3}, r"^`data` in .* is 3: expected text\.$"),
        ("pretrain", {"image_size": "large"}, r"^`image_size` in .* is 'large': expected a whole number or a list\.$"),
        ("finetune", {"freeze": "perhaps"}, r"^`freeze` in .* expected true or false\.$"),
        ("finetune", {"learning_rate": "fast"}, r"^`learning_rate` in .* of finetune\(\) .*: expected a number\.$"),
        ("probe", {"encoder": 3}, r"^`encoder` in .* is 3: expected text\.$"),
        ("pretrain", {"steps": 0}, r"^`steps` is 0: choose a whole number, 1 or more\.$"),
        ("pretrain", {"policy": "randm"}, "did you mean 'random'"),
        ("pretrain", {"data": "nowhere.npz"}, "there is no data at"),
        ("pretrain", {"resume": True}, "`resume` needs `run_dir`"),
        ("finetune", {"encoder": "nowhere"}, "nowhere"),
        ("finetune", {"steps": 0}, "`steps` is 0"),
        ("probe", {"labels": 0}, "`labels`"),
        ("predict", {"scans": "nowhere", "run": "nowhere"}, "there is no folder nowhere"),
        ("predict", {"scans": "nowhere"}, r"^predict\(\) cannot be called: missing a required argument: 'run'"),
        ("evaluate", {"scans": "nowhere", "run": "nowhere"}, "there is no folder nowhere"),
        ("export", {"run": "nowhere", "out": "model", "format": "torch"}, "unknown format 'torch'"),
        ("embed", {"scans": "nowhere", "run": "nowhere"}, "nowhere"),
        ("load_encoder", {"run": "nowhere"}, "nowhere"),
        ("make_vec", {"data": "nowhere.npz"}, "there is no data at"),
        ("make_vec", {"form": "Curriculum"}, "unknown form of the actions 'Curriculum'"),
    ],
)  # fmt: skip
def test_bad_input_raises_an_error_and_neither_exits_nor_writes(
    tmp_path, monkeypatch, capsys, program, settings, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):  # pytest does not catch SystemExit here
        getattr(ahm_gym, program)(**settings)
    assert list(tmp_path.iterdir()) == []
    assert "error:" not in capsys.readouterr().err
