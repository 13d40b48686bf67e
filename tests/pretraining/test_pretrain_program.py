import signal

import pytest
import torch
from programs import assert_same, final_state, run, start, wait_for

from ahm_gym.cli import command_line


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), 2),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 2),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"), 2),
        (RuntimeError("shapes do not match"), None),
    ],
)
def test_too_little_memory_is_one_sentence(error, code, capsys):
    with pytest.raises(SystemExit if code else RuntimeError) as end, command_line():
        raise error
    if code:
        assert end.value.code == code
        assert capsys.readouterr().err == (
            "error: out of memory: choose a smaller --batch-size, --image-size or --model.\n"
        )


def test_a_file_without_permission_is_named(capsys):
    with pytest.raises(SystemExit, match="2"), command_line():
        raise PermissionError(13, "Permission denied", "/scans/a.png")
    assert capsys.readouterr().err.startswith(
        "error: /scans/a.png: Permission denied: change its permissions"
    )


@pytest.fixture(scope="module")
def uninterrupted(discs, tmp_path_factory):
    """The arguments and the final state of an uninterrupted run of the program."""
    arguments = (
        "--data",
        discs,
        "--image-size",
        32,
        "--steps",
        60,
        "--batch-size",
        8,
        "--checkpoint-every",
        10,
    )
    folder = tmp_path_factory.mktemp("programs")
    result = run("pretrain.py", *arguments, "--run-dir", "whole", cwd=folder)
    assert result.returncode == 0, result.stderr
    return arguments, final_state(folder / "whole")


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_the_program_survives_a_signal(number, uninterrupted, tmp_path):
    arguments, expected = uninterrupted
    process = start("pretrain.py", *arguments, "--run-dir", "run", cwd=tmp_path)
    wait_for((tmp_path / "run" / "checkpoint" / "step-10").exists, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    if number != signal.SIGKILL:
        assert "continue with: --resume --run-dir run" in err
        assert "Traceback" not in err
    resumed = run("pretrain.py", "--resume", "--run-dir", "run", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "Next: ahm-gym finetune --encoder run" in resumed.stdout
    assert_same(final_state(tmp_path / "run"), expected)


def test_the_program_ends_with_2_and_one_sentence_on_bad_input(tmp_path):
    result = run("pretrain.py", "--data", "missing", cwd=tmp_path)
    assert result.returncode == 2
    assert (
        result.stderr.startswith("error: ")
        and "missing" in result.stderr
        and "Traceback" not in result.stderr
    )
    assert list(tmp_path.iterdir()) == []


def test_quickstart_runs(tmp_path):
    result = run("quickstart.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    losses = [
        float(line.split("loss ")[1].split(",")[0]) for line in result.stdout.splitlines() if "loss" in line
    ]
    assert len(losses) == 5 and losses[-1] < losses[0]
