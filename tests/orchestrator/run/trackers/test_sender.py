"""Senders: whatever a client does, the run goes on, and what became of its entries is said."""

import json
import logging
import threading
import time
from pathlib import Path

import pytest

import orchestrator.run.trackers.sender
from orchestrator.config import ConfigError
from orchestrator.run.trackers.sender import Entry, Memory, Sender

LONG_S = 60.0
"""For what takes no time: a test that waits so long has failed."""


class FakeTracker:
    """Keeps steps; raises for each of *raising* as many times as it says, and hangs until *gate* is set."""

    def __init__(self, raising: dict[int, int] | None = None) -> None:
        self.id = "run 1"
        self.raising = raising or {}
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.steps: list[int] = []
        self.finished: list[bool] = []

    def log(self, step, row):
        self.entered.set()
        self.gate.wait()
        if self.raising.get(step, 0):
            self.raising[step] -= 1
            raise ConnectionError(f"no way to send step {step}")
        self.steps.append(step)

    def log_samples(self, step, samples):
        raise AssertionError("no samples here")

    def finish(self, ok):
        self.finished.append(ok)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orchestrator.run.trackers.sender, "TRY_AGAIN_S", (0.0, 0.0))


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    return Memory(tmp_path / "trackers" / "fake.json")


def entry(step: int, kind: str = "row") -> Entry:
    return Entry(kind=kind, step=step, send=lambda tracker: tracker.log(step, {}))


def send(tracker: FakeTracker, memory: Memory, *steps: int) -> str | None:
    """What is said after *steps* were offered and the run has ended well."""
    sender = Sender("fake", lambda run_id: tracker, memory)
    for step in steps:
        sender.offer(entry(step))
    sender.end(ok=True)
    return sender.outcome(time.monotonic() + LONG_S)


def test_all_entries_are_sent_in_order_and_nothing_is_said(memory):
    tracker = FakeTracker()
    assert send(tracker, memory, 1, 2, 3) is None
    assert tracker.steps == [1, 2, 3]
    assert tracker.finished == [True]


def offer_and_wait(sender: Sender, tracker: FakeTracker, steps: range, last: int) -> None:
    """Offers *steps* and waits until *last* is sent, while nothing ends the sender."""
    done = threading.Event()
    for step in steps:
        sender.offer(entry(step))
    sender.offer(Entry(kind="mark", step=last, send=lambda tracker: done.set()))
    assert done.wait(LONG_S)


def test_what_fails_once_is_tried_again_and_comes_in_order(memory, caplog):
    tracker = FakeTracker(raising={3: 1})
    sender = Sender("fake", lambda run_id: tracker, memory)
    with caplog.at_level(logging.WARNING):
        offer_and_wait(sender, tracker, range(1, 5), last=5)
    sender.end(ok=True)
    said = sender.outcome(time.monotonic() + LONG_S)
    assert tracker.steps == [1, 2, 3, 4]
    assert said == ("tracker fake failed 1 times, and has all 5 entries (last: ConnectionError: no way to send step 3)")
    assert len(caplog.records) == 1


def test_what_fails_in_every_try_is_given_up_counted_and_the_rest_is_sent(memory, caplog):
    tracker = FakeTracker(raising={3: 3, 4: 1})
    sender = Sender("fake", lambda run_id: tracker, memory)
    with caplog.at_level(logging.WARNING):
        offer_and_wait(sender, tracker, range(1, 6), last=6)
    sender.end(ok=True)
    said = sender.outcome(time.monotonic() + LONG_S)
    assert tracker.steps == [1, 2, 4, 5]
    assert said is not None
    assert said.startswith("tracker fake lacks 1 of 6 entries (last: ConnectionError")
    assert len(caplog.records) == 1, "one warning, however often it fails"


def test_a_tracker_that_cannot_be_opened_at_first_gets_everything_later(memory):
    tracker, refusals = FakeTracker(), iter([OSError("the server is away"), OSError("still away")])

    def open_run(run_id):
        for refusal in refusals:
            raise refusal
        return tracker

    sender = Sender("fake", open_run, memory)
    offer_and_wait(sender, tracker, range(1, 3), last=3)
    assert tracker.steps == [1, 2]


def test_a_hanging_client_neither_stops_an_offer_nor_the_end_beyond_the_deadline(memory):
    tracker = FakeTracker()
    tracker.gate.clear()
    sender = Sender("fake", lambda run_id: tracker, memory)
    for step in (1, 2, 3):
        sender.offer(entry(step))
    assert tracker.entered.wait(LONG_S)
    sender.end(ok=True)
    assert sender.outcome(time.monotonic()) == "tracker fake did not end in time; it lacks 3 of 3 entries"
    tracker.gate.set()  # so that its thread ends with the test


def test_what_finds_no_room_is_given_up_at_once_and_counted(memory, monkeypatch):
    monkeypatch.setattr(orchestrator.run.trackers.sender, "ROOM", 2)
    tracker = FakeTracker()
    tracker.gate.clear()
    sender = Sender("fake", lambda run_id: tracker, memory)
    for step in (1, 2, 3):
        sender.offer(entry(step))
    tracker.gate.set()
    sender.end(ok=True)
    assert sender.outcome(time.monotonic() + LONG_S) == "tracker fake lacks 1 of 3 entries"
    assert tracker.steps == [1, 2]


def test_a_run_that_goes_on_is_opened_by_its_id_and_sends_no_step_twice(memory):
    send(FakeTracker(), memory, 1, 2, 3)
    again, opened = FakeTracker(), []
    sender = Sender("fake", lambda run_id: opened.append(run_id) or again, Memory(memory._path))
    for step in (2, 3, 4):
        sender.offer(entry(step))
    sender.offer(entry(3, kind="evaluation"))
    sender.end(ok=False)
    assert sender.outcome(time.monotonic() + LONG_S) is None
    assert opened == ["run 1"]
    assert again.steps == [4, 3], "an evaluation is of another kind than a row of that step"
    assert again.finished == [False]


def test_a_step_that_was_not_sent_is_not_remembered(memory):
    send(FakeTracker(raising={2: 9}), memory, 1, 2)
    assert json.loads(memory._path.read_text()) == {"id": "run 1", "last": {"row": 1}}


def test_without_entries_nothing_is_opened_or_written(memory):
    opened = []
    sender = Sender("fake", lambda run_id: opened.append(run_id), memory)
    sender.end(ok=True)
    assert sender.outcome(time.monotonic()) is None
    assert opened == []
    assert not memory._path.parent.exists()


def test_a_damaged_memory_is_an_error_with_its_path(tmp_path):
    path = tmp_path / "wandb.json"
    path.write_text('{"id": ')
    with pytest.raises(ConfigError, match=r"wandb\.json cannot be read .* remove it"):
        Memory(path)
