"""Failures that are not the program's own end with one sentence and an exit code."""

import errno
import os

import pytest
import torch

from ahm_gym.cli import command_line
from ahm_gym.errors import InputError, Interrupted, RunError, printable


@pytest.mark.parametrize(
    "number",
    [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOENT, errno.ENAMETOOLONG],
)
@pytest.mark.parametrize("name", [None, "/runs/a/metrics.jsonl"])
def test_a_failed_disk_gives_a_sentence(number, name, capsys):
    with pytest.raises(SystemExit) as ended, command_line():
        raise OSError(number, os.strerror(number), name)
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and (name or "--run-dir") in err


def test_too_little_memory_on_a_cpu_gives_a_sentence(capsys):
    with pytest.raises(SystemExit), command_line():
        torch.empty(2**55)
    assert "out of memory: choose a smaller --batch-size" in capsys.readouterr().err


@pytest.mark.parametrize("error", [InputError, RunError, lambda message: Interrupted(message, 2)])
def test_a_name_in_a_message_cannot_steer_the_terminal_or_add_a_line(error, capsys):
    with pytest.raises(SystemExit), command_line():
        raise error("a\x1b[2J\nerror: b\x9b\u202e.png cannot be read")
    assert capsys.readouterr().err.endswith("a\\x1b[2J\\nerror: b\\x9b\\u202e.png cannot be read\n")


def test_letters_of_any_language_stay_as_they_are():
    assert printable("Schädel 頭部 [1].nii.gz") == "Schädel 頭部 [1].nii.gz"
