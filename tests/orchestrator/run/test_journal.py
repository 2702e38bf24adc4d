"""The journal and its ledger: killed at any byte it is whole but for its last line, and every group ends once."""

import asyncio
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from orchestrator.run.journal import JOURNAL, DamagedJournal, Event, Journal, line_of, read_events
from orchestrator.run.ledger import make_ledger, read_ledger
from records.samples import PolicyVersion, ScoredGroup
from tests.fakes import make_group, make_prompt, make_scored

SIZE = 2


def groups_of(step: int) -> tuple[ScoredGroup, ...]:
    tickets = range((step - 1) * SIZE, step * SIZE)
    return tuple(make_scored(make_group(make_prompt(f"{it}/basic/center"), step - 1), [1.0, 0.1]) for it in tickets)


def begun(folder: Path, version: int = 0) -> Journal:
    """By a driver that goes on from *version*."""
    journal = Journal(folder)
    journal.began(PolicyVersion(version))
    return journal


def write_steps(journal: Journal, steps: range) -> None:
    for step in map(PolicyVersion, steps):
        groups = groups_of(step)
        for place, group in enumerate(groups):
            journal.admitted((step - 1) * SIZE + place, group.group.prompt.id)
        asyncio.run(journal.keep(step, groups))
        journal.trained(step)


def test_groups_come_back_as_they_were(tmp_path: Path):
    write_steps(begun(tmp_path), range(1, 3))
    journal = Journal(tmp_path)
    assert journal.kept(PolicyVersion(0)) == [1, 2]
    assert journal.kept(PolicyVersion(1)) == [2]
    back = journal.groups(PolicyVersion(2), lambda ticket: make_prompt(f"{ticket}/basic/center"))
    for made, again in zip(groups_of(2), back, strict=True):
        assert again.group.prompt == made.group.prompt
        assert [score.total for score in again.scores] == [score.total for score in made.scores]
        assert [score.parts for score in again.scores] == [score.parts for score in made.scores]
        assert [it.judgement.columns for it in again.scores] == [dict(it.judgement.columns) for it in made.scores]
        for one, other in zip(made.group.samples, again.group.samples, strict=True):
            assert (one.id, one.text, one.trace.versions, one.trace.finish) == (
                other.id,
                other.text,
                other.trace.versions,
                other.trace.finish,
            )
            for name in ("prompt_token_ids", "token_ids", "logprobs"):
                first, second = getattr(one.trace, name), getattr(other.trace, name)
                assert first.dtype == second.dtype
                assert np.array_equal(first, second)


def test_groups_of_other_prompts_are_refused(tmp_path: Path):
    journal = begun(tmp_path)
    write_steps(journal, range(1, 2))
    with pytest.raises(DamagedJournal, match="holds prompt 0/basic/center where the data have other"):
        journal.groups(PolicyVersion(1), lambda ticket: make_prompt("other"))


def test_damaged_or_missing_groups_are_not_kept(tmp_path: Path):
    journal = begun(tmp_path)
    write_steps(journal, range(1, 5))
    path = tmp_path / "groups" / "step-000003.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert journal.kept(PolicyVersion(0)) == [1, 2]
    assert journal.kept(PolicyVersion(2)) == []
    journal.forget(PolicyVersion(1))
    assert journal.kept(PolicyVersion(0)) == []
    assert journal.kept(PolicyVersion(1)) == [2]


def test_killed_at_any_byte_it_goes_on(tmp_path: Path):
    """What was whole stays, what was not never was; and what comes after it can be read."""
    write_steps(begun(tmp_path), range(1, 3))
    content = (tmp_path / JOURNAL).read_bytes()
    ends = [place for place, byte in enumerate(content, 1) if byte == ord("\n")]
    for cut in range(len(content) + 1):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / JOURNAL).write_bytes(content[:cut])
        begun(folder).close()
        events, whole = read_events(folder / JOURNAL)
        assert len(events) == sum(end <= cut for end in ends) + 1
        assert events[-1].name == "began"
        assert whole == (folder / JOURNAL).stat().st_size
        assert not read_ledger(folder).faults
        shutil.rmtree(folder)


