"""The report of a segmenter: its sentences, its page, and the runs that it compares."""

import dataclasses
import json
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from browser import headless_chromium
from image_folders import write

import ahm_gym
from ahm_gym.cli import main
from ahm_gym.errors import InputError, Interrupted
from ahm_gym.pages.text import MINUS
from ahm_gym.runs.interrupt import Interrupt
from ahm_gym.segmentation import program, report
from ahm_gym.segmentation.case_pictures import read_case_pictures, worst_and_best
from ahm_gym.segmentation.comparison import Difference, read_results
from ahm_gym.segmentation.config import EvaluateConfig, FinetuneConfig
from ahm_gym.segmentation.evaluate_runs import run_evaluate
from ahm_gym.segmentation.finetune import Finetuning, finetune
from ahm_gym.segmentation.intervals import mean_interval
from ahm_gym.segmentation.program import is_complete, run_finetune
from ahm_gym.segmentation.report.compared import difference_text
from ahm_gym.segmentation.report.scores import notes_on, with_interval
from ahm_gym.segmentation.report.verdict import cares, compared, headline


def results_of(**changes):
    """Results in which nothing is doubtful."""
    return {
        "split": "test",
        "dice": 0.812,
        "num_patients": 26,
        "intervals": {"dice": [0.77, 0.84]},
        "per_class": {"1": {"dice": 0.8}, "2": {"dice": 0.824}},
        "class_names": {"1": "anterior", "2": "posterior"},
        "absent_classes": [],
        "data": {"rule": "by their names", "certainty": "likely", "doubts": [], "files": []},
        "draw": {"images": ["a", "b"], "absent_classes": [], "empty_share": 0.0},
        "best": {"step": 50, "dice": 0.8},
        "fixed_map_dice": 0.4,
        "config": {"labels": 2, "steps": 100, "split": None},
    } | changes


START = "On 26 patients of the test split the segmenter reaches a Dice of 0.81 (95 % interval 0.77 to 0.84)"
GUESS = {"rule": "every image on its own", "certainty": "guess", "doubts": [], "files": []}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, f"{START}."),
        (
            {"num_patients": 8},
            "On 8 patients of the test split the segmenter reaches a Dice of 0.81 (95 % interval 0.77 to 0.84, too "
            "narrow, as 8 patients are few).",
        ),
        (
            {"intervals": {"dice": [0.5, 0.9]}},
            START.replace("0.77 to 0.84", "0.50 to 0.90, which is wide") + ".",
        ),
        (
            {"intervals": {"dice": [0.5, 0.9]}, "num_patients": 5},
            "On 5 patients of the test split the segmenter reaches a Dice of 0.81 (95 % interval 0.50 to 0.90: wide, "
            "and still too narrow, as 5 patients are few).",
        ),
        (
            {"intervals": {"dice": None}, "num_patients": 1},
            "On one patient of the test split the segmenter reaches a Dice of 0.81 (no interval, because one patient "
            "allows none); that is not clearly better than the mean of the training labels, which ignores the image "
            "(0.40).",
        ),
        (
            {"split": "val"},
            "On 26 patients of the validation split, because no test image has a label, the segmenter reaches a Dice "
            "of 0.81 (95 % interval 0.77 to 0.84).",
        ),
        (
            {"split": "val", "config": {"split": "val"}},
            "On 26 patients of the validation split the segmenter reaches a Dice of 0.81 (95 % interval 0.77 to 0.84).",
        ),
        (
            {"data": GUESS},
            "On 26 cases of the test split, each counted as a patient, the segmenter reaches a Dice of 0.81 (95 % "
            "interval 0.77 to 0.84).",
        ),
        (
            {"split": "all", "data": "site_b"},
            "On 26 patients of all labelled images of site_b the segmenter reaches a Dice of 0.81 (95 % interval 0.77 "
            "to 0.84).",
        ),
        ({"per_class": {"1": {"dice": 0.0}, "2": {"dice": 0.9}}}, f"{START}; it never finds anterior."),
        (
            {"per_class": {"1": {"dice": 0.0}, "2": {"dice": None}}, "dice": 0.0, "fixed_map_dice": None},
            "On 26 patients of the test split the segmenter finds nothing that is right: its Dice is 0.00 for every "
            "class.",
        ),
        (
            {"fixed_map_dice": 0.83},
            f"{START}; that is no better than the mean of the training labels, which ignores the image (0.83).",
        ),
        (
            {"fixed_map_dice": 0.78},
            f"{START}; that is not clearly better than the mean of the training labels, which ignores the image "
            "(0.78).",
        ),
        ({"dice": None}, "No label of the test split shows any class, so the segmenter has no score."),
    ],
)
def test_one_sentence_says_what_it_comes_to(changes, expected):
    assert headline(results_of(**changes)) == expected


