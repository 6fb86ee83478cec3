"""Progress on stderr: plain lines in a log, nothing on stdout."""

from __future__ import annotations

import pytest

from maskmend import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test moves: `clock[0]` in seconds."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_at_intervals(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress.bar("training", 100) as bar:
        for _ in range(100):
            clock[0] += 0.5
            bar.update(loss=0.25)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == "training: 30/100 (30%), 2/s, 35 s left, loss 0.25"
    assert lines[-1].startswith("training: 100/100 (100%), 2/s")
    assert len(lines) == 4


def test_short_work_is_silent(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.track("abc", "reading")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


def test_the_rate_of_a_resumed_run_counts_new_steps_only(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.bar("training", 100, start=50) as bar:
        clock[0] = 20.0
        bar.update(10)
    assert "60/100 (60%), 0.5/s, 1:20 left" in capsys.readouterr().err


def test_counter(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress.counter("checking") as moved:
        for done in range(1, 5):
            clock[0] += 10
            moved(done, 4)
    assert capsys.readouterr().err.splitlines()[-1].startswith("checking: 4/4 (100%)")


def test_messages_go_to_stderr_and_can_be_silenced(capsys: pytest.CaptureFixture[str]) -> None:
    progress.message("hello [red]")
    progress.quiet()
    progress.message("unheard")
    progress.quiet(False)
    assert capsys.readouterr() == ("", "hello [red]\n")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (200, "3:20"), (3723, "1:02:03")]
)
def test_clock(seconds: float, text: str) -> None:
    assert progress.clock(seconds) == text
