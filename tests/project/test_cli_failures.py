"""Failures that are not the program's own end with one sentence and an exit code."""

import errno
import os

import pytest
import torch

from ahm_gym.cli import command_line


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOENT]
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
