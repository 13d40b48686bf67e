"""Names and settings in a report: none becomes live markup or a formula."""

import json
import re

import pytest
from benchmark_rows import board, make_rows, report, write_rows
from PIL import Image

from ahm_gym.benchmark.report import write_report
from ahm_gym.runs.storage import file_name


def test_names_cannot_break_the_page(tmp_path):
    rows = list(make_rows(("hc18_128",), ("random", "a3c"), seeds=2, cases=3))
    odd = '<script>alert("1")</script>|'
    for row in rows:
        row["policy"] = odd if row["policy"] == "a3c" else row["policy"]
    text, page = report(tmp_path, rows)
    assert odd not in page and "&lt;script&gt;" in page
    assert "\\|" in text


def test_markup_in_any_text_is_shown_and_never_live(tmp_path):
    odd = '"><img src=x onerror=alert(1)><script>1</script>'
    rows = [
        row | {"data": odd, "hardware": odd, "commit": odd} | ({"split": odd} if "split" in row else {})
        for row in make_rows(("hc18_128",), ("random", "a3c"), seeds=2, cases=3)
    ]
    for row in rows:
        row["policy"] = odd if row["policy"] == "a3c" else row["policy"]
        row["hd95_unit"] = odd if row["kind"] in ("finetune", "frozen") else None
        if row["kind"] == "pretrain":
            del row["hd95_unit"]
    write_rows(tmp_path, rows)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"command": odd, "model": odd, odd: odd, "data": {odd: odd}, "pretrain": {"steps": odd}}
    config["machine"] |= {"versions": {odd: odd}, odd: odd}
    (tmp_path / "config.json").write_text(json.dumps(config))
    folder = tmp_path / "pictures" / file_name(odd) / file_name(odd)
    folder.mkdir(parents=True)
    for picture in ("step-1.png", "segmentations-10.png"):
        Image.new("RGB", (10, 10)).save(folder / picture)
    page = write_report(tmp_path).html.read_text()
    assert page.count("&lt;script&gt;1") > 40
    assert page.count("<script") == 1 and "<img src=x" not in page
    assert len(re.findall("<img ", page)) == 2 and not re.search(r'<[^>"]*("[^"]*"[^>"]*)*onerror', page)


@pytest.mark.parametrize("odd", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_text_of_the_csv_is_a_formula(tmp_path, odd):
    rows = list(make_rows(("hc18_128",), ("random", "a3c"), seeds=2, labels=(10,), cases=3))
    names = {"hc18_128": odd, "a3c": odd}
    rows = [row | {name: names.get(row[name], row[name]) for name in ("data", "policy")} for row in rows]
    rows = [row | {"split": odd, "hd95_unit": odd} if row["kind"] == "finetune" else row for row in rows]
    written = write_report(write_rows(tmp_path, rows))
    lines = board(tmp_path)
    shown = f"'{odd}".replace("\r", " ")
    assert {line["data"] for line in lines} == {shown} and len(lines) == 6
    assert {line["policy"] for line in lines} == {"random", shown}
    tuned = [line for line in lines if line["kind"] == "finetune"]
    assert {(line["split"], line["hd95_unit"]) for line in tuned} == {(shown, shown)}
    assert len(written.csv.read_bytes().splitlines()) == 7
    numbers = [float(line["dice_difference"]) for line in lines if line["policy"] != "random"]
    assert len(numbers) == 3, "numbers, negative ones too, remain numbers"


@pytest.mark.parametrize(
    ("odd", "shown"),
    [
        ("<script>alert(1)</script>", "&lt;script>alert(1)&lt;/script>"),
        ("<!-- hidden", "&lt;!-- hidden"),
        ("![seen](http://one.example/a.png)", "![seen]\\(http://one.example/a.png)"),
        ("one\n\n# two", "one # two"),
        ("<img\nsrc=x>", "&lt;img src=x>"),
    ],
)
def test_markup_in_names_is_not_live_in_markdown(tmp_path, odd, shown):
    rows = list(make_rows(("hc18_128",), ("random", "a3c"), seeds=2, labels=(10,), cases=3))
    rows = [row | {"data": odd, "policy": odd if row["policy"] == "a3c" else row["policy"]} for row in rows]
    text, _ = report(tmp_path, [row for row in rows if row["seed"] != 1 or row["policy"] == "random"])
    assert f"### {shown}\n" in text and f"| {shown} |" in text and f"- {shown} on {shown}: seed 1" in text
    assert odd not in text and f"**{shown}, fine-tuned, 10 labels" in text
