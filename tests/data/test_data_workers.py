"""Processes that load images: what happens if they have too little memory, die, or hang."""

import contextlib
import os
import signal

import pytest
import torch

from ahm_gym.data import BatchStream, stream
from ahm_gym.errors import RunError


@pytest.fixture
def images():
    return torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def make(images, num_workers):
    return BatchStream(images, batch_size=4, image_size=(16, 16), seed=0, num_workers=num_workers)


def test_with_too_little_shared_memory_images_are_loaded_here_and_a_note_says_so(images, monkeypatch, capsys):
    alone = make(images, 0)
    monkeypatch.setattr(stream, "free_shared_memory", lambda: 1000)
    helped = make(images, 2)
    assert all(torch.equal(next(alone), next(helped)) for _ in range(3))
    assert helped.num_workers == 0
    err = capsys.readouterr().err
    assert "note: 2 data workers need 1 MiB of shared memory (/dev/shm)" in err and "--shm-size" in err
    monkeypatch.setattr(stream, "free_shared_memory", lambda: None)
    assert make(images, 2).num_workers == 2


def batches_until(images, number):
    """Reads batches from one worker process that gets this signal."""
    loader = make(images, 1)
    next(loader)
    process = loader._loaded._workers[0].pid
    os.kill(process, number)
    try:
        for _ in range(10):
            next(loader)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        loader.close()


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # torch reports the death once more
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_is_killed_or_hangs_gives_a_sentence(images, number, monkeypatch):
    monkeypatch.setattr(stream, "SILENCE", 2)
    with pytest.raises(
        RunError, match="a process that loads images died, or gave no image for 2 s .*`resume`"
    ):
        batches_until(images, number)
