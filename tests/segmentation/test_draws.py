import json

import nibabel
import numpy as np
import pytest
from programs import write_discs

from ahm_gym.benchmark.evaluations import DRAWS_APART, NUM_DRAWS, probe_draws
from ahm_gym.data import open_data
from ahm_gym.data.draws import EmptyDraw, choose_patients, describe_draw, permuted, report_draw
from ahm_gym.data.labelled import choose_labelled
from ahm_gym.errors import InputError
from ahm_gym.runs.interrupt import Interrupt
from ahm_gym.segmentation.config import FinetuneConfig, ProbeConfig
from ahm_gym.segmentation.finetune import finetune
from ahm_gym.segmentation.probe_run import run_probe

SIZE = (16, 16)
COMMON, RARE = (1,), (1, 2)


def series(path, classes, slices=3):
    """Patients with some images each; a patient has the given classes, in its last image only."""
    names = [f"p{number}" for number in range(len(classes))]
    images = np.random.default_rng(0).integers(0, 200, (len(names) * slices, 16, 16), dtype=np.uint8)
    label = np.zeros_like(images)
    for number, own in enumerate(classes):
        for index in own:
            label[number * slices + slices - 1, 4 * index : 4 * index + 2, :4] = index
    ids = np.array([f"{name}_{index}" for name in names for index in range(slices)])
    np.savez(
        path, train_images=images, train_label=label, train_id=ids, test_images=images, test_label=label, test_id=ids,
        val_images=images, val_label=label, val_id=ids,
    )  # fmt: skip
    return open_data(str(path), image_size=SIZE)


def test_all_images_of_the_drawn_patients_are_used(tmp_path):
    dataset = series(tmp_path / "series.npz", [COMMON] * 6)
    drawn = choose_labelled(dataset, None, 3, patients=2)
    first = permuted([f"p{number}" for number in range(6)], 3)[:2]
    assert [dataset.ids[index] for index in drawn] == [
        f"{name}_{index}" for name in first for index in range(3)
    ]
    assert choose_labelled(dataset, None, 4, patients=2) != drawn
    assert sorted(choose_labelled(dataset, None, 3, patients=6)) == dataset.indices("train")
    for number in (0, 7):
        with pytest.raises(
            InputError, match=f"`labelled_patients={number}` is out of range: series has 6 patients"
        ):
            choose_labelled(dataset, None, 3, patients=number)


@pytest.mark.parametrize("seed", range(8))
def test_a_draw_holds_every_class_and_smaller_draws_are_part_of_larger_ones(tmp_path, seed):
    classes = [COMMON] * 7 + [RARE, (2,), ()]
    dataset = series(tmp_path / "rare.npz", classes)
    order = permuted([f"p{number}" for number in range(10)], seed)
    held = {f"p{number}": set(own) for number, own in enumerate(classes)}
    draws = {number: choose_patients(dataset, number, seed) for number in range(1, 11)}
    for number, drawn in draws.items():
        assert len(set(drawn)) == number
        assert set().union(*(held[name] for name in drawn)) == {1, 2}
        first = order[:number]
        if set().union(*(held[name] for name in first)) == {1, 2}:
            assert set(drawn) == set(first), "nothing is swapped without need"
        else:
            assert len(set(first) - set(drawn)) <= 1 or number == 1
        if number > 2:
            assert set(draws[number - 1]) < set(drawn)


def test_too_few_patients_for_every_class_are_said(tmp_path, capsys):
    dataset = series(tmp_path / "apart.npz", [COMMON, COMMON, (2,), ()])
    drawn = choose_labelled(dataset, None, 0, patients=1)
    draw = describe_draw(dataset, drawn, labelled_patients=1)
    report_draw(dataset, draw, None)
    assert "note: apart: no drawn label contains class" in capsys.readouterr().err


def test_what_was_drawn_is_described(tmp_path, capsys):
    dataset = series(tmp_path / "series.npz", [COMMON, COMMON, COMMON, RARE])
    seed = next(seed for seed in range(9) if "p3" not in permuted(["p0", "p1", "p2", "p3"], seed)[:2])
    drawn = choose_labelled(dataset, None, seed, patients=2)
    draw = describe_draw(dataset, drawn, labelled_patients=2, seed=seed)
    capsys.readouterr()
    other = next(name for name in draw["patients"] if name != "p3")
    assert draw["swapped_in"] == ["p3"] and draw["absent_classes"] == []
    assert sorted(draw["images"]) == sorted(f"{name}_{index}" for name in (other, "p3") for index in range(3))
    assert draw["class_shares"] == pytest.approx({"0": 1 - 24 / 1536, "1": 16 / 1536, "2": 8 / 1536})
    assert draw["empty_share"] == pytest.approx(4 / 6)
    report_draw(dataset, draw, None)
    line, note = capsys.readouterr().err.splitlines()
    assert line == (
        "labelled images: 6 of 2 patients, 4 of them without foreground; share of the pixels: class 1 1.04%, "
        "class 2 0.52%"
    )
    assert note == "note: series: so that every class is there, these patients took the place of others: p3."