def test_damage_in_the_middle_is_named(tmp_path: Path):
    write_steps(begun(tmp_path), range(1, 3))
    lines = (tmp_path / JOURNAL).read_bytes().split(b"\n")
    lines[2] = lines[2].replace(b"basic", b"event", 1)
    (tmp_path / JOURNAL).write_bytes(b"\n".join(lines))
    with pytest.raises(DamagedJournal, match="line 3 is damaged"):
        Journal(tmp_path)


def test_a_step_made_again_from_kept_groups_is_trained_once(tmp_path: Path):
    write_steps(begun(tmp_path), range(1, 4))
    journal = begun(tmp_path, 3)
    journal.trained(PolicyVersion(2))
    journal.trained(PolicyVersion(3))
    ledger = read_ledger(tmp_path)
    assert not ledger.faults
    assert (len(ledger.trained), ledger.made_again) == (6, 0)


def test_a_step_whose_groups_are_lost_is_made_of_others(tmp_path: Path):
    write_steps(begun(tmp_path), range(1, 4))
    journal = begun(tmp_path, 2)
    assert read_ledger(tmp_path).open == [4, 5]
    write_steps(journal, range(3, 4))
    ledger = read_ledger(tmp_path)
    assert not ledger.faults
    assert (len(ledger.trained), ledger.made_again, ledger.asked_again, ledger.open) == (6, 1, 2, [])
    assert ledger.prompts_trained == {f"{ticket}/basic/center": 1 for ticket in range(6)}


def admitted(ticket: int, prompt: str) -> Event:
    return Event("admitted", {"ticket": ticket, "prompt": prompt})


def taken(step: int) -> Event:
    return Event("taken", {"step": step, "groups": 1})


def trained(step: int) -> Event:
    return Event("trained", {"step": step})


def dropped(ticket: int) -> Event:
    return Event("dropped", {"ticket": ticket, "reason": "no signal"})


@pytest.mark.parametrize(
    ("events", "fault"),
    [
        ([admitted(0, "a"), admitted(0, "a")], "group 0 was admitted twice"),
        ([admitted(0, "a"), admitted(2, "c")], "group 2 was admitted twice, or not in its turn"),
        ([admitted(0, "a"), Event("began", {"version": 0}), admitted(0, "b")], "of prompt a, and was asked again as b"),
        ([admitted(0, "a"), trained(1)], "step 1 was made of groups that nobody took"),
        ([taken(1), trained(1)], "group 0 was trained on at step 1, and was never admitted"),
        ([admitted(0, "a"), taken(1), trained(1), trained(1)], "trained on at step 1, and then trained on at step 1"),
        ([admitted(0, "a"), taken(1), trained(1), dropped(0)], r"trained on at step 1, and then dropped \(no signal\)"),
        ([admitted(0, "a"), dropped(0), dropped(0)], r"dropped \(no signal\), and then dropped \(no signal\)"),
        ([admitted(0, "a"), admitted(1, "b"), taken(2), trained(2)], r"of the steps, \[1\] were never made"),
    ],
)
def test_what_does_not_balance_is_said(events: list[Event], fault: str):
    (found,) = make_ledger(events).faults
    assert re.search(fault, found)


def test_a_ledger_counts(tmp_path: Path):
    events = [admitted(0, "a"), admitted(1, "b"), admitted(2, "a"), taken(1), trained(1), dropped(1)]
    (tmp_path / JOURNAL).write_bytes(b"".join(map(line_of, events)))
    ledger = read_ledger(tmp_path)
    assert (len(ledger.prompts), ledger.trained, ledger.dropped, ledger.open) == (3, {0: 1}, {1: "no signal"}, [2])
    assert not ledger.faults
