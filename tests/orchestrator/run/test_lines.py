"""Appended lines on a disk that is full, or away: by limits and errors of the kernel's own kind."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.run import lines
from orchestrator.run.journal import JOURNAL, Journal, read_events
from orchestrator.run.lines import Lines
from records.samples import PolicyVersion

FULL = """
import resource, signal, sys
from pathlib import Path
from orchestrator.run.journal import Journal
from records.samples import PolicyVersion

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = Journal(Path(sys.argv[1]))
journal.began(PolicyVersion(0))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
ticket = 0
while True:
    try:
        journal.admitted(ticket, "a prompt")
    except OSError as error:
        print(error)
        break
    ticket += 1
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
journal.admitted(ticket, "a prompt")
"""


def test_where_a_file_may_not_grow_the_line_that_has_no_room_is_not_there_at_all(tmp_path: Path):
    """The kernel takes a part of the last line. What is written once there is room again follows the one before."""
    ended = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert str(tmp_path / JOURNAL) in ended.stdout
    events, whole = read_events(tmp_path / JOURNAL)
    assert whole == (tmp_path / JOURNAL).stat().st_size > 900
    tickets = [event.facts["ticket"] for event in events if event.name == "admitted"]
    assert tickets == list(range(len(tickets)))
    assert len(tickets) > 5


def test_a_file_system_that_is_away_is_waited_for_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(lines, "ASK_EVERY_S", 0.001)
    journal = Journal(tmp_path)
    journal.began(PolicyVersion(0))
    write, failures = os.write, [errno.ESTALE, errno.EIO, errno.EIO]

    def away(file: int, content: bytes) -> int:
        if failures:
            write(file, content[:5])  # a part of it gets there
            raise OSError(failures.pop(), "away")
        return write(file, content)

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", away)
        with caplog.at_level("WARNING", lines.__name__):
            journal.admitted(0, "a")
    assert len(caplog.records) == 1
    assert f"{tmp_path / JOURNAL} cannot be reached (away): waiting for it" in caplog.text
    assert [event.name for event in read_events(tmp_path / JOURNAL)[0]] == ["began", "admitted"]


def test_one_that_stays_away_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lines, "ASK_EVERY_S", 0.001)
    monkeypatch.setattr(lines, "AWAY_S", 0.02)
    file = Lines(tmp_path / "a")

    def away(*_: object) -> int:
        raise OSError(errno.EIO, "away")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", away)
        with pytest.raises(OSError, match=r"\[Errno 5\] away: .*/a"):
            file.append(b"line\n")
    file.append(b"line\n")
    assert (tmp_path / "a").read_bytes() == b"line\n"