@pytest.mark.parametrize(
    ("name", "difference", "expected"),
    [
        (
            "none",
            Difference(0.02, [-0.01, 0.05], 26),
            f"pretraining is ahead of none by 0.020 [{MINUS}0.010, 0.050], which may be chance",
        ),
        (
            "none",
            Difference(-0.02, [-0.05, 0.01], 26),
            f"pretraining is behind none by 0.020 [{MINUS}0.010, 0.050], which may be chance",
        ),
        (
            "b",
            Difference(0.02, [0.01, 0.03], 26),
            "it is ahead of b by 0.020 [0.010, 0.030], more than chance among patients explains",
        ),
        (
            "b",
            Difference(-0.02, [-0.03, -0.01], 6),
            "it is behind b by 0.020 [0.010, 0.030], more than chance among patients explains, though 6 patients "
            "are few",
        ),
        (
            "none",
            Difference(0.0001, [-0.01, 0.01], 26),
            f"pretraining and none differ by less than 0.001 [{MINUS}0.010, 0.010], which may be chance",
        ),
        ("b", Difference(0.2, None, 1), "it is ahead of b by 0.200, which on one patient proves nothing"),
    ],
)
def test_a_comparison_is_worded_as_sure_as_it_is(name, difference, expected):
    assert compared(name, difference) == expected


def test_what_to_bear_in_mind_is_told_once_each():
    doubtful = results_of(
        split="val",
        best={"step": 100, "dice": 0.8},
        absent_classes=[2],
        unlabelled=3,
        draw={"images": ["a", "b"], "absent_classes": [1], "empty_share": 0.5},
        data={"doubts": ["names look like dates"], "files": ["x.txt is left out: no image"]},
        config={"labels": 2, "steps": 100, "split": None, "select": "best"},
    )
    assert cares(doubtful) == [
        "This is one draw of 2 labelled images and one seed: others change the scores, and the intervals do not cover "
        "that; repeat it with other seeds.",
        "No drawn label contains anterior, so it cannot be learned.",
        "50% of the labelled images show no structure.",
        "The score on validation images was still highest at the last update: a longer training may do better.",
        "The segmenter was chosen on the images that it is scored on: its scores are too high.",
        "No label of the validation split contains posterior: it has no score and is left out of the mean.",
        "3 images have no label in the validation split and are not scored.",
        "Names look like dates.",
        "X.txt is left out: no image.",
    ]
    assert len(cares(results_of(config={"steps": 100}))) == 1


def test_numbers_with_intervals_and_what_is_missing():
    assert with_interval(0.8125, [0.7, 0.9], "dice") == "0.812 [0.700, 0.900]"
    assert with_interval(12.3456, None, "hd95") == "12.35"
    assert difference_text(Difference(0.02, [0.01, 0.03], 9), "dice") == "+0.020 [+0.010, +0.030] better"
    assert difference_text(Difference(2.0, [1.0, 3.0], 9), "hd95") == "+2.00 [+1.00, +3.00] worse"
    assert difference_text(Difference(2.0, [-1.0, 3.0], 9), "hd95") == f"+2.00 [{MINUS}1.00, +3.00]"
    entry = {"dice": [0.0, None], "missed": [1, 0], "false_alarms": [0, 0]}
    assert notes_on(entry, results_of()) == [
        "anterior missed",
        "no posterior in the label, and none found",
    ]
    entry = {"dice": [0.4, 0.0], "missed": [0, 0], "false_alarms": [3, 0]}
    assert notes_on(entry, results_of(absent_classes=[2])) == [
        "anterior found where there is none in 3 images"
    ]


def test_of_few_cases_none_is_worst_and_best():
    def cases(*scores):
        return {"cases": [{"case": f"c{score}", "dice": [score]} for score in scores]}

    assert worst_and_best(cases(0.5)) == [("worst", "c0.5")]
    assert worst_and_best(cases(0.5, 0.1, 0.9)) == [("worst", "c0.1"), ("worst", "c0.5"), ("best", "c0.9")]
    many = worst_and_best(cases(*(float(score) for score in range(20))))
    assert [name for _, name in many] == ["c0.0", "c1.0", "c2.0", "c3.0", "c19.0", "c18.0"]
    assert worst_and_best({"cases": [{"case": "a", "dice": [None]}]}) == []


