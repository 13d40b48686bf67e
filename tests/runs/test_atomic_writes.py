"""Files and folders are replaced as a whole, and one program at a time writes."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from ahm_gym.errors import InputError
from ahm_gym.runs import storage
from ahm_gym.runs.storage import locked, recover_all, recover_folder, replace_folder, write_atomically

forks = pytest.mark.skipif(
    sys.platform != "linux", reason="only on Linux are images loaded by forked processes"
)


def test_every_file_and_folder_is_on_the_disk_before_the_rename(tmp_path, monkeypatch):
    events = []
    rename, sync = storage.os.rename, storage.sync
    monkeypatch.setattr(storage, "sync", lambda path: (events.append(path.name), sync(path)))
    monkeypatch.setattr(storage.os, "rename", lambda old, new: (events.append("rename"), rename(old, new)))

    def write(folder):
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("x")

    replace_folder(tmp_path / "folder", write)
    assert set(events[:3]) == {"inner", "file", ".folder.tmp"}
    assert events[3:] == ["rename", tmp_path.name]


def test_a_failed_write_leaves_the_old_folder(tmp_path):
    folder = tmp_path / "folder"
    replace_folder(folder, lambda new: (new / "file").write_text("old"))

    def fail(new):
        (new / "file").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        replace_folder(folder, fail)
    assert (folder / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_crash_while_replacing_leaves_the_old_or_the_new_folder(tmp_path, monkeypatch, renames):
    folder = tmp_path / "folder"
    replace_folder(folder, lambda new: (new / "file").write_text("old"))

    class Kill(BaseException):
        pass

    rename, done = storage.os.rename, []

    def dies(old, new):
        if len(done) == renames:
            raise Kill
        done.append(rename(old, new))

    def no_cleaning(path, ignore_errors=False):
        raise Kill

    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "rename", dies)
        patch.setattr(storage.shutil, "rmtree", no_cleaning)
        with pytest.raises(Kill):
            replace_folder(folder, lambda new: (new / "file").write_text("new"))
    recover_folder(folder)
    assert (folder / "file").read_text() == ("new" if renames == 2 else "old")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_recovery_clears_what_crashes_left_and_nothing_else(tmp_path):
    for name in (".file.tmp", "file.tmp", "kept"):
        (tmp_path / name).write_text("x")
    for name in (".one.tmp", ".two.old", "three", ".three.old"):
        (tmp_path / name).mkdir()
    recover_all(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"file.tmp", "kept", "two", "three"}


@pytest.mark.parametrize("content", ["text with ü", b"\x00bytes"], ids=["text", "bytes"])
def test_a_file_is_replaced_as_a_whole(tmp_path, content):
    path = tmp_path / "file"
    path.write_text("before")
    write_atomically(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("before")

    def fail(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage, "sync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "after")
    assert path.read_text() == "before"
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


@forks
def test_a_forked_process_that_lives_on_does_not_keep_the_folder_locked(tmp_path):
    context = multiprocessing.get_context("fork")
    begun = context.Event()
    with locked(tmp_path):
        child = context.Process(target=lambda: (begun.set(), time.sleep(60)))
        child.start()
        assert begun.wait(30)
    try:
        with locked(tmp_path):
            assert child.is_alive()
    finally:
        child.kill()
        child.join()


@forks
def test_a_second_program_is_refused_only_until_the_first_is_killed_even_if_a_fork_lives_on(tmp_path):
    program = """
import multiprocessing, sys, time
from pathlib import Path
from ahm_gym.runs.storage import locked

with locked(Path(sys.argv[1])):
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    print(child.pid, flush=True)
    child.join()
"""
    first = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    child = int(first.stdout.readline())
    try:
        with pytest.raises(InputError, match="another program is at work in"), locked(tmp_path):
            pass
        first.kill()
        first.wait()
        with locked(tmp_path):
            os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)
        first.kill()
        first.stdout.close()
        first.wait()
