import json
import signal
import time

from programs import run, start, write_discs


def test_a_stopped_run_says_how_to_continue_and_can_continue(tmp_path):
    data = write_discs(tmp_path / "discs.npz")
    folder = tmp_path / "runs" / "discs-scratch-finetune-1"
    flags = ["--data", data, "--image-size", 32, "--batch-size", 4, "--labels", 4, "--steps", 80]
    process = start("segment.py", *flags, cwd=tmp_path)
    metrics = folder / "metrics.jsonl"
    while process.poll() is None and not (metrics.is_file() and metrics.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    assert "--resume --run-dir runs/discs-scratch-finetune-1" in err
    assert not (folder / "results.json").exists()

    again = run("segment.py", "--resume", "--run-dir", folder, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "8 test cases, 4 labelled training images" in again.stdout
    assert f"Wrote {folder}/: results.json, figures/overlays.png" in again.stdout
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
    forgotten = run("segment.py", "--resume", cwd=tmp_path)
    assert forgotten.returncode == 2 and "--resume needs --run-dir" in forgotten.stderr
    for setting in (["--steps", 7], ["--freeze"], ["--native-resolution"]):
        pointless = run("segment.py", "--probe", *setting, cwd=tmp_path)
        assert pointless.returncode == 2 and "Unrecognized options" in pointless.stderr
    assert list(tmp_path.iterdir()) == []


def test_one_encoder_is_evaluated_repeatedly_without_naming_a_folder(tmp_path):
    data = write_discs(tmp_path / "discs.npz")
    assert run("pretrain.py", "--data", data, "--image-size", 32, "--steps", 1, cwd=tmp_path).returncode == 0
    encoder = ["--encoder", "runs/discs-a3c-1", "--labels", 4, "--steps", 2]
    probe = [*encoder[:-2], "--probe"]
    for flags in (encoder, encoder, probe):
        judged = run("segment.py", *flags, cwd=tmp_path)
        assert judged.returncode == 0, judged.stderr
        if flags == encoder:
            assert (
                f"--encoder none --data {data} --model tiny --image-size 32 32 --patch-size 8"
                in judged.stdout
            )
    judgements = {"discs-a3c-1-finetune-1", "discs-a3c-1-finetune-2", "discs-a3c-1-probe-1"}
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"discs-a3c-1", *judgements}