@pytest.fixture(scope="module")
def encoder(discs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "pre"
    ahm_gym.pretrain(
        data=str(discs), image_size=(32,), policy="random", steps=3, batch_size=4, run_dir=folder
    )
    return folder


@pytest.fixture
def config(discs, encoder, tmp_path):
    return FinetuneConfig(
        encoder=str(encoder), data=str(discs), labels=6, steps=4, batch_size=4, checkpoint_every=2,
        run_dir=tmp_path / "run", compare="none",
    )  # fmt: skip


class Outline(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def compared_run(discs, encoder, tmp_path_factory):
    """A finished run with its run from scratch and its report."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    settings = FinetuneConfig(
        encoder=str(encoder), data=str(discs), labels=6, steps=4, batch_size=4, run_dir=folder, compare="none"
    )
    run_finetune(settings, command="ahm-gym finetune --compare none")
    return folder


def test_the_page_is_whole_and_asks_for_nothing_from_outside(compared_run):
    results = read_results(compared_run)
    page = (compared_run / "report.html").read_text()
    tags = Outline(page).tags
    addresses = [value for _, found in tags for name, value in found.items() if name in ("src", "href")]
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert len([1 for tag, _ in tags if tag == "img"]) == 6 and page.count("<svg") == 4
    assert all(found.get("alt") for tag, found in tags if tag == "img")
    assert "On 8 cases of the test split, each counted as a patient, the segmenter" in page
    assert "ahm-gym finetune --compare none" in page and "surface Dice within 1 pixel<" in page
    digest = results["config"]["data_digest"]
    assert digest in page and f"torch {results['config']['versions']['torch']}" in page
    assert all(name in page for name in results["draw"]["images"])
    scratch = read_results(compared_run / "from-scratch")
    assert scratch["draw"] == results["draw"] and scratch["config"]["encoder"] == "none"
    difference = np.mean(
        [a["dice"][0] - b["dice"][0] for a, b in zip(results["cases"], scratch["cases"], strict=True)]
    )
    word = "ahead of" if difference > 0 else "behind"
    assert f"pretraining is {word} none by {abs(difference):.3f} [" in page
    interval = mean_interval(np.array([case["dice"] for case in results["cases"]]), list("abcdefgh"))
    assert with_interval(results["dice"], interval, "dice") in page
    assert [row["kind"] for row in read_case_pictures(compared_run)] == ["worst"] * 4 + ["best"] * 2


def test_the_page_fits_a_phone_and_logs_no_error(compared_run, tmp_path):
    with headless_chromium(tmp_path / "profile") as browser:
        for dark in (False, True):
            browser.open(compared_run / "report.html", dark=dark, width=390)
            assert browser.run("return document.documentElement.scrollWidth") <= 390
        assert browser.console() == []


def test_names_with_markup_or_dollars_are_shown_as_they_are(tmp_path, discs, real_pictures):
    arrays, odd = np.load(discs), "<script>alert(1)</script> $x_1$ $"
    folder = tmp_path / "a $b$ <i>"
    for index in range(8):
        write(folder / "images" / f"p{index} $x$ <b>.png", arrays["train_images"][index])
        write(folder / "labels" / f"p{index} $x$ <b>.png", arrays["train_label"][index])
    (folder / "dataset.json").write_text(
        json.dumps(
            {
                "ahm_gym": 1,
                "images": "images/{case}.png",
                "labels": "labels/{case}.png",
                "classes": {"1": odd},
            }
        )
    )
    given = FinetuneConfig(
        data=str(folder), image_size=(32,), steps=1, batch_size=2, run_dir=tmp_path / "run"
    )
    run_finetune(given, command="ahm-gym finetune --data '</pre><script>'")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<script" not in page and "<b>" not in page and "<i>" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt; $x_1$ $") > 3 and "$x$ &lt;b&gt;" in page


def test_a_run_that_is_stopped_in_either_segmenter_ends_as_if_it_had_not_been(config, tmp_path, monkeypatch):
    whole = dataclasses.replace(config, run_dir=tmp_path / "whole")
    expected = run_finetune(whole)
    update, made = Finetuning.update, []

    def counted(self, step):
        made.append(step)
        if len(made) in (3, 7):
            stop.signal = 15
        return update(self, step)

    class Stop(Interrupt):
        def __init__(self):
            nonlocal stop
            super().__init__()
            stop = self

    stop = None
    monkeypatch.setattr(Finetuning, "update", counted)
    monkeypatch.setattr(program, "Interrupt", Stop)
    with pytest.raises(Interrupted, match="stopped at step 3; continue with: `resume` `run_dir=.*/run`"):
        run_finetune(config)
    again = FinetuneConfig(run_dir=config.run_dir)
    with pytest.raises(
        Interrupted, match="from scratch to compare with; continue with: `resume` `run_dir=.*/run`"
    ):
        run_finetune(again, resume=True)
    assert not is_complete(config.run_dir) and not (config.run_dir / "report.html").exists()
    assert run_finetune(again, resume=True)["cases"] == expected["cases"]
    assert is_complete(config.run_dir) and len(made) == 8, "no update is made twice"
    one, other = (
        read_results(folder / "from-scratch")["cases"] for folder in (config.run_dir, whole.run_dir)
    )
    assert one == other


def test_a_fault_in_the_report_keeps_the_scores_and_resuming_writes_it(config, monkeypatch):
    config = dataclasses.replace(config, compare=None)

    def fails(*_):
        raise ValueError("no font")

    with monkeypatch.context() as patch, pytest.raises(ValueError, match="no font"):
        patch.setattr(program, "write_report", fails)
        run_finetune(config)
    assert read_results(config.run_dir)["num_cases"] == 8 and not is_complete(config.run_dir)
    run_finetune(FinetuneConfig(run_dir=config.run_dir), resume=True)
    assert is_complete(config.run_dir)


def test_an_encoder_of_none_cannot_be_compared_with_none(config):
    with pytest.raises(InputError, match="`compare=none` compares an encoder with none"):
        run_finetune(dataclasses.replace(config, encoder="none", image_size=(32,)))
    assert not config.run_dir.exists()


def test_another_run_is_compared_and_one_with_other_labels_is_refused_before_any_training(config, tmp_path):
    first = dataclasses.replace(config, compare=None, run_dir=tmp_path / "first")
    finetune(first)
    run_finetune(dataclasses.replace(config, compare=str(first.run_dir), encoder_rate=0.5))
    page = (config.run_dir / "report.html").read_text()
    assert "it is ahead of first by" in page or "it is behind first by" in page or "and first differ" in page
    assert "encoder rate" in page
    for change, message in (
        ({"labels": 5}, "other labelled images"),
        ({"split": "val"}, "another split, test"),
    ):
        refused = dataclasses.replace(
            config, compare=str(first.run_dir), run_dir=tmp_path / "refused", **change
        )
        with pytest.raises(InputError, match=message):
            finetune(refused)
        assert not refused.run_dir.exists()


def test_the_command_writes_the_report_anew_also_of_an_earlier_version(config, tmp_path, capsys):
    run = dataclasses.replace(config, compare=None)
    finetune(run)
    shutil.rmtree(run.run_dir / "figures" / "cases")
    old = json.loads((run.run_dir / "results.json").read_text())
    for entry in (old, *old["cases"]):
        for key in ("patients", "unlabelled", "fixed_map_dice", "nsd"):
            entry.pop(key, None)
    (run.run_dir / "results.json").write_text(json.dumps(old))
    main(["report", str(run.run_dir)])
    page = (run.run_dir / "report.html").read_text()
    assert f"Wrote {run.run_dir}/report.html" in capsys.readouterr().out
    assert page.count("<img ") == 1 and "called from Python, or not recorded" in page
    with pytest.raises(SystemExit):
        main(["report", str(run.run_dir), "--compare", "none"])
    assert "has no finished run from scratch: run finetune with --compare none" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path), "--compare", "none"])
    assert "--compare none is for a fine-tuning run or an evaluation" in capsys.readouterr().err


def test_an_evaluation_has_a_report_and_is_compared_with_another(config, discs, tmp_path):
    run = dataclasses.replace(config, compare=None)
    finetune(run)
    given = EvaluateConfig(scans=str(discs), run=run.run_dir, out=tmp_path / "one", device="cpu", split="val")
    results = run_evaluate(given, "ahm-gym evaluate discs")
    page = (given.out / "report.html").read_text()
    assert f"On {results['num_patients']} cases of the validation split of discs" in page
    assert "ahm-gym evaluate discs" in page and "Labelled images" not in page
    assert "if the segmenter was trained" not in page
    run_evaluate(dataclasses.replace(given, out=tmp_path / "two"))
    report.write_report(given.out, tmp_path / "two")
    page = (given.out / "report.html").read_text()
    assert "it and two differ by less than 0.001 [0.000, 0.000], which may be chance" in page
    assert "Which labelled images both were trained with is not recorded" in page
