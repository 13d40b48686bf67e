"""The report of made-up benchmarks: numbers, sentences, and what is missing."""

import html
import json
import re

import numpy as np
import pytest
from benchmark_rows import DATA, FEW, POLICIES, board, make_rows, report, write_benchmark, write_rows
from PIL import Image

from ahm_gym.benchmark.report import charts, pictures, write_report
from ahm_gym.pages.text import MINUS, NOTHING, decimals, duration, p_value, percent, signed


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A finished benchmark with its report."""
    folder = write_benchmark(tmp_path_factory.mktemp("benchmark"))
    write_report(folder)
    return folder


def test_the_csv_has_one_line_for_every_data_set_policy_kind_and_number_of_labels(out):
    lines = board(out)
    keys = {(line["data"], line["policy"], line["kind"], line["labels"]) for line in lines}
    assert len(lines) == len(keys) == len(DATA) * len(FEW) * 3 * 2
    line = next(line for line in lines if line["policy"] == "a3c" and line["kind"] == "finetune")
    assert line["seeds"] == "0 1 2" and line["cases"] == "12" and line["hd95_unit"] == "pixels"
    assert float(line["dice_low"]) <= float(line["dice_difference"]) <= float(line["dice_high"])
    assert float(line["pretrain_seconds_ratio"]) == pytest.approx(1.6, rel=0.05)
    probe = next(line for line in lines if line["kind"] == "probe")
    assert probe["iou"] == probe["hd95"] == probe["hd95_verdict"] == "" and probe["dice"]


def test_the_numbers_are_those_of_the_rows(out):
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    own = {
        policy: {
            row["seed"]: row
            for row in rows
            if (row["kind"], row["data"], row["policy"], row.get("labels"))
            == ("finetune", "monusac_128", policy, 10)
        }
        for policy in ("a3c", "random")
    }
    line = next(
        line
        for line in board(out)
        if (line["data"], line["policy"], line["kind"], line["labels"])
        == ("monusac_128", "a3c", "finetune", "10")
    )
    means = [row["dice"] for row in own["a3c"].values()]
    differences = [own["a3c"][seed]["dice"] - own["random"][seed]["dice"] for seed in range(3)]
    assert float(line["dice"]) == pytest.approx(np.mean(means), abs=1e-4)
    assert float(line["dice_deviation"]) == pytest.approx(np.std(means, ddof=1), rel=1e-3)
    assert float(line["dice_difference"]) == pytest.approx(np.mean(differences), abs=1e-4)


def test_a_smaller_distance_is_better(out):
    line = next(line for line in board(out) if line["policy"] == "scratch" and line["kind"] == "finetune")
    assert float(line["hd95_difference"]) > 0 and float(line["hd95_win_probability"]) < 0.1
    assert line["hd95_verdict"] == "worse than random"


def test_findings_are_sentences_with_the_numbers_behind_them(out):
    text = (out / "leaderboard.md").read_text()
    assert "Fine-tuned, 10 labels: " in text and "worse than random" in text
    assert re.search(rf"- hc18_128: .*scratch \({MINUS}0\.\d{{3}}\)", text)
    page = (out / "report.html").read_text()
    number = rf"[+{MINUS}]?0\.\d+"
    assert re.search(
        rf"a3c against random on hc18_128, fine-tuned, 10 labels: [a-z ]+ \(Dice {number}; 95 % interval "
        rf"{number} to {number}; corrected p [\d.< ]+; 3 seeds, 12 cases\)",
        html.unescape(page),
    )
    assert "Missing seeds" not in text + page


def test_the_report_warns_where_a_task_does_not_tell_pretraining_from_none(out, tmp_path):
    warning = "warning: fine-tuned, 10 labels on hc18_128 does not tell pretraining with random masks (0.000)"
    assert warning[:50] not in (out / "leaderboard.md").read_text()  # in these rows, pretraining gains 0.1
    rows = list(make_rows(("hc18_128",), FEW, seeds=3, cases=12))
    pretrained = {
        (r["kind"], r["labels"], r["seed"]): r for r in rows if r["policy"] == "random" and "labels" in r
    }
    same = [
        pretrained[r["kind"], r["labels"], r["seed"]] | {"policy": "scratch"}
        if r["policy"] == "scratch" and r["kind"] == "finetune" and r["labels"] == 10
        else r
        for r in rows
    ]
    text, page = report(tmp_path, same)
    for found in (text, page):
        assert found.count(warning) == 1
    assert 'class="sentences doubt"' in page


def test_a_baseline_has_only_its_kinds_of_score(tmp_path):
    rows = list(make_rows(("hc18_128",), FEW, seeds=2, cases=4))
    unet = [r | {"policy": "unet_scratch"} for r in rows if r["policy"] == "grid" and r["kind"] == "finetune"]
    text, page = report(tmp_path, [*rows, *unet])
    assert "unet_scratch" in text and "unet_scratch" in page and "Missing seeds" not in text + page


def test_markdown_tables_have_as_many_entries_in_every_line(out):
    blocks = (out / "leaderboard.md").read_text().split("\n\n")
    tables = [block.splitlines() for block in blocks if block.startswith("|")]
    assert len(tables) == 6 + len(DATA) * 7
    for table in tables:
        assert len({line.count("|") for line in table}) == 1


def test_the_report_of_a_running_benchmark_lists_what_is_missing(tmp_path):
    rows = [
        row
        for row in make_rows(("hc18_128",), FEW, seeds=3, cases=4)
        if not (row["policy"] == "a3c" and row["seed"] == 2)
        and not (row["policy"] == "grid" and row["kind"] == "probe")
    ]
    text, page = report(tmp_path, rows)
    for found in (text, page):
        assert "a3c on hc18_128: seed 2 of pretraining, fine-tuned, 10 labels, " in found
        assert "grid on hc18_128: every seed of probe, 10 labels and probe, 50 labels" in found


def test_an_interval_that_extends_beyond_the_chart_ends_in_an_arrow(tmp_path):
    def rows_of(untrained):
        scores = {"random": (0.5, 0.5), "a3c": (0.51, 0.49), "scratch": untrained}
        return [
            {"kind": "probe", "data": "d", "policy": policy, "seed": seed, "labels": 10, "seconds": 1.0,
             "split": "test", "cases": {name: {"dice": [dice]} for name in "wxyz"}, "dice": dice}
            for policy, both in scores.items() for seed, dice in enumerate(both)
        ]  # fmt: skip

    assert 'class="whisker cut"' in report(tmp_path / "wide", rows_of((0.2, 0.52)))[1]
    assert 'class="whisker cut"' not in report(tmp_path / "near", rows_of((0.49, 0.505)))[1]


def test_a_policy_with_more_seeds_is_ranked_on_those_that_random_has_too(tmp_path):
    def score_of(policy, seed):
        return {("random", 0): 0.5, ("a3c", 0): 0.6, ("a3c", 1): 0.1}.get((policy, seed), 0.4)

    rows = [
        {"kind": "probe", "data": "d", "policy": policy, "seed": seed, "labels": 10, "seconds": 1.0, "split": "test",
         "cases": cases, "dice": score_of(policy, seed)}
        for policy, seed in (("random", 0), ("a3c", 0), ("a3c", 1), ("grid", 1))
        for cases in [{name: {"dice": [score_of(policy, seed)]} for name in "xy"}]
    ]  # fmt: skip
    text, _ = report(tmp_path, rows)
    (table,) = (block for block in text.split("\n\n") if block.startswith("| policy | d | mean rank"))
    assert table.splitlines()[2:] == [
        "| a3c | 0.350 | 1.00 |",
        "| random | 0.500 (1 of 2 seeds) | 2.00 |",
        f"| grid | 0.400 (1 of 2 seeds) | {NOTHING} |",
    ]


def test_one_seed_has_no_verdict(tmp_path):
    text, page = report(tmp_path, make_rows(("hc18_128",), FEW, seeds=1, cases=6))
    assert "3 comparisons, 3 with one seed and no verdict" in text
    assert "95 % interval over cases alone" in page and 'class="row none alone"' in page


@pytest.mark.parametrize("policies", [("scratch",), ("scratch", "a3c"), ("random",)])
def test_without_random_or_alone_there_is_nothing_to_compare(policies, tmp_path):
    text, page = report(tmp_path, make_rows(("hc18_128",), policies, seeds=2, cases=4))
    assert "nothing to compare with random yet" in text and "</html>" in page


def test_pretraining_alone_and_one_number_of_labels_make_a_report(tmp_path):
    rows = list(make_rows(("hc18_128",), FEW, seeds=2, labels=(10,), cases=4))
    _, page = report(tmp_path / "one", rows)
    assert "against the number of labels" not in page and "against the seconds of pretraining" in page
    text, page = report(tmp_path / "none", [row for row in rows if row["kind"] == "pretrain"])
    assert "pretraining and the health of the masks" in text and 'id="pretraining"' in page
    assert (tmp_path / "none" / "leaderboard.csv").exists()


def test_a_fraction_of_the_labels_stands_where_its_count_does(tmp_path):
    rows = list(make_rows(("hc18_128",), FEW, seeds=2, cases=4))
    rows = [row | {"amount": "0.1"} if row.get("labels") == 50 else row for row in rows]
    _, page = report(tmp_path, rows)
    assert re.search(r"<title>a3c: 0\.\d+ with 10, 0\.\d+ with 50</title>", page)


def test_cases_of_a_patient_are_resampled_together(tmp_path):
    write_rows(tmp_path, list(make_rows(("hc18_128",), FEW, seeds=2, cases=8)))
    found = []
    for patients in ({}, {"hc18_128": {f"case-{i:03d}": str(i // 4) for i in range(8)}}):
        config = json.loads((tmp_path / "config.json").read_text()) | {"patients": patients}
        (tmp_path / "config.json").write_text(json.dumps(config))
        write_report(tmp_path)
        found.append(next(line for line in board(tmp_path) if line["policy"] == "a3c"))
    assert found[0]["dice_difference"] == found[1]["dice_difference"]
    assert float(found[0]["dice_low"]) > float(found[1]["dice_low"]), "two patients are fewer than eight"


def test_cases_may_be_undefined_or_not_listed(tmp_path):
    rows = [row for row in make_rows(("monusac_128",), FEW, seeds=2, cases=5) if row["kind"] != "frozen"]
    for row in rows:
        if row["kind"] == "finetune":
            row["cases"]["case-000"] = {name: [None, None] for name in ("dice", "iou", "hd95")}
            row["cases"]["case-001"]["hd95"] = [None, 3.0]
        elif row["kind"] == "probe":
            del row["cases"]
    report(tmp_path, rows)
    lines = board(tmp_path)
    found = next(line for line in lines if line["policy"] == "a3c" and line["kind"] == "finetune")
    assert found["dice_paired_cases"] == "5" and found["hd95_paired_cases"] == "4"
    probe = next(line for line in lines if line["policy"] == "a3c" and line["kind"] == "probe")
    assert probe["dice_paired_cases"] == "1" and probe["dice_verdict"]


def test_a_policy_without_a_rank_has_an_empty_field(tmp_path):
    rows = make_rows(("hc18_128",), ("random", "grid"), seeds=2, labels=(10,), cases=3)
    apart = [row for row in rows if (row["policy"] == "grid") == (row["seed"] == 1)]
    write_report(write_rows(tmp_path, apart))
    assert {line["policy"]: line["mean_rank"] for line in board(tmp_path)} == {"random": "1", "grid": ""}


def test_the_paths_of_a_report_are_returned(tmp_path):
    written = write_report(write_rows(tmp_path, [next(make_rows())]))
    assert (written.html, written.markdown, written.csv) == (
        tmp_path / "report.html",
        tmp_path / "leaderboard.md",
        tmp_path / "leaderboard.csv",
    )
    assert all(path.stat().st_size > 0 for path in (written.html, written.markdown))


def test_pictures_of_a_policy_are_found_by_the_name_of_its_folder(tmp_path):
    folder = tmp_path / "pictures" / "hc18_128" / "agent-runs-a3c"
    folder.mkdir(parents=True)
    for step in (100, 20, 3):
        Image.new("RGB", (100, 60), (step, 0, 0)).save(folder / f"step-{step}.png")
    (folder / "step-final.png").write_bytes(b"")
    found = pictures.read_pictures(tmp_path, [("hc18_128", "agent:runs/a3c"), ("hc18_128", "random")])
    masks = found["hc18_128", "agent:runs/a3c"].masks
    assert list(found) == [("hc18_128", "agent:runs/a3c")] and list(masks) == [3, 20, 100]
    assert (masks[3].width, masks[3].height) == (600, 360)


def test_pictures_are_made_smaller_until_the_page_is_small_enough(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures" / "one" / "random"
    folder.mkdir(parents=True)
    for step in range(20):
        noise = rng.integers(0, 255, (200, 1000, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"step-{step}.png")
    monkeypatch.setattr(pictures, "BUDGET", 200_000)
    masks = pictures.read_pictures(tmp_path, [("one", "random")])["one", "random"].masks
    assert sum(len(picture.source) for picture in masks.values()) < 300_000
    assert {0, 19} <= set(masks) and len(masks) < 12


def test_labels_of_lines_keep_apart_and_near_their_lines():
    places = charts.spread({"a": 50, "b": 52, "c": 54, "d": 120}, 10, 0, 200)
    assert places == {"a": 42, "b": 52, "c": 62, "d": 120}
    assert charts.spread({"a": 2, "b": 3}, 10, 0, 200) == {"a": 0, "b": 10}
    assert charts.spread({"a": 199, "b": 200}, 10, 0, 200) == {"a": 190, "b": 200}


def test_ticks_are_round_values_within_the_scale():
    assert charts.Scale(0.713, 0.958, 0, 100).ticks(4) == pytest.approx([0.8, 0.9])
    assert charts.Scale(-0.02, 0.03, 0, 100).ticks(3) == pytest.approx([-0.02, 0, 0.02])


def test_numbers_are_formatted_for_readers():
    assert [signed(value) for value in (0.0123, -0.0001, None)] == ["+0.012", "0.000", NOTHING]
    assert signed(-0.0123) == f"{MINUS}0.012" and decimals(-1.0) == f"{MINUS}1.000"
    assert [decimals(value) for value in (0.5, None, float("nan"))] == ["0.500", NOTHING, NOTHING]
    assert [p_value(value) for value in (0.0002, 0.0123, 0.4567, None)] == [
        "< 0.001",
        "0.012",
        "0.46",
        NOTHING,
    ]
    assert [percent(value) for value in (0.456, 0, None)] == ["46 %", "0 %", NOTHING]
    assert [duration(value) for value in (0, 90, 600, 9000)] == ["0 s", "90 s", "10.0 min", "2.5 h"]


def test_eight_policies_have_different_colours_and_shapes():
    drawn = [
        re.sub(r"[\d.]+", "", charts.marker(p, POLICIES, 0, 0)) + charts.style_of(p, POLICIES)
        for p in POLICIES
    ]
    assert len(set(drawn)) == len(POLICIES)


def test_short_names_of_two_settings_of_an_agent_differ():
    from ahm_gym.benchmark.report.charts import shortened

    short = [shortened(f"a3c:entropy_coef=0.1,width={width}") for width in (16, 64)]
    assert (
        short == ["a3c\u2026idth=16", "a3c\u2026idth=64"]
        and shortened("hard_patches_more") == "hard_patche\u2026"
    )
