"""Rows of a benchmark: what is read, what is written, and what is refused."""

import json

import pytest
from benchmark_rows import board, make_rows, write_rows
from programs import ROOT

from ahm_gym.benchmark.report import write_report
from ahm_gym.benchmark.rows import read_lines, read_row, read_settings
from ahm_gym.errors import InputError
from ahm_gym.mask_benchmark.rows import read_mask_rows

SCORE = next(
    row for row in make_rows(("hc18_128",), ("random",), seeds=1, cases=1) if row["kind"] == "finetune"
)
PRETRAINING = next(row for row in make_rows(("hc18_128",), ("random",), seeds=1, cases=1))


def test_the_newest_row_counts_and_a_torn_last_line_does_not(tmp_path):
    kept = {"policies": ("random", "a3c"), "kinds": ("probe",), "labels": (10,), "seeds": 2, "cases": 3}
    rows = list(make_rows(("hc18_128",), **kept))
    first, old = (row for row in rows if row["policy"] == "a3c" and row["kind"] == "probe")
    write_rows(tmp_path, [*rows, old | {"dice": 0.123, "cases": {}}])
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"kind": "probe", "da')
    write_report(tmp_path)
    found = next(line for line in board(tmp_path) if line["policy"] == "a3c")
    assert float(found["dice"]) == pytest.approx((0.123 + first["dice"]) / 2, abs=1e-4)


def test_a_folder_without_rows_or_with_other_lines_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no finished row"):
        write_report(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"kind": "finetune"}\n')
    with pytest.raises(InputError, match="line 1 of .* is not a row"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    "content", ["{}", "[]", json.dumps(SCORE), json.dumps(PRETRAINING | {"seconds": "1"})]
)
def test_a_damaged_row_of_an_encoder_is_refused(tmp_path, content):
    path = tmp_path / "row.json"
    path.write_text(json.dumps(PRETRAINING))
    assert read_row(path).policy == PRETRAINING["policy"]
    path.write_text(content)
    with pytest.raises(InputError, match=r"row\.json is not the row of an encoder: delete the folder"):
        read_row(path)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (SCORE | {"dice": "0.5"}, r"dice is '0\.5' \(input should be a valid number\)"),
        (SCORE | {"seed": True}, r"seed is True \(input should be a valid integer\)"),
        (
            SCORE | {"cases": {"a": {"dice": ["0.5"]}}},
            r"cases\.a\.dice\.0 is '0\.5' \(input should be a valid n",
        ),
        (
            SCORE | {"cases": {"a": {"dcie": [0.5]}}},
            "cases.a.dcie.* should be 'dice', 'iou', 'hd95', 'ap' or 'log_loss'",
        ),
        (SCORE | {"labels": None}, "labels is None"),
        (SCORE | {"amount": "many"}, "amount is 'many'"),
        (SCORE | {"recall": 0.5}, r"recall is 0\.5 \(extra inputs are not permitted\)"),
        (SCORE | {"kind": "guess"}, "the line is .* does not match any of the expected tags"),
        ({name: value for name, value in SCORE.items() if name != "data"}, "data is missing"),
        (PRETRAINING | {"psnr": [20.0]}, r"psnr is \[20\.0\]"),
        (PRETRAINING | {"labels": 10}, "labels is 10"),
        ([1], "the line is"),
    ],
)
def test_a_wrong_value_in_a_row_is_named_with_its_line_and_field(tmp_path, row, reason):
    write_rows(tmp_path, [PRETRAINING, row])
    with pytest.raises(
        InputError, match=f"line 2 of .*rows.jsonl is not a row of a benchmark, {reason}"
    ) as error:
        write_report(tmp_path)
    assert "\n" not in str(error.value) and "delete that line" in str(error.value)


@pytest.mark.parametrize(
    "folder", sorted(ROOT.glob("benchmarks/*/rows.jsonl")), ids=lambda path: path.parent.name
)
def test_rows_of_earlier_benchmarks_are_read_and_written_without_a_change(folder):
    text = folder.read_text()
    read = read_mask_rows if folder.parent.name == "maskbench" else read_lines
    assert "".join(row.line() for row in read(folder.parent)) == text and text


def test_settings_that_are_not_json_are_refused(tmp_path):
    write_rows(tmp_path, [PRETRAINING])
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="config.json is not JSON"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("null", "holds no settings"),
        ('{"pretrain": 5}', "expected an object"),
        ('{"command": 5}', "expected a text"),
    ],
)
def test_settings_of_the_wrong_type_are_refused_in_one_sentence(tmp_path, content, reason):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=reason):
        read_settings(tmp_path)
