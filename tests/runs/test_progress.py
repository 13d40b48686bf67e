import io

import pytest
from rich.console import Console

from ahm_gym.runs import progress
from ahm_gym.runs.progress import Progress, clock


class Clock:
    """A stand-in for the time module; the test moves its time."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def watch(monkeypatch):
    watch = Clock()
    monkeypatch.setattr(progress, "time", watch)
    return watch


def plain():
    return Console(file=io.StringIO(), force_terminal=False, width=40)


def test_without_a_terminal_there_is_a_line_every_30_seconds_and_one_at_the_end(watch):
    console = plain()
    with Progress("pretraining", total=100, images_per_step=64, console=console) as bar:
        for step in range(1, 101):
            watch.now += 1.0
            bar.advance(step, loss=0.25)
    lines = console.file.getvalue().splitlines()
    assert lines == [
        "pretraining 30/100 (30%), 1.00 steps/s, 64 images/s, 1:10 left, loss 0.25",
        "pretraining 60/100 (60%), 1.00 steps/s, 64 images/s, 0:40 left, loss 0.25",
        "pretraining 90/100 (90%), 1.00 steps/s, 64 images/s, 0:10 left, loss 0.25",
        "pretraining 100/100 (100%), 1.00 steps/s, 64 images/s, took 1:40, loss 0.25",
    ]


def test_the_rate_counts_from_the_step_at_which_the_loop_started(watch):
    console = plain()
    with Progress("pretraining", total=100, start=80, console=console) as bar:
        watch.now += 4.0
        bar.advance(90)
    assert console.file.getvalue() == "pretraining 90/100 (90%), 2.50 steps/s, 0:04 left\n"


def test_a_loop_that_fails_says_how_far_it_got(watch):
    console = plain()

    def fail():
        with Progress("scoring", total=10, console=console) as bar:
            watch.now += 1.0
            bar.advance(3)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert console.file.getvalue() == "scoring 3/10 (30%), 3.00 steps/s, 0:02 left\n"


def test_a_loop_without_a_step_left_ends_with_a_line(watch):
    console = plain()
    with Progress("pretraining", total=10, start=10, console=console):
        pass
    assert console.file.getvalue() == "pretraining 10/10 (100%), 0.00 steps/s, took 0:00\n"


def test_in_a_terminal_a_bar_shows_steps_rate_time_left_and_metrics(watch):
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with Progress("pretraining", total=20, images_per_step=64, console=console) as bar:
        watch.now += 1.0
        bar.advance(10, loss=0.5, reward=-1.0)
    shown = console.file.getvalue()
    assert "10/20" in shown
    assert "10 steps/s, 640 images/s, 0:01 left, loss 0.5, reward -1" in shown


def test_the_bar_keeps_to_one_line_in_a_narrow_terminal(watch):
    console = Console(file=io.StringIO(), force_terminal=True, width=60)
    with Progress("pretraining", total=20, images_per_step=64, console=console) as bar:
        watch.now += 1.0
        bar.advance(10, loss=0.5, reward=-1.0)
    last = console.file.getvalue().rstrip().split("\r")[-1]
    assert "10/20" in last
    assert "…" in last
    assert len(last.splitlines()[0]) < 200


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (3599.0, "59:59"), (3661.0, "1:01:01")]
)
def test_the_clock_shows_hours_only_if_there_are_any(seconds, text):
    assert clock(seconds) == text
