"""Published data sets, from the folder as downloaded to masks, with no flag for the data but `--data`."""

import csv
import json
import zlib
from pathlib import Path

import numpy as np
import published_layouts
import pytest
from medical_files import encode
from published_layouts import write_published

from ahm_gym.cli import main
from ahm_gym.data.formats import READERS, suffix_of
from ahm_gym.data.search import find_layout

FEW = ["--steps", "2", "--batch-size", "2"]
NAMES = sorted(
    name
    for name, item in vars(published_layouts).items()
    if callable(item) and getattr(item, "__module__", "") == "published_layouts" and name != "write_published"
)


def fill(root: Path) -> None:
    """Writes noise into the images of a layout, a disc of its own into each label, and noise into other images."""
    labels = {path for scan in find_layout(root).scans for path in scan.labels}
    rows, columns = np.mgrid[:40, :40]
    for path in (path for path in root.rglob("*") if path.is_file() and suffix_of(path) in READERS):
        rng = np.random.default_rng(zlib.crc32(str(path.relative_to(root)).encode()))
        top, left = rng.integers(12, 28, 2)
        flat = suffix_of(path) in (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif")
        disc = ((rows - top) ** 2 + (columns - left) ** 2 < 60).astype(np.uint8) * (255 if flat else 1)
        array = disc if path in labels else rng.integers(0, 200, (40, 40)).astype(np.uint8)
        encode(path, array if flat else np.repeat(array[:, :, None], 6, axis=2))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_published_data_set_is_looked_at_learned_from_and_segmented(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AHM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    data = str(write_published(name, tmp_path / "downloaded"))
    fill(Path(data))
    main(["look", data, "--out", "look"])
    assert (tmp_path / "look" / "index.html").is_file()
    main(["pretrain", "--data", data, "--image-size", "32", "--data-workers", "0", "--run-dir", "run", *FEW])
    main(["finetune", "--encoder", "run", "--data", data, "--run-dir", "segmenter", *FEW])
    results = json.loads((tmp_path / "segmenter" / "results.json").read_text())
    assert results["num_cases"] >= 1 and results["dice"] is not None
    main(["predict", "--run", "segmenter", data, "--out", "masks"])
    with (tmp_path / "masks" / "areas.csv").open() as file:
        scans = {row["scan"] for row in csv.DictReader(file)}
    assert len(scans) == len(find_layout(Path(data)).scans)
    told = capsys.readouterr().err
    assert "Traceback" not in told and "patients in train/val/test" in told