def test_single_slices_of_volumes_are_drawn_as_before_with_a_note(tmp_path, capsys):
    for number in range(4):
        rng = np.random.default_rng(number)
        label = np.zeros((16, 16, 6), np.uint8)
        label[4:8, 4:8, 3] = 1
        for kind, array in (("images", rng.integers(0, 900, label.shape, dtype=np.int16)), ("labels", label)):
            (tmp_path / "scans" / kind).mkdir(parents=True, exist_ok=True)
            nibabel.save(
                nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "scans" / kind / f"tumour{number}.nii.gz"
            )
    dataset = open_data(str(tmp_path / "scans"), image_size=SIZE)
    drawn = choose_labelled(dataset, 3, 0)
    assert drawn == permuted(dataset.indices("train", labelled=True), 0)[:3]
    capsys.readouterr()
    report_draw(dataset, describe_draw(dataset, drawn), 3)
    assert "the 3 labelled images are single slices of 2 patients' volumes" in capsys.readouterr().err
    whole = choose_labelled(dataset, None, 0, patients=1)
    assert len(whole) == 6 and len({dataset.sample(index).case for index in whole}) == 1
    report_draw(dataset, describe_draw(dataset, whole, labelled_patients=1), None)
    assert "note:" not in capsys.readouterr().err


def test_both_ways_to_count_labels_are_refused_together(tmp_path):
    config = ProbeConfig(data="discs.npz", labels=3, labelled_patients=2, run_dir=tmp_path / "run")
    with pytest.raises(
        InputError, match="`labels=3` draws single images and `labelled_patients=2` whole patients"
    ):
        run_probe(config)


@pytest.mark.parametrize("head", ["patch", "pixel"])
def test_the_probe_of_patients_says_what_was_drawn(tmp_path, head, capsys):
    discs = dict(np.load(write_discs(tmp_path / "discs.npz")))
    discs["train_id"] = np.array([f"p{number // 4}_{number}" for number in range(24)])
    np.savez(tmp_path / "patients.npz", **discs)
    config = ProbeConfig(
        data=str(tmp_path / "patients.npz"),
        image_size=(32,),
        labelled_patients=2,
        head=head,
        run_dir=tmp_path / head,
    )
    results = run_probe(config)
    assert results["labels"] == 8 and len(results["draw"]["patients"]) == 2
    assert results["draw"]["empty_share"] == 0.0 and results["class_names"] == {"1": "class 1"}
    assert json.loads((tmp_path / head / "results.json").read_text())["draw"] == results["draw"]
    assert "labelled images: 8 of 2 patients, 0 of them without foreground" in capsys.readouterr().err


@pytest.mark.parametrize("head", ["patch", "pixel"])
def test_draws_without_foreground_are_no_result_of_the_probe(tmp_path, head, capsys):
    discs = dict(np.load(write_discs(tmp_path / "discs.npz")))
    discs["train_label"][4:] = 0
    np.savez(tmp_path / "few.npz", **discs)
    settings = {"data": str(tmp_path / "few.npz"), "image_size": (32,), "labels": 2}
    dataset = open_data(settings["data"], image_size=(32, 32))
    empty = next(seed for seed in range(20) if min(choose_labelled(dataset, 2, seed)) >= 4)
    with pytest.raises(
        EmptyDraw, match="cannot be fitted: none of the 2 drawn labels of few has any foreground"
    ):
        run_probe(ProbeConfig(**settings, seed=empty, head=head, run_dir=tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    draws = probe_draws(FinetuneConfig(**settings, seed=empty), Interrupt(), head)
    assert 0 < len(draws) < NUM_DRAWS
    assert (
        f"{NUM_DRAWS - len(draws)} of {NUM_DRAWS} draws of 2 labels have no foreground"
        in capsys.readouterr().err
    )
    discs["train_label"][1:] = 0
    np.savez(tmp_path / "one.npz", **discs)
    seeds = (range(seed, seed + DRAWS_APART * NUM_DRAWS, DRAWS_APART) for seed in range(100))
    never = next(own[0] for own in seeds if all(min(choose_labelled(dataset, 2, seed)) > 0 for seed in own))
    with pytest.raises(EmptyDraw):
        probe_draws(
            FinetuneConfig(**settings | {"data": str(tmp_path / "one.npz")}, seed=never), Interrupt(), head
        )


def test_fine_tuning_says_what_was_drawn_and_that_nothing_was_learned(tmp_path, capsys):
    discs = dict(np.load(write_discs(tmp_path / "discs.npz")))
    discs["train_label"][:] = 0
    discs["train_label"][0, 0, 0] = 1
    np.savez(tmp_path / "few.npz", **discs)
    config = FinetuneConfig(
        data=str(tmp_path / "few.npz"),
        image_size=(32,),
        labels=4,
        steps=30,
        batch_size=4,
        run_dir=tmp_path / "run",
    )
    results = finetune(config)
    assert len(results["draw"]["images"]) == results["labels"] == 4
    assert results["dice"] == 0.0 and results["missed"] == 8
    assert results["intervals"]["dice"] == [0.0, 0.0] and results["num_patients"] == 8
    err = capsys.readouterr().err
    assert "note: few: no drawn label contains class 1, so it cannot be learned" in err
    assert "note: the Dice is 0.000 for every class, so nothing was learned: 30 updates may be too few" in err
