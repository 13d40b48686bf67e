import json
import signal
import time

from programs import run, start, write_discs


def test_a_run_that_is_asked_to_stop_says_how_to_go_on_and_does(tmp_path):
    data = write_discs(tmp_path / "discs.npz")
    folder = tmp_path / "runs" / "segment"
    flags = ["--data", data, "--image-size", 32, "--batch-size", 4, "--labels", 4, "--steps", 80]
    process = start("segment.py", *flags, cwd=tmp_path)
    metrics = folder / "metrics.jsonl"
    while process.poll() is None and not (metrics.is_file() and metrics.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    assert "--resume --run-dir runs/segment" in err
    assert not (folder / "results.json").exists()

    again = run("segment.py", "--resume", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "8 test cases, 4 labelled training images" in again.stdout
    assert "Wrote runs/segment/: results.json, figures/overlays.png" in again.stdout
    assert "Next: " in again.stdout
    assert json.loads((folder / "results.json").read_text())["config"]["steps"] == 80


def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path):
    refused = run("segment.py", "--encoder", "nowhere", "--probe", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.strip().splitlines() == [
        "error: --encoder "
        + str(tmp_path / "nowhere")
        + " does not exist: give the folder of a pretraining run, "
        "or none."
    ]
    assert list(tmp_path.iterdir()) == []
